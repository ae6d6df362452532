# SPDX-License-Identifier: Apache-2.0
"""Programs under the tracer, for tests: a host whose mount is a file system of its own, and a static program.

Owns the command line and the environment.  The library is preloaded as well, as it is where the
tracer is started from a program that has it: the tracer must see to it that only one of them acts.
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from checkout import PROGRAMS
from needs import require
from patience import PATIENCE
from program_host import ProgramHost

from daxfault import native


@contextlib.contextmanager
def traced_host(*, children: bool = True, device: bool = True) -> Iterator[ProgramHost]:
    """A host of the files of a fresh directory, on another file system than the programs' own."""
    shm = Path("/dev/shm")
    require(shm.is_dir() and shm.stat().st_dev != Path("/usr/bin").stat().st_dev, "a tmpfs at /dev/shm")
    with (
        tempfile.TemporaryDirectory(dir=shm, prefix="daxfault-") as directory,
        ProgramHost(Path(directory), children=children, device=device) as host,
    ):
        yield host


@functools.cache
def static(name: str, directory: Path) -> Path:
    """The program tests/programs/NAME.c, linked statically, made in `directory`."""
    require(PROGRAMS.is_dir(), "the C sources beside the tests")
    binary = directory / name
    flags = ["-std=gnu11", "-D_GNU_SOURCE", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-static"]
    empty = subprocess.run(
        ["cc", "-static", "-x", "c", "-", "-o", "/dev/null"],
        input=b"int main(void) { return 0; }",
        check=False,
    )
    require(empty.returncode == 0, "a static libc")
    subprocess.run(["cc", *flags, PROGRAMS / f"{name}.c", "-o", binary, "-lpthread"], check=True)
    return binary


def traced(*command: object) -> list[str]:
    return [os.fspath(native.tracer()), *map(str, command)]


def run_traced(host: ProgramHost, *command: object) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    return subprocess.run(
        traced(*command), env=host.environment(), capture_output=True, text=True, timeout=PATIENCE
    )
