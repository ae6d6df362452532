# SPDX-License-Identifier: Apache-2.0
"""Finding the file behind another process's descriptor without receiving it."""

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from daxfault.vmm.programs.descriptors import Descriptors

SECONDS = 30
NOBODY = 65534


@pytest.fixture
def own() -> Iterator[Descriptors]:
    descriptors = Descriptors(os.getpid(), os.geteuid())
    yield descriptors
    descriptors.close()


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    for name in "ab":
        (tmp_path / name).write_text(name)
    return tmp_path / "a", tmp_path / "b"


def refused(call: Callable[[], object], *errors: int) -> None:
    with pytest.raises(OSError, match=r"\[Errno") as e:
        call()
    assert e.value.errno in errors


@pytest.mark.parametrize("mode", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_PATH])
def test_descriptor_is_found_with_its_file_and_flags(
    own: Descriptors, files: tuple[Path, Path], mode: int
) -> None:
    fd = os.open(files[0], mode)
    files[0].unlink()  # it need not have a name
    path, flags = own.open(threading.get_native_id(), fd)
    try:
        assert os.path.samestat(os.fstat(path), os.fstat(fd))
        assert flags & (os.O_ACCMODE | os.O_PATH) == mode
        refused(lambda: os.read(path, 1), errno.EBADF)
    finally:
        os.close(path)
        os.close(fd)


def test_descriptor_replaced_during_the_look_is_refused(
    own: Descriptors, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the flags of one file would be a right to another."""
    fd = os.open(files[0], os.O_RDONLY)
    look = Descriptors._fdinfo

    def replaced(self: Descriptors, path: str, directory: int | None = None) -> tuple[int, int, int]:
        other = os.open(files[1], os.O_RDWR)
        os.dup2(other, fd)
        os.close(other)
        return look(self, path, directory)

    monkeypatch.setattr(Descriptors, "_fdinfo", replaced)
    before = len(os.listdir("/proc/self/fd"))
    refused(lambda: own.open(threading.get_native_id(), fd), errno.EBADF)
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(fd)


@pytest.mark.parametrize("fd", [-1, 1 << 30, -(2**31), 2**31 - 1])
def test_descriptor_that_is_not_open_is_refused(own: Descriptors, fd: int) -> None:
    refused(lambda: own.open(threading.get_native_id(), fd), errno.EBADF)


def test_descriptor_of_a_thread_of_another_process_is_refused(own: Descriptors) -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as other:
        for thread in (other.pid, 0, -1, 1):
            refused(lambda thread=thread: own.open(thread, 0), errno.EBADF)  # type: ignore[misc]
        other.communicate(timeout=SECONDS)


def test_process_that_is_gone_or_another_users_is_refused() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        descriptors = Descriptors(other.pid, os.geteuid())
        refused(lambda: Descriptors(other.pid, NOBODY), errno.ESRCH)
        other.communicate(b"\n", timeout=SECONDS)
    refused(lambda: descriptors.open(other.pid, 0), errno.EBADF)
    refused(lambda: Descriptors(other.pid, os.geteuid()), errno.ENOENT)
    descriptors.close()
    descriptors.close()
