# SPDX-License-Identifier: Apache-2.0
"""Random calls on names and files by several processes at once, checked by twins and invariants.

Each process has a directory of its own, and makes each call also in a twin elsewhere, which must
answer the same.  In a directory that all share they get in each other's way: there only what must
hold in the end is checked.  Owns the calls and the checks.  Must not know what file system it is on.

    python random_calls.py DIRECTORY TWIN [--seed N] [--count N] [--processes N] [--behind PATH]

DIRECTORY and TWIN are empty directories; TWIN is on a file system that is trusted.  With --behind,
where DIRECTORY is behind its mount, the trees are compared there too.  -> {"calls": N, "files": N} on
stdout; or exit status 1, and what differed on stderr.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import stat
import sys
from collections.abc import Callable
from pathlib import Path

from compared_calls import performed, tree

ROUNDS = 4


class Calls:
    """An endless sequence of calls, the same for the same seed."""

    def __init__(self, seed: str) -> None:
        self.rng = random.Random(seed)
        name, size = self.name, self.size
        self.kinds: list[tuple[int, Callable[[], tuple[object, ...]]]] = [
            (12, lambda: ("write", name(), size(), size(), self.rng.randbytes(3))),
            (5, lambda: ("append", name(), self.rng.randbytes(9))),
            (6, lambda: ("read", name(), size(), size())),
            (4, lambda: ("truncate", name(), size())),
            (9, lambda: ("create", name(), self.rng.choice((0o644, 0o600, 0o4711)), self.rng.random() < 0.5)),
            (9, lambda: ("mkdir", name(), self.rng.choice((0o755, 0o700, 0o2775)))),
            (4, lambda: ("rmdir", name())),
            (6, lambda: ("unlink", name())),
            (9, lambda: ("rename", name(), name())),
            (6, lambda: ("link", name(), name())),
            (3, lambda: ("symlink", self.rng.choice("abc"), name())),
            (2, lambda: ("readlink", name())),
            (4, lambda: ("listdir", name())),
            (6, lambda: ("stat", name())),
            (2, lambda: ("chmod", name(), self.rng.choice((0o777, 0o640, 0o2750)))),
            (2, lambda: ("utime", name(), self.rng.randrange(2**33))),
        ]
        self.weights = [weight for weight, _ in self.kinds]

    def name(self) -> str:
        return "/".join(self.rng.choice("abcdef") for _ in range(self.rng.choice((1, 2, 2, 3))))

    def size(self) -> int:
        return self.rng.choice((0, 1, 100, 4095, 4096, 4097, 10_000, 70_000))

    def next(self) -> tuple[object, ...]:
        return self.rng.choices(self.kinds, self.weights)[0][1]()


def work(place: Path, twin: Path, seed: int, number: int, turn: int, count: int) -> None:
    """One process in one round."""
    own = str(number)
    for where in (place, twin):
        (where / own).mkdir(exist_ok=True)
    calls, shared = Calls(f"{seed}.{number}.{turn}"), Calls(f"{seed}.shared.{number}.{turn}")
    for _ in range(count):
        call = calls.next()
        ours, theirs = performed(place / own, call), performed(twin / own, call)
        if ours != theirs:
            raise SystemExit(f"process {number}, round {turn}: {call} answers {ours}, its twin {theirs}")
        if calls.rng.random() < 0.3:
            performed(place / "shared", shared.next())


def whole(root: Path) -> dict[Path, os.stat_result]:
    """Every name below `root` with its lstat; AssertionError when names, counts and kinds contradict each
    other."""
    found: dict[Path, os.stat_result] = {}
    for directory, directories, files in os.walk(root):
        assert sorted(directories + files) == sorted(os.listdir(directory))
        for name in directories + files:
            found[Path(directory, name)] = os.lstat(Path(directory, name))
    names: dict[int, int] = {}
    for st in found.values():
        names[st.st_ino] = names.get(st.st_ino, 0) + 1
    for path, st in found.items():
        if stat.S_ISDIR(st.st_mode):
            below = sum(stat.S_ISDIR(other.st_mode) for at, other in found.items() if at.parent == path)
            # a file system that does not count subdirectories says 1 (btrfs)
            assert st.st_nlink in (1, 2 + below), f"{path}: {st.st_nlink} links, {below} directories in it"
            assert names[st.st_ino] == 1, f"{path}: a directory with two names"
        else:
            assert st.st_nlink == names[st.st_ino], f"{path}: {st.st_nlink} links, {names[st.st_ino]} names"
    return found


def compare(place: Path, twin: Path, behind: Path | None, processes: int) -> int:
    """Compare the trees after a round; -> how many names there are."""
    for number in map(str, range(processes)):
        ours = tree(place / number)
        assert ours == tree(twin / number), f"process {number}: the tree is not its twin's"
        assert not behind or ours == tree(behind / number), f"process {number}: not what is behind the mount"
    found = whole(place)
    shared = tree(place / "shared")
    assert not behind or shared == tree(behind / "shared"), "the shared tree is not what is behind the mount"
    return len(found)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("twin", type=Path)
    parser.add_argument("--behind", type=Path)
    for name, default in (("seed", 1), ("count", 1000), ("processes", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    told = parser.parse_args()
    os.umask(0o022)
    (told.directory / "shared").mkdir()
    fork = multiprocessing.get_context("fork")
    files = 0
    for turn in range(ROUNDS):
        share = told.count // told.processes // ROUNDS
        workers = [
            fork.Process(target=work, args=(told.directory, told.twin, told.seed, number, turn, share))
            for number in range(told.processes)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        try:
            assert not any(worker.exitcode for worker in workers), "a process found a difference"
            files += compare(told.directory, told.twin, told.behind, told.processes)
        except AssertionError as exc:
            print(f"seed {told.seed}, round {turn}: {exc}", file=sys.stderr)
            return 1
    json.dump({"calls": told.count, "files": files}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
