# SPDX-License-Identifier: Apache-2.0
"""What the file server has no handler for: the kernel's answer, as docs/filesystem.md tells it."""

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from fsd_mount import FsdMount, errno_of

HOLE_THEN_DATA = 3 << 20


@pytest.fixture
def fd(mnt: FsdMount) -> Iterator[int]:
    descriptor = os.open(mnt.path / "file", os.O_RDWR | os.O_CREAT)
    yield descriptor
    os.close(descriptor)


def test_fallocate_is_refused_and_posix_fallocate_writes_zeros(mnt: FsdMount, fd: int) -> None:
    command = ["fallocate", "-l", "8192", mnt.path / "file"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "not supported" in done.stderr
    assert os.fstat(fd).st_size == 0
    os.posix_fallocate(fd, 0, 8192)
    assert (mnt.source / "file").read_bytes() == bytes(8192)


def test_seek_data_sees_one_piece_of_data(fd: int) -> None:
    os.pwrite(fd, b"x", HOLE_THEN_DATA)
    assert os.lseek(fd, 0, os.SEEK_DATA) == 0
    assert os.lseek(fd, 0, os.SEEK_HOLE) == HOLE_THEN_DATA + 1


def test_copy_file_range_copies(mnt: FsdMount, fd: int) -> None:
    os.pwrite(fd, b"some bytes", 0)
    with (mnt.path / "copy").open("wb") as to:
        assert os.copy_file_range(fd, to.fileno(), 10, 0, 0) == 10
    assert (mnt.source / "copy").read_bytes() == b"some bytes"


def test_ioctl_is_not_a_thing_of_these_files(fd: int) -> None:
    assert errno_of(fcntl.ioctl, fd, 0x5401, bytes(64)) == "ENOTTY"


def test_locks_hold_between_processes_of_this_kernel(mnt: FsdMount, fd: int) -> None:
    fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    attempt = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    done = subprocess.run(
        [sys.executable, "-c", attempt, mnt.path / "file"], capture_output=True, check=False
    )
    assert b"BlockingIOError" in done.stderr
    # and nobody behind the mount knows
    assert subprocess.run([sys.executable, "-c", attempt, mnt.source / "file"], check=False).returncode == 0


def test_tmpfile_is_refused(mnt: FsdMount) -> None:
    with pytest.raises(OSError, match="not supported") as exc:
        os.open(mnt.path, os.O_TMPFILE | os.O_RDWR)
    assert exc.value.errno == errno.EOPNOTSUPP
