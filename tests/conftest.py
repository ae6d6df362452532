# SPDX-License-Identifier: Apache-2.0
"""Fixtures shared by all tests, and what every test is held to: a bound, and leaving nothing."""

import contextlib
import faulthandler
import os
import subprocess
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
import session
from fsd_mount import FsdMount, MakeMount
from needs import require, require_fuse, require_root
from patience import within
from program_host import ProgramHost
from raw_host import RawHost, Start
from run_host import Place, RunningHost, require_programs

from daxfault import native


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """Messages are named by their number: there may be a pid in them, and a test must have one name in
    every process that runs some."""
    return argname if isinstance(val, bytes) else None


LIMIT = 300 + 5 * float(os.environ.get("DAXFAULT_STRESS_SECONDS", "0"))
SLOW_LIMIT = 4 * 3600.0

temporary = pytest.StashKey[Path]()
terminal = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    os.environ.setdefault("DAXFAULT_VERIFY", "abort")  # every page cache is compared when given up
    session.reset_signals()
    config.stash[temporary] = session.make_temporary_directory()
    config.stash[terminal] = os.dup(2)


def pytest_unconfigure(config: pytest.Config) -> None:
    session.remove_temporary_directory(config.stash[temporary])


def _bounded(item: pytest.Item) -> Generator[None]:
    """One phase of a test.  If not even a signal ends it (a thread that holds the GIL, a task in the kernel),
    the process ends with the stacks of its threads."""
    limit = SLOW_LIMIT if item.get_closest_marker("slow") else LIMIT
    faulthandler.dump_traceback_later(limit + 60, exit=True, file=item.config.stash[terminal])
    try:
        with within(limit, item.nodeid):
            return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None]:
    return (yield from _bounded(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    return (yield from _bounded(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None]:
    return (yield from _bounded(item))


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """No process, mount or temporary file outlives the tests of a module."""
    places = request.config.stash[temporary], tmp_path_factory.getbasetemp()
    before = session.found(*places)
    yield
    assert session.left_behind(*places, before) == []


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
