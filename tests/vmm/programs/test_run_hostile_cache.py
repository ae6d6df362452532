# SPDX-License-Identifier: Apache-2.0
"""Programs that misuse the page cache they were given: others on the same file are shown its bytes, or
an error.
"""

import ctypes
import fcntl
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import messages
import pytest
import raw_program
from mapscript import Mapper, compiled
from raw_program import RawProgram
from run_host import RunningHost

PAGE = 4096
PAGES = 8
CONTENT = b"".join(bytes([65 + n]) * PAGE for n in range(PAGES))


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("mapper"))


@pytest.fixture
def file(run_host: RunningHost) -> Iterator[int]:
    """A file `f`, open for reading and writing."""
    path = run_host.mount / "f"
    path.write_bytes(CONTENT)
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)
    path.unlink()


@pytest.fixture
def one(run_host: RunningHost) -> Iterator[RawProgram]:
    """A program that is served, and has mapped nothing."""
    with RawProgram(run_host.programs_environment["DAXFAULT_SOCKET"]) as program:
        program.serve()
        yield program


@pytest.fixture
def cache(one: RawProgram, file: int) -> Iterator[int]:
    """The page cache of `f`, as it was given."""
    fd = one.cache(file)
    yield fd
    os.close(fd)


@pytest.fixture
def other(run_host: RunningHost, program: Path, file: int) -> Iterator[Mapper]:
    """Another program, which has mapped all of `f`."""
    mapper = Mapper(run_host, program)
    assert mapper("open f f rw") == "0"
    assert mapper(f"map m f 0 {PAGES}p rw s") == "mapped"
    yield mapper
    mapper.close()


def test_mmap_of_a_file_that_is_only_read_gives_a_page_cache_that_is_only_read(
    run_host: RunningHost, one: RawProgram, file: int
) -> None:
    fd = os.open(run_host.mount / "f", os.O_RDONLY)
    one.send(messages.mmapping(prot=mmap.PROT_READ, fd=fd))
    (cache,) = one.reply().fds
    try:
        assert fcntl.fcntl(cache, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        for change in (lambda: os.ftruncate(cache, 0), lambda: os.pwrite(cache, b"x", 0)):
            with pytest.raises(OSError, match=r"Invalid argument|Bad file descriptor"):
                change()
    finally:
        os.close(cache)
        os.close(fd)


def test_page_cache_takes_no_seals(cache: int) -> None:
    for seal in (fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_GROW, fcntl.F_SEAL_WRITE, fcntl.F_SEAL_SEAL):
        with pytest.raises(PermissionError):
            fcntl.fcntl(cache, fcntl.F_ADD_SEALS, seal)


KEPT = 3  # pages that are left in the page cache


def cut(cache: int) -> None:
    os.ftruncate(cache, KEPT * PAGE)


def cut_and_grown(cache: int) -> None:
    cut(cache)
    os.ftruncate(cache, PAGES * PAGE)


def punched(cache: int) -> None:
    start, length = ctypes.c_long(KEPT * PAGE), ctypes.c_long((PAGES - KEPT) * PAGE)
    assert raw_program.libc.fallocate(cache, 3, start, length) == 0  # FALLOC_FL_PUNCH_HOLE | KEEP_SIZE


@pytest.fixture(params=[cut, cut_and_grown, punched])
def take(request: pytest.FixtureRequest, cache: int) -> Callable[[], None]:
    """The first program takes the last pages of `f` out of the page cache."""
    return lambda: request.param(cache)


def shown(mapper: Mapper) -> list[str]:
    return [mapper(f"load m {n}p 1") for n in range(PAGES)]


RIGHT = [f"[{chr(65 + n)}]" for n in range(PAGES)]


def test_pages_that_one_program_takes_away_are_right_or_an_error_in_another(
    other: Mapper, take: Callable[[], None]
) -> None:
    assert shown(other) == RIGHT
    take()
    for n in range(0, PAGES, 2):
        assert other(f"load m {n}p 1") in (RIGHT[n], f"SIGBUS code 2 at +{n * PAGE}")
    assert [other(f"read f {n}p 1") for n in range(PAGES)] == RIGHT
    assert shown(other) == RIGHT


def test_stores_that_one_program_takes_away_are_not_written_as_zeros_and_others_are_written(
    run_host: RunningHost, other: Mapper, take: Callable[[], None]
) -> None:
    for n in range(PAGES):
        assert other(f"store m {n}p x") == "1"
    take()
    assert other(f"msync m 0 {PAGES}p s") == "0"
    content = bytearray(CONTENT)
    content[: KEPT * PAGE : PAGE] = b"x" * KEPT
    assert (run_host.source / "f").read_bytes() == content
    assert shown(other) == ["[x]"] * KEPT + RIGHT[KEPT:]
