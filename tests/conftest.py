# SPDX-License-Identifier: Apache-2.0
"""Fixtures shared by all tests."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fsd_mount import FsdMount, MakeMount
from needs import require, require_fuse, require_root
from program_host import ProgramHost
from raw_host import RawHost, Start
from run_host import Place, RunningHost, require_programs

from daxfault import native


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """Messages are named by their number: there may be a pid in them, and a test must have one name in
    every process that runs some."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture
def make_mount(tmp_path: Path) -> Iterator[MakeMount]:
    """Mount a directory, a fresh one unless `source` is given, with fsd.Filesystem's options; unmounted
    when the test ends."""
    require_fuse()
    mounts: list[FsdMount] = []

    def make(source: Path | None = None, **options: object) -> FsdMount:
        source = source or tmp_path / f"source{len(mounts)}"
        path = tmp_path / f"mount{len(mounts)}"
        source.mkdir(exist_ok=True)
        path.mkdir()
        mounts.append(FsdMount(source, path, **options))
        return mounts[-1]

    yield make
    for mount in mounts:
        mount.close()


@pytest.fixture
def mnt(make_mount: MakeMount) -> FsdMount:
    """A fresh directory `source`, mounted at `path`."""
    return make_mount()


@pytest.fixture
def read_only_source(tmp_path: Path) -> Iterator[Path]:
    """A directory with one file, on a read-only file system."""
    require_root()
    source = tmp_path / "readonly"
    source.mkdir()
    (source / "file").write_text("data")
    made = subprocess.run(["mount", "-o", "bind,ro", source, source], check=False).returncode
    require(made == 0, "bind mounts")
    yield source
    subprocess.run(["umount", "-l", source], check=True)


@pytest.fixture
def start() -> Iterator[Start]:
    """Start stand-ins, of an `abi` and with other options, with hosts played by the test."""
    with contextlib.ExitStack() as stack:

        def begin(*arguments: str, abi: str = "report") -> RawHost:
            return stack.enter_context(RawHost(native.standin(), *arguments, abi=abi))

        yield begin


@pytest.fixture
def program_host(tmp_path: Path) -> Iterator[ProgramHost]:
    """A host of programs, whose mount is the test's own directory."""
    with ProgramHost(tmp_path) as host:
        yield host


@pytest.fixture(scope="module")
def run_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHost]:
    """A `daxfault run` whose mount other programs use."""
    require_programs()
    with RunningHost(tmp_path_factory.mktemp("run")) as host:
        yield host


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """For a `daxfault run` of its own."""
    require_programs()
    return Place(tmp_path)
