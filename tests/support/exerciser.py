# SPDX-License-Identifier: Apache-2.0
"""Random operations on one file, each checked against a model: an fsx for Linux's calls.

Owns the model and the operations: read, write, append, truncate, loads and stores of a shared
mapping that is kept across them, msync, fsync, copy_file_range, holes where they can be punched,
close and open, rename, and, if the file's path behind a mount is given, writes and truncations
made there, which must be seen.  Must not know what file system it is on.

    python exerciser.py FILE [--seed N] [--count N] [--behind PATH]

-> {"counts": {operation: times}} on stdout; or exit status 1, and the last operations on stderr.
"""

from __future__ import annotations

import argparse
import collections
import ctypes
import errno
import json
import mmap
import os
import random
import sys
import time
from collections.abc import Callable

MOST = 1 << 18  # bytes in the file
PIECE = 1 << 14  # bytes in an operation, but for one in 16
PATIENCE = 20.0  # seconds until what was changed behind the mount must be seen
PUNCH = 3  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, linux/falloc.h

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class Exerciser:
    """One file, and what it must hold."""

    def __init__(self, path: str, seed: int, behind: str | None) -> None:
        self.path, self.rng = path, random.Random(seed)
        self.model = bytearray()
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        self.appending = os.open(path, os.O_WRONLY | os.O_APPEND)
        self.behind = os.open(behind, os.O_RDWR) if behind else None
        self.area: mmap.mmap | None = None
        self.said: collections.deque[str] = collections.deque(maxlen=40)
        self.counts: collections.Counter[str] = collections.Counter()
        self.steps: list[tuple[int, Callable[[], None]]] = [
            (20, self.read), (15, self.write), (5, self.append), (8, self.truncate), (15, self.load),
            (15, self.store), (4, self.remap), (2, self.msync), (2, self.fsync), (3, self.copy),
            (3, self.punch), (4, self.reopen), (2, self.rename), (2, self.whole),
        ]  # fmt: skip
        if behind:
            self.steps += [(3, self.write_behind), (2, self.truncate_behind)]

    def run(self, count: int) -> None:
        weights = [weight for weight, _ in self.steps]
        for _ in range(count):
            _, step = self.rng.choices(self.steps, weights)[0]
            self.counts[step.__name__] += 1
            step()
            size = os.fstat(self.fd).st_size
            if size != len(self.model):
                raise AssertionError(f"the file has {size} bytes, the model {len(self.model)}")
        self.whole()

    # ---- what is random

    def span(self, end: int) -> tuple[int, int]:
        """An offset, and a length that ends at `end` at most."""
        most = MOST if self.rng.random() < 1 / 16 else PIECE
        start = self.rng.randint(0, end)
        return start, self.rng.randint(0, min(most, end - start))

    def data(self, length: int) -> bytes:
        return self.rng.randbytes(min(length, 64)) * (length // 64 + 1)

    def say(self, what: str, *where: int) -> None:
        self.said.append(f"{what} {' '.join(map(hex, where))} of {len(self.model):#x}")

    def check(self, found: bytes, start: int, length: int) -> None:
        wanted = self.model[start : start + length]
        if found != wanted:
            at = next((n for n, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), -1)
            raise AssertionError(f"{len(found)} bytes at {start:#x}, {len(wanted)} wanted; byte {at} differs")

    def put(self, start: int, data: bytes) -> None:
        """What a write does to the model."""
        if data and start > len(self.model):
            self.model.extend(bytes(start - len(self.model)))
        self.model[start : start + len(data)] = data

    # ---- operations

    def read(self) -> None:
        start, length = self.span(MOST)
        self.say("read", start, length)
        self.check(os.pread(self.fd, length, start), start, length)

    def whole(self) -> None:
        self.say("read all")
        self.check(os.pread(self.fd, MOST + 1, 0), 0, MOST)

    def write(self) -> None:
        start, length = self.span(MOST)
        self.say("write", start, length)
        data = self.data(length)[:length]
        assert os.pwrite(self.fd, data, start) == length
        self.put(start, data)

    def append(self) -> None:
        _, length = self.span(MOST - len(self.model))
        self.say("append", length)
        data = self.data(length)[:length]
        assert os.write(self.appending, data) == length
        self.model += data

    def resize(self, size: int) -> None:
        del self.model[size:]
        self.model.extend(bytes(size - len(self.model)))

    def truncate(self) -> None:
        size = self.rng.randint(0, MOST)
        self.say("truncate", size)
        os.truncate(self.path if self.rng.random() < 0.5 else self.fd, size)
        self.resize(size)

    def mapped(self) -> mmap.mmap | None:
        """The mapping, made when there is none; None of an empty file, which cannot be mapped."""
        if self.area is None and self.model:
            self.area = mmap.mmap(self.fd, len(self.model))
        return self.area

    def load(self) -> None:
        if (area := self.mapped()) is not None:
            start, length = self.span(min(len(area), len(self.model)))
            self.say("load", start, length)
            self.check(area[start : start + length], start, length)

    def store(self) -> None:
        if (area := self.mapped()) is not None:
            start, length = self.span(min(len(area), len(self.model)))
            self.say("store", start, length)
            data = self.data(length)[:length]
            area[start : start + length] = data
            self.put(start, data)

    def remap(self) -> None:
        self.say("unmap")
        if self.area is not None:
            self.area.close()
            self.area = None

    def msync(self) -> None:
        self.say("msync")
        if self.area is not None:
            self.area.flush()

    def fsync(self) -> None:
        self.say("fsync")
        os.fsync(self.fd)

    def copy(self) -> None:
        source, length = self.span(len(self.model))
        target = self.rng.randint(0, MOST - length)
        if abs(source - target) < length:
            return  # overlapping: EINVAL
        self.say("copy", source, length, target)
        done = 0
        while done < length:
            some = os.copy_file_range(self.fd, self.fd, length - done, source + done, target + done)
            assert some > 0
            done += some
        self.put(target, bytes(self.model[source : source + length]))

    def punch(self) -> None:
        start, length = self.span(MOST)
        self.say("punch", start, length)
        if _libc.fallocate(self.fd, PUNCH, start, max(1, length)):
            assert ctypes.get_errno() == errno.EOPNOTSUPP
            self.counts["punch, not supported"] += 1
            return
        end = min(start + max(1, length), len(self.model))
        self.model[start:end] = bytes(max(0, end - start))

    def reopen(self) -> None:
        self.say("close and open")
        if self.rng.random() < 0.5:
            self.remap()  # otherwise it outlives its descriptor
        os.close(self.fd)
        os.close(self.appending)
        self.fd = os.open(self.path, os.O_RDWR)
        self.appending = os.open(self.path, os.O_WRONLY | os.O_APPEND)

    def rename(self) -> None:
        self.say("rename")
        os.rename(self.path, self.path + "-")
        os.rename(self.path + "-", self.path)

    # ---- behind the mount

    def write_behind(self) -> None:
        assert self.behind is not None
        start, length = self.span(len(self.model))
        self.say("write behind", start, length)
        self.msync()  # a page that is dirty here is the client's word against the writer's
        data = self.data(length)[:length]
        os.pwrite(self.behind, data, start)
        self.put(start, data)
        self.seen(start, length)

    def truncate_behind(self) -> None:
        assert self.behind is not None
        size = self.rng.randint(0, MOST)
        self.say("truncate behind", size)
        self.msync()
        os.ftruncate(self.behind, size)
        self.resize(size)
        self.seen(0, size)

    def seen(self, start: int, length: int) -> None:
        """Wait until the mount shows what the model has: by stat(2), by read(2), and in the mapping."""
        end = time.monotonic() + PATIENCE
        while os.fstat(self.fd).st_size != len(self.model):
            assert time.monotonic() < end, "the size changed behind the mount is never seen"
            time.sleep(0.001)
        while os.pread(self.fd, length, start) != self.model[start : start + length]:
            assert time.monotonic() < end, "the data changed behind the mount is never read"
            time.sleep(0.001)
        if self.area is not None:
            upto = min(start + length, len(self.area))
            while self.area[start:upto] != self.model[start:upto]:
                assert time.monotonic() < end, "the data changed behind the mount is never in the mapping"
                time.sleep(0.001)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--behind")
    told = parser.parse_args()
    if told.behind:
        open(told.file, "w").close()
    exerciser = Exerciser(told.file, told.seed, told.behind)
    try:
        exerciser.run(told.count)
    except BaseException as exc:
        print(f"seed {told.seed}, after {exerciser.counts.total()} operations: {exc!r}", file=sys.stderr)
        print(*exerciser.said, sep="\n", file=sys.stderr)
        return 1
    json.dump({"counts": exerciser.counts}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
