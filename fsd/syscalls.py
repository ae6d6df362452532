# SPDX-License-Identifier: Apache-2.0
"""System calls that Python's os module lacks.

Owns their C signatures and error checks.  No policy.  ctypes.CDLL releases the GIL around each call, so
that another thread of this process can answer a call on our own mount.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Any

RENAME_NOREPLACE = 1  # linux/fs.h
RENAME_EXCHANGE = 2
MNT_DETACH = 2  # linux/mount.h

UTIME_NOW = (1 << 30) - 1  # linux/stat.h
UTIME_OMIT = (1 << 30) - 2

AT_FDCWD = -100  # linux/fcntl.h
CLONE_FILES = 0x400  # linux/sched.h

_FILEID_INO64_GEN = 0x81  # linux/exportfs.h
AT_EMPTY_PATH = 0x1000
AT_STATX_DONT_SYNC = 0x4000

_NS = 1_000_000_000


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


class _FuseHandle(ctypes.Structure):
    """struct file_handle (fcntl.h) with FUSE's contents: nodeid, high word first, and generation."""

    _fields_ = (
        ("handle_bytes", ctypes.c_uint),
        ("handle_type", ctypes.c_int),
        ("words", ctypes.c_uint32 * 3),
    )


_libc = ctypes.CDLL(None, use_errno=True)
_libc.renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
_libc.utimensat.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(_Timespec), ctypes.c_int)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.syncfs.argtypes = (ctypes.c_int,)
_libc.open_by_handle_at.argtypes = (ctypes.c_int, ctypes.POINTER(_FuseHandle), ctypes.c_int)
_libc.statx.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_char_p)

# struct statx (linux/stat.h): its size, and where stx_dev_major and stx_dev_minor are
_STATX_SIZE, _STATX_DEV = 256, 136


def _call(function: Any, *args: Any) -> None:
    if function(*args) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def renameat2(old_fd: int, old: bytes, new_fd: int, new: bytes, flags: int) -> None:
    """renameat2(2): rename `old` in directory `old_fd` to `new` in `new_fd`.

    `flags` is 0, RENAME_NOREPLACE or RENAME_EXCHANGE.  Raises OSError.
    """
    _call(_libc.renameat2, old_fd, old, new_fd, new, flags)


def set_times(path: bytes, atime_ns: int | None, mtime_ns: int | None) -> None:
    """utimensat(2): set the times of `path`, in ns since the epoch; None leaves one alone.

    os.utime cannot leave one of the two alone.  A /proc/self/fd/N path leads to the inode behind N, even
    if that is a symlink.  Raises OSError.
    """
    times = (_Timespec * 2)()
    for spec, ns in zip(times, (atime_ns, mtime_ns), strict=True):
        if ns is None:
            spec.tv_nsec = UTIME_OMIT
        else:
            spec.tv_sec, spec.tv_nsec = divmod(ns, _NS)
    _call(_libc.utimensat, AT_FDCWD, path, times, 0)


def umount(path: bytes, *, detach: bool = False) -> None:
    """umount2(2) of `path`; lazily with `detach`.  Raises OSError, EBUSY among them."""
    _call(_libc.umount2, path, MNT_DETACH if detach else 0)


def syncfs(fd: int) -> None:
    """syncfs(2) of the file system that holds `fd`.  Raises OSError."""
    _call(_libc.syncfs, fd)


def open_fuse_inode(mount_fd: int, nodeid: int) -> int:
    """open_by_handle_at(2): an O_PATH descriptor of an inode that the kernel has in memory.

    `mount_fd` is an ordinary descriptor on the FUSE mount.  The handle is that of fuse_encode_fh() in
    fs/fuse/inode.c; pyfuse3 leaves generations 0.  Raises OSError: ESTALE when the kernel does not have
    the inode, EPERM without CAP_DAC_READ_SEARCH.
    """
    words = (ctypes.c_uint32 * 3)(nodeid >> 32, nodeid & 0xFFFFFFFF, 0)
    handle = _FuseHandle(ctypes.sizeof(words), _FILEID_INO64_GEN, words)
    fd = _libc.open_by_handle_at(mount_fd, ctypes.byref(handle), os.O_PATH | os.O_CLOEXEC)
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(fd)


def unshare_files() -> None:
    """unshare(2) with CLONE_FILES: the calling thread gets its own descriptor table.  Raises OSError."""
    _call(_libc.unshare, CLONE_FILES)


def device(fd: int) -> int:
    """The st_dev of an open file, without a request to its file system, which may be ours, or hang.

    statx(2) with an empty mask; fs/fuse/dir.c, fuse_getattr().  Raises OSError.
    """
    found = ctypes.create_string_buffer(_STATX_SIZE)
    _call(_libc.statx, fd, b"", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, 0, found)
    return os.makedev(*struct.unpack_from("II", found, _STATX_DEV))
