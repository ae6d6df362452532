# SPDX-License-Identifier: Apache-2.0
"""One round of the campaign: a mount with programs on it, events that hit them, and the verdicts.

Owns the round's processes, mounts and files, and leaves none.  What may happen is campaign_events.py's.
Everything is drawn from the seed but the instants at which processes run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import mmap
import os
import random
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from daxfault import native
from daxfault.vmm.programs import environment as program_environment

# as in tests/programs/campaign.c
PAGE, MIDDLE, PAGES, OWNERS, TAG_FILE, TAG_WILD = 4096, 2048, 60, 5, 0xC5, 0xC6
BEHIND = OWNERS - 1
_HEADER = "stop", "may_fail", "violations", "loads", "stores", "acks", "errors", "buses"
LOG_BYTES = 4 * (len(_HEADER) + 3 * PAGES) + 256

MARK = "DAXFAULT_CAMPAIGN_ROUND"  # in the environment of all that a round starts
READY = 30.0
DEADLINE = 20.0  # for programs to see that they shall stop, and for a host to end


def stamp(tag: int, page: int, version: int) -> int:
    return tag << 56 | (page + 1) << 40 | version


class Log:
    """What the programs stored, and what they were told; shared with them."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(LOG_BYTES))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), LOG_BYTES)

    def __getitem__(self, name: str) -> int:
        return int(struct.unpack_from("I", self._memory, 4 * _HEADER.index(name))[0])

    def __setitem__(self, name: str, value: int) -> None:
        struct.pack_into("I", self._memory, 4 * _HEADER.index(name), value)

    def page(self, page: int) -> tuple[int, int, int]:
        """Versions issued, stored, acknowledged."""
        found: tuple[int, int, int] = struct.unpack_from("3I", self._memory, self._at(page))
        return found

    def set_page(self, page: int, version: int) -> None:
        struct.pack_into("3I", self._memory, self._at(page), version, 1, 1)

    @property
    def what(self) -> str:
        return self._memory[-256:].split(b"\0")[0].decode()

    @staticmethod
    def _at(page: int) -> int:
        return 4 * (len(_HEADER) + 3 * page)


@dataclasses.dataclass
class Result:
    """`wrong` is empty when every verdict held."""

    seed: int
    events: list[str]
    wrong: list[str]
    counts: dict[str, int]
    seconds: float


