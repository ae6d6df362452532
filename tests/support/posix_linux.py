# SPDX-License-Identifier: Apache-2.0
"""Calls that Linux adds to POSIX, and mappings: rows for posix_cases.py.

Owns the rows.
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import mmap
import os
from collections.abc import Callable
from pathlib import Path

from fsd_mount import errno_of

KEEP_SIZE, PUNCH_HOLE = 1, 2  # linux/falloc.h
FS_IOC_GETFLAGS = 0x80086601  # linux/fs.h

Call = Callable[[str], object]

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def opened(then: Callable[[int], object], flags: int = os.O_RDWR) -> Call:
    def run(at: str) -> object:
        fd = os.open(f"{at}/f", flags)
        try:
            return then(fd)
        finally:
            os.close(fd)

    return run


def fallocate(fd: int, mode: int, offset: int, length: int) -> object:
    """-> the errno's name, or the size and the first bytes that the file then has."""

    def call() -> None:
        if _libc.fallocate(fd, mode, offset, length):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    return errno_of(call) or [os.fstat(fd).st_size, os.pread(fd, 10, 0).decode()]


def hole(fd: int) -> object:
    os.ftruncate(fd, 1 << 20)
    os.pwrite(fd, b"x", 1 << 19)
    return [os.lseek(fd, 4096, os.SEEK_DATA), os.lseek(fd, 0, os.SEEK_HOLE) < 1 << 19]


def copied(at: str) -> object:
    source, target = os.open(f"{at}/f", os.O_RDONLY), os.open(f"{at}/d/f", os.O_RDWR)
    try:
        return [os.copy_file_range(source, target, 5, 2, 8), os.pread(target, 99, 0).decode()]
    finally:
        os.close(source)
        os.close(target)


def sent(at: str) -> object:
    source, target = os.open(f"{at}/f", os.O_RDONLY), os.open(f"{at}/new", os.O_RDWR | os.O_CREAT)
    try:
        return [os.sendfile(target, source, 3, 99), os.pread(target, 99, 0).decode()]
    finally:
        os.close(source)
        os.close(target)


