# SPDX-License-Identifier: Apache-2.0
"""The program of mapscript.c: builds it, runs it plainly and on a mount, and sends it lines."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from checkout import PROGRAMS
from needs import require
from patience import PATIENCE, within
from run_host import RunningHost

from daxfault import native


def compiled(directory: Path, *, static: bool = False) -> Path:
    """Build it, with the C compiler that builds everything else here."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    require(compiler, "a C compiler")
    program = directory / "mapper"
    sources = sorted(map(str, PROGRAMS.glob("mapscript*.c")))
    flags = ["-O1", "-g", "-Wall", "-Wextra", "-pthread", *(["-static"] if static else [])]
    made = subprocess.run([compiler or "cc", *flags, "-o", program, *sources], check=False)
    require(made.returncode == 0 or not static, "a static libc")
    made.check_returncode()
    return program


def lines(script: str) -> str:
    return ";".join(line.strip() for line in script.strip().splitlines())


def plainly(program: Path, top: Path, script: str) -> list[str]:
    """Its answers in a directory of an ordinary file system."""
    done = subprocess.run(
        [program, top, top, lines(script)], capture_output=True, text=True, check=True, timeout=PATIENCE
    )
    return done.stdout.splitlines()


def served(host: RunningHost, program: Path, top: str, script: str, *, traced: bool = False) -> list[str]:
    """Its answers in the directory `top` of the host's mount; `traced`: by way of the tracer."""
    by = [native.tracer()] if traced else []
    answers = host.does(*by, program, host.mount / top, host.source / top, lines(script))
    return answers.splitlines()


class Mapper:
    """A running program that executes one line at a time."""

    def __init__(self, host: RunningHost, program: Path, **options: object) -> None:
        self.process = host.start(program, host.mount, host.source, **options)

    @property
    def pid(self) -> int:
        return self.process.pid

    def send(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        assert self.process.stdout is not None
        with within(what="the answer"):
            return self.process.stdout.readline().rstrip("\n")

    def __call__(self, line: str) -> str:
        self.send(line)
        return self.answer()

    def end(self) -> int:
        """Let it end; -> its status."""
        self.process.communicate(timeout=PATIENCE)
        return self.process.returncode

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def contents(top: Path) -> dict[str, bytes]:
    """What all files of a directory hold."""
    return {name: (top / name).read_bytes() for name in sorted(os.listdir(top))}


def make_files(top: Path) -> None:
    """The files of a scenario."""
    top.mkdir()
    (top / "f").write_bytes(b"".join(c * 4096 for c in (b"a", b"b", b"c", b"d")) + b"e" * 100)
    (top / "g").write_bytes(b"G" * 4096)
    (top / "h").touch()


def same_both_ways(
    host: RunningHost, program: Path, directory: Path, name: str, script: str, *, traced: bool = False
) -> None:
    """Run a scenario on the file system of `directory` and on the mount, and compare."""
    for top in (directory, host.source):
        make_files(top / name)
    expected = plainly(program, directory / name, script)
    assert served(host, program, name, script, traced=traced) == expected
    host.settled()
    assert contents(host.source / name) == contents(directory / name)
