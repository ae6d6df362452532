# SPDX-License-Identifier: Apache-2.0
"""A backing file system that is full: what fits is kept, and what does not is refused, not lost."""

import errno
import mmap
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fsd_mount import FsdMount, MakeMount, errno_of, eventually
from needs import require, require_root

SIZE = 1 << 20


@pytest.fixture
def small(make_mount: MakeMount, tmp_path: Path) -> Iterator[FsdMount]:
    """A mount of a file system of 1 MiB."""
    require_root()
    source = tmp_path / "small"
    source.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "small", source], check=False)
    require(made.returncode == 0, "mounting a tmpfs")
    mount = make_mount(source)
    yield mount
    mount.close()
    subprocess.run(["umount", source], check=True)


def fill(fd: int) -> bytes:
    """Write until there is no room; -> what was taken."""
    taken = b""
    block = bytes(range(256)) * 256
    try:
        while True:
            taken += block[: os.write(fd, block)]
    except OSError as exc:
        if exc.errno != errno.ENOSPC:
            raise
    return taken


def test_full_file_system_takes_what_fits_and_then_says_enospc(small: FsdMount) -> None:
    with open(small.path / "f", "w+b", buffering=0) as file:
        taken = fill(file.fileno())
        assert SIZE // 2 < len(taken) <= SIZE
        assert os.fstat(file.fileno()).st_size == len(taken)
        assert os.pread(file.fileno(), SIZE, 0) == taken
    assert (small.source / "f").read_bytes() == taken
    assert os.statvfs(small.path).f_bavail == 0


def test_room_made_is_used_again(small: FsdMount) -> None:
    with open(small.path / "f", "w+b", buffering=0) as file:
        fill(file.fileno())
        os.ftruncate(file.fileno(), 0)
        assert os.pwrite(file.fileno(), b"x" * 4096, 0) == 4096
        fill(file.fileno())
    os.unlink(small.path / "f")
    # the file goes with its last use, which the kernel tells without waiting for an answer
    eventually(lambda: errno_of((small.path / "g").write_bytes, b"x" * 4096) is None, "there is room")
    assert (small.source / "g").read_bytes() == b"x" * 4096


def test_append_to_a_full_file_system_is_refused_and_leaves_the_file(small: FsdMount) -> None:
    (small.path / "f").write_bytes(b"text")
    with open(small.path / "rest", "wb", buffering=0) as rest:
        fill(rest.fileno())
    with open(small.path / "f", "ab", buffering=0) as file:
        assert errno_of(file.write, b"y" * 8192) in ("ENOSPC", None)  # None: the rest of a page was taken
        assert errno_of(file.write, b"y" * 8192) == "ENOSPC"
    assert (small.source / "f").read_bytes() in (b"text", b"text" + b"y" * 4092)


def test_stores_that_found_no_room_are_told_by_msync_or_fsync(small: FsdMount) -> None:
    with (
        open(small.path / "f", "w+b", buffering=0) as file,
        open(small.path / "rest", "wb", buffering=0) as rest,
    ):
        os.ftruncate(file.fileno(), SIZE)  # a hole
        fill(rest.fileno())
        with mmap.mmap(file.fileno(), SIZE) as area:
            area[:] = b"x" * SIZE
            told = {errno_of(area.flush), errno_of(os.fsync, file.fileno())}
        assert told & {"ENOSPC", "EIO"}
    assert set((small.source / "f").read_bytes()) <= {0, ord("x")}