class Round:
    """What events act on."""

    def __init__(self, seed: int, top: Path, programs: dict[str, Path]) -> None:
        self.rng = random.Random(seed)
        self.seed, self.top, self._programs = seed, top, programs
        self.origin, self.mount, self.tmp = top / "origin", top / "mount", top / "tmp"
        self.source = self.origin
        self.log = Log(top / "log")
        self.wrong: list[str] = []
        self.restore: list[Callable[[], object]] = []  # what ends events that last
        self.workers: list[subprocess.Popen[str]] = []
        self.backing: subprocess.Popen[str] | None = None
        self.environment = os.environ | {MARK: os.fspath(top), "TMPDIR": os.fspath(self.tmp)}

    # ---- beginning

    def begin(self, *, small: bool, chained: bool, wrapped: bool) -> None:
        for path in (self.origin, self.mount, self.tmp):
            path.mkdir()
        if small:
            self.call("mount", "-t", "tmpfs", "-o", "size=2M", "none", self.origin)
        self._make_files()
        if chained:
            self.source = self.top / "between"
            self.source.mkdir()
            self.backing = self._served(self.origin, self.source)
        self.host = self._served(self.source, self.mount, "--programs")
        served = self.environment | program_environment.of_mount(self.mount)
        for number in range(BEHIND):
            kind = "static" if self.rng.random() < 0.3 else "dynamic"
            command: list[object] = [self._programs[kind], self.mount / "file", self.mount / "wild"]
            command += [self.top / "log", number, self.seed]
            by_run = wrapped and not number
            if by_run:
                command = [sys.executable, "-m", "daxfault", "run", "--mount", self.mount, "--", *command]
            elif kind == "static":
                command = [native.tracer(), *command]
            with (self.top / f"{number}.log").open("w") as said:
                environment = self.environment if by_run else served
                self.workers.append(self.start(*command, env=environment, stderr=said))
        self._until(lambda: all(self.log.page(n)[1] for n in range(BEHIND)), "stores of all programs")

    def _make_files(self) -> None:
        with (self.origin / "file").open("wb") as file:
            file.truncate(PAGES * PAGE)
            for page in range(BEHIND, PAGES, OWNERS):
                self.write_behind(file.fileno(), page, 1)
        with (self.origin / "wild").open("wb") as file:
            file.truncate(PAGES * PAGE)

    def write_behind(self, fd: int, page: int, version: int) -> None:
        self.log.set_page(page, version)
        word = struct.pack("Q", stamp(TAG_FILE, page, version))
        os.pwrite(fd, word.ljust(MIDDLE, b"\0") + word.ljust(MIDDLE, b"\0"), page * PAGE)

    def _served(self, source: Path, mount: Path, *options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "daxfault", "mount", *options, source, mount]
        with (self.top / f"{mount.name}.log").open("w") as log:
            process = self.start(*command, stdout=log, stderr=log)
        self._until(lambda: os.path.ismount(mount) or process.poll() is not None, "the mount")
        if process.poll() is not None:
            raise RuntimeError((self.top / f"{mount.name}.log").read_text())
        if options:
            said = self.top / f"{mount.name}.log"
            self._until(lambda: "is served" in said.read_text(), "the host")
        return process

    def start(self, *command: object, **more: Any) -> subprocess.Popen[str]:
        more = {"env": self.environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL} | more
        return subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.DEVNULL,
            text=True,
            cwd="/",
            start_new_session=True,
            **more,
        )

    def call(self, *command: object) -> int:
        return subprocess.run(
            list(map(str, command)), check=False, capture_output=True, timeout=10
        ).returncode

    def keepers(self) -> list[int]:
        return [pid for pid, name in self.processes() if name.startswith("daxfault-keep")]

    def _until(self, condition: Callable[[], object], what: str, seconds: float = READY) -> None:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                where = [self._where(pid) for pid, _ in self.processes()]
                ended = [worker.returncode for worker in self.workers if worker.poll() is not None]
                raise RuntimeError(f"never: {what}; ended: {ended}; {where}")
            time.sleep(0.005)

    # ---- end, and verdicts

    def judge(self, *, may_lose: bool, killed: bool, crashes: bool) -> None:
        """End everything, and append to `wrong` what is not as promised."""
        for restore in reversed(self.restore):
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                restore()
        time.sleep(0.2)
        self.log["stop"] = 1
        self._end_programs()
        self._end_host(killed=killed, crashes=crashes)
        if self.log["violations"]:
            self.wrong.append(f"{self.log['violations']} violations, the last: {self.log.what}")
        self._look_behind(may_lose=may_lose)

    def _end_programs(self) -> None:
        def left() -> list[int]:
            return [pid for pid, name in self.processes() if name.startswith("campaign-")]

        end = time.monotonic() + DEADLINE
        while left() and time.monotonic() < end:
            time.sleep(0.01)
        self.wrong += [f"hang: {self._where(pid)}" for pid in left()]
        for worker in self.workers:
            try:
                status = worker.wait(max(end - time.monotonic(), 1))
            except subprocess.TimeoutExpired:
                self.wrong.append(f"hang: {self._where(worker.pid)}")
                continue
            if not self.log["may_fail"] and status not in (0, 1, -signal.SIGKILL):
                self.wrong.append(f"a program ended with {status}")

    def _end_host(self, *, killed: bool, crashes: bool) -> None:
        log = self.top / "mount.log"
        if not killed and self.host.poll() is None:
            self.host.terminate()
        try:
            self.host.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.wrong.append(f"the host does not end: {self._where(self.host.pid)}")
        if not killed and not crashes and self.host.returncode not in (0, None):
            self.wrong.append(f"the host ended with {self.host.returncode}: {log.read_text()[-300:]}")
        if "Traceback" in log.read_text() and not crashes:
            self.wrong.append(f"a traceback: {log.read_text().splitlines()[-1]}")
        if self.backing:
            self.backing.terminate()
            self.backing.wait(DEADLINE)
        end = time.monotonic() + 5
        while (left := self._left()) and time.monotonic() < end:
            time.sleep(0.02)
        self.wrong += [f"left behind: {name}" for name in left]

    def _left(self) -> list[str]:
        found = [f"process {self._where(pid)}" for pid, _ in self.processes()]
        mounts = Path("/proc/self/mountinfo").read_text()
        found += [
            f"mount {path.name}"
            for path in (self.mount, self.source)
            if f" {path} " in mounts and path != self.origin
        ]
        return [*found, *(f"temporary {path.name}" for path in self.tmp.iterdir())]

    def _look_behind(self, *, may_lose: bool) -> None:
        data = (self.origin / "file").read_bytes()
        if len(data) != PAGES * PAGE:
            self.wrong.append(f"the file has {len(data)} bytes")
            return
        for page in range(PAGES):
            issued, stored, acked = self.log.page(page)
            least = acked if may_lose else stored
            for at in (0, MIDDLE):
                (word,) = struct.unpack_from("Q", data, page * PAGE + at)
                version = word & 0xFFFFFFFF
                if word and word != stamp(TAG_FILE, page, version):
                    self.wrong.append(f"backing: page {page} is foreign: {word:x}")
                elif page % OWNERS == BEHIND and version != issued:
                    self.wrong.append(
                        f"backing: page {page} written behind was reverted to {version} of {issued}"
                    )
                elif not least <= version <= issued:
                    what = "acknowledged" if version < acked else "stored"
                    self.wrong.append(f"backing: page {page} is {version}, {what} {least}, issued {issued}")
        wild = (self.origin / "wild").read_bytes()
        for page in range(len(wild) // PAGE):
            (word,) = struct.unpack_from("Q", wild, page * PAGE)
            if word not in (0, stamp(TAG_WILD, page, 1)):
                self.wrong.append(f"backing: page {page} of the wild file is foreign: {word:x}")

    def processes(self) -> Iterator[tuple[int, str]]:
        """Those of this round that live: number and name."""
        mark = f"{MARK}={self.top}".encode()
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (path / "environ").read_bytes().split(b"\0"):
                    yield int(path.name), (path / "comm").read_text().strip()

    def _where(self, pid: int) -> str:
        """What a process is and where its threads wait."""
        found = []
        for task in Path(f"/proc/{pid}/task").glob("*"):
            with contextlib.suppress(OSError):
                state = (task / "stat").read_text().rpartition(")")[2].split()[0]
                stack = [line.split()[1].split("+")[0] for line in (task / "stack").read_text().splitlines()]
                found.append(f"{state} {'<'.join(stack[:5])}")
        with contextlib.suppress(OSError):
            return (
                f"{pid} {Path(f'/proc/{pid}/comm').read_text().strip()}: {'; '.join(sorted(set(found))[:6])}"
            )
        return f"{pid}"

    def clean(self) -> None:
        """Whatever the verdict: nothing stays."""
        for _ in range(3):
            self.call("umount", "-f", self.mount)
            for pid, _ in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for worker in (*self.workers, *((self.backing,) if self.backing else ())):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    worker.wait(1)
        for path in (self.mount, self.source, self.origin):
            self.call("umount", "-l", path)