def linked_by_descriptor(at: str) -> object:
    fd = os.open(at, os.O_TMPFILE | os.O_RDWR, 0o600)
    here = os.open(at, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.write(fd, b"data")
        os.link(f"/proc/self/fd/{fd}", "new", dst_dir_fd=here)
        return Path(at, "new").read_text()
    finally:
        os.close(fd)
        os.close(here)


def locked_by_another(at: str) -> object:
    """fcntl(2) locks: what another process sees of one, before and after it is let go."""

    def seen() -> object:
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            with open(f"{at}/f", "r+b") as file:
                os.write(
                    writing, repr(errno_of(fcntl.lockf, file, fcntl.LOCK_EX | fcntl.LOCK_NB, 2)).encode()
                )
            os._exit(0)
        os.waitpid(pid, 0)
        os.close(writing)
        with open(reading, "rb") as answer:
            return answer.read().decode()

    with open(f"{at}/f", "r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX, 5, 1)
        first = seen()
        fcntl.lockf(file, fcntl.LOCK_UN, 5, 1)
        return [first, seen()]


def mapped(fd: int, **how: int) -> object:
    with mmap.mmap(fd, 10, **how) as area:
        return area[:3].decode()


def private_stores(fd: int) -> object:
    with mmap.mmap(fd, 10, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as area:
        area[0:1] = b"x"
        os.pwrite(fd, b"y", 5)
        return [area[0:1].decode(), os.pread(fd, 10, 0).decode()]


def shared_stores(fd: int) -> object:
    """Stores are read and writes loaded without msync(2), and none is kept past the end of the file."""
    os.ftruncate(fd, 4096)
    with mmap.mmap(fd, 4096) as area:
        os.ftruncate(fd, 10)
        area[0:1] = b"x"
        os.pwrite(fd, b"y", 5)
        found = [os.pread(fd, 10, 0).decode(), area[5:6].decode()]
        area[20:21] = b"z"
        area.flush()
        os.ftruncate(fd, 30)
        return [*found, os.pread(fd, 30, 10).hex()]


def kept_mapping(at: str) -> object:
    """A mapping after close, unlink and rename over."""
    with open(f"{at}/f", "r+b") as file:
        area = mmap.mmap(file.fileno(), 10)
    os.rename(f"{at}/f", f"{at}/d/f")
    area[0:1] = b"x"
    first = Path(at, "d/f").read_text()
    os.unlink(f"{at}/d/f")
    area[1:2] = b"y"
    with area:
        return [first, area[:].decode()]


LINUX: list[tuple[str, Call, object]] = [
    ("linux: fallocate", opened(lambda fd: fallocate(fd, 0, 0, 5000)), [5000, "0123456789"]),
    ("linux: fallocate that keeps the size", opened(lambda fd: fallocate(fd, KEEP_SIZE, 0, 5000)),
     [10, "0123456789"]),
    ("linux: punch a hole", opened(lambda fd: fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 2, 3)),
     [10, "01\0\0\x0056789"]),
    ("linux: fallocate of nothing", opened(lambda fd: fallocate(fd, 0, 0, 0)), "EINVAL"),
    ("linux: posix_fallocate", opened(lambda fd: [os.posix_fallocate(fd, 0, 50), os.fstat(fd).st_size]),
     [None, 50]),
    ("linux: holes are told from data", opened(hole), [1 << 19, True]),
    ("linux: copy_file_range", copied, [5, "0123456723456"]),
    ("linux: sendfile", sent, [7, "3456789"]),
    ("linux: O_TMPFILE, linked", linked_by_descriptor, "data"),
    ("linux: flags of an inode",
     opened(lambda fd: errno_of(fcntl.ioctl, fd, FS_IOC_GETFLAGS, array.array("l", [0]), True)), None),
    ("linux: fcntl lock seen by another process", locked_by_another, ["'EAGAIN'", "None"]),
    ("linux: a device node", lambda at: [os.mknod(f"{at}/null", 0o020600, os.makedev(1, 3)),
                                         os.lstat(f"{at}/null").st_rdev][1], os.makedev(1, 3)),
    ("linux: kind of each entry, listed", lambda at: sorted(
        [entry.name, entry.is_dir(follow_symlinks=False), entry.is_symlink()] for entry in os.scandir(at)
    )[:4], [["d", True, False], ["dirlink", False, True], ["empty", True, False], ["f", False, False]]),
    ("linux: inode numbers, listed and by stat", lambda at: all(
        entry.inode() == os.lstat(entry).st_ino for entry in os.scandir(at)), True),
    ("mmap: shared, of what is open to read and to be stored to",
     opened(lambda fd: errno_of(mapped, fd), os.O_RDONLY), "EACCES"),
    ("mmap: shared, of what is open to write only",
     opened(lambda fd: errno_of(mapped, fd, prot=mmap.PROT_READ), os.O_WRONLY), "EACCES"),
    ("mmap: private, of what is open to read", opened(
        lambda fd: mapped(fd, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE), os.O_RDONLY),
     "012"),
    ("mmap: to be executed", opened(lambda fd: mapped(fd, prot=mmap.PROT_READ | mmap.PROT_EXEC)), "012"),
    ("mmap: a directory", lambda at: errno_of(mapped, os.open(f"{at}/d", os.O_RDONLY), prot=mmap.PROT_READ),
     "ENODEV"),
    ("mmap: private stores", opened(private_stores), ["x", "01234y6789"]),
    ("mmap: shared stores", opened(shared_stores), ["x1234y6789", "y", "00" * 20]),
    ("mmap: kept after rename and unlink", kept_mapping, ["x123456789", "xy23456789"]),
]  # fmt: skip
