# SPDX-License-Identifier: Apache-2.0
"""`daxfault run` as a person runs it, and many programs on one of its mounts.

Owns its process, its mount and its temporary files, of which it leaves none.  What a program
did is judged on `source`, without the mount.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from command_line import assert_nothing_left, environment
from needs import require, require_fuse
from patience import PATIENCE, looks, within

from daxfault import native
from daxfault.vmm.programs import control
from daxfault.vmm.programs import environment as program_environment

# It lives until its standard input ends, and says when it has begun.
WAITING = ["sh", "-c", "echo ready; cat >/dev/null"]


def require_programs() -> None:
    """Skip where ordinary programs cannot be served."""
    require_fuse()
    try:
        native.uffd_probe()
    except OSError as e:
        require(False, f"userfaultfd: {e}")


@dataclasses.dataclass(frozen=True)
class Ran:
    """A `daxfault run` that has ended."""

    code: int
    out: str
    err: str
    report: dict[str, Any]

    @property
    def failed(self) -> list[dict[str, Any]]:
        return list(self.report["failed"])


class Place:
    """A directory `source` to be served, and an empty `mount`; `top` is for their temporary files."""

    def __init__(self, directory: Path, source: Path | None = None) -> None:
        self.top = directory / "tmp"
        self.source = source or directory / "source"
        self.mount = directory / "mount"
        for path in (self.top, self.source, self.mount):
            path.mkdir(exist_ok=path == source)

    def command(self, program: Sequence[str | Path], *options: str) -> list[str]:
        run = [sys.executable, "-m", "daxfault", "run", "--source", os.fspath(self.source)]
        return [*run, "--mount", os.fspath(self.mount), *options, "--", *map(os.fspath, program)]

    def ran(self, *program: str | Path, options: Sequence[str] = (), input: str | None = None) -> Ran:
        """Run a program to its end, with nothing left behind."""
        written = self.top.parent / "report.json"
        written.unlink(missing_ok=True)
        done = subprocess.run(
            self.command(program, "--json", os.fspath(written), *options),
            capture_output=True,
            text=True,
            check=False,
            input=input,
            timeout=PATIENCE,
            cwd="/",
            env=environment(self.top),
        )
        assert_nothing_left(self.top)
        assert not self.is_mounted()
        report = json.loads(written.read_text()) if written.exists() else {}
        return Ran(done.returncode, done.stdout, done.stderr, report)

    @contextlib.contextmanager
    def started(self, *program: str | Path, **options: Any) -> Iterator[subprocess.Popen[str]]:
        """A run that goes on, in a process group of its own; nothing of it is left in the end."""
        # a shell's job in the background has SIGINT ignored, and so may this process
        command = ["env", "--default-signal=INT", *self.command(program)]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
            env=environment(self.top),
            start_new_session=True,
            **options,
        )
        try:
            yield process
            process.communicate(timeout=PATIENCE)
            assert not self.is_mounted()
            assert_nothing_left(self.top)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            subprocess.run(["umount", "-l", self.mount], check=False, stderr=subprocess.DEVNULL)

    def python(self, script: str, *arguments: str, options: Sequence[str] = ()) -> Ran:
        """Run a script in the mount."""
        return self.ran("env", "-C", self.mount, "python3", "-c", script, *arguments, options=options)

    def is_mounted(self) -> bool:
        return f" {self.mount} " in Path("/proc/self/mountinfo").read_text()


class RunningHost(Place):
    """A `daxfault run` that waits, and whose mount other programs use."""

    def __init__(self, directory: Path, *options: str, source: Path | None = None) -> None:
        super().__init__(directory, source)
        self.process = subprocess.Popen(
            self.command(WAITING, *options),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
            env=environment(self.top),
        )
        assert self.process.stdout is not None
        with within(what="daxfault run"):
            if self.process.stdout.readline() != "ready\n":
                raise AssertionError(self.process.communicate()[1])
        self.programs_environment = program_environment.of_mount(self.mount)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.end()
        finally:
            if self.process.returncode is None:
                self.kill()
            if self.is_mounted():
                subprocess.run(["umount", "-l", self.mount], check=False, stderr=subprocess.DEVNULL)
        assert_nothing_left(self.top)

    def end(self) -> tuple[str, str]:
        """End the program and wait for the host; -> its standard output and error."""
        return self.process.communicate(timeout=PATIENCE)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def ask(self, do: str, **arguments: Any) -> Any:
        return control.ask(self.mount, do, **arguments)

    def start(self, *program: str | Path, **options: Any) -> subprocess.Popen[str]:
        """A program in the mount, its three streams with us."""
        return subprocess.Popen(
            list(map(os.fspath, program)),
            cwd=self.mount,
            env=os.environ | self.programs_environment | options.pop("env", {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def does(self, *program: str | Path, status: int = 0, input: str | None = None, **options: Any) -> str:
        """Run a program in the mount to its end, which must be with `status`; -> its standard output."""
        with self.start(*program, **options) as process:
            try:
                out, err = process.communicate(input, timeout=PATIENCE)
            except BaseException:
                process.kill()
                raise
        assert process.returncode == status, f"{process.returncode}: {out}{err}"
        return out

    def python(self, script: str, *arguments: str, status: int = 0, **options: Any) -> str:
        return self.does(sys.executable, "-c", script, *arguments, status=status, **options)

    def settled(self) -> Path:
        """Wait until no program maps a file and what they stored is written back; -> `source`."""
        for _ in looks():
            if not self.ask("status")["busy"]:
                break
        return self.source

    def freed(self) -> Path:
        """Wait until the host has let go of what no program maps any more: what it may write to the kernel
        does not execute (ETXTBSY); -> `source`."""
        for _ in looks():
            if not self.ask("status")["files"]:
                break
        return self.source

    @contextlib.contextmanager
    def serves(self) -> Iterator[None]:
        """What the body runs maps something: pages of it are asked for."""
        before = self.ask("status")["counters"]["installed"]
        yield
        assert self.ask("status")["counters"]["installed"] > before

    def inject(self, *rules: str) -> list[int]:
        return [self.ask("inject", rule=rule) for rule in rules]

    @contextlib.contextmanager
    def failing(self, *rules: str) -> Iterator[None]:
        """Faults on purpose while the body runs."""
        ids = self.inject(*rules)
        try:
            yield
        finally:
            for id in ids:
                assert self.ask("remove", id=id) == 1
