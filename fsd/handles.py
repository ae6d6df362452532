# SPDX-License-Identifier: Apache-2.0
"""The open files and directories of clients.

Owns the file handles: the number of each open file or directory.  Must not open or close anything.
"""

from __future__ import annotations

import errno
import itertools
import os
from typing import Generic, TypeVar

from daxfault.fsd.inodes import Inode

T = TypeVar("T")


class OpenFile:
    """An open regular file.  It is one use of `inode` (in_use.py).

    `direct_io`: the kernel caches none of its data.  `append`: it was opened with O_APPEND.  `by_user`: its
    opener was not root.  `noatime`: it was opened with O_NOATIME.  `sync_errors`: those it has received.
    `writes`: it was opened for writing.
    """

    __slots__ = (
        "append", "by_user", "direct_io", "inode", "noatime", "sync_errors", "writes", "written"
    )  # fmt: skip

    def __init__(self, inode: Inode, flags: int, *, direct_io: bool, by_user: bool) -> None:
        """`flags` are those of open(2)."""
        self.inode = inode
        self.direct_io = direct_io
        self.append = bool(flags & os.O_APPEND)
        self.noatime = bool(flags & os.O_NOATIME)
        self.by_user = by_user
        assert inode.file is not None
        self.sync_errors = inode.file.sync_errors()
        self.writes = flags & os.O_ACCMODE != os.O_RDONLY
        self.written = False  # since the last flush


class OpenDirectory:
    """An open directory: a readable descriptor, and the listing that is being read."""

    __slots__ = ("fd", "inode", "names")

    def __init__(self, inode: Inode, fd: int) -> None:
        self.inode = inode
        self.fd = fd
        self.names: list[bytes] | None = None


class Handles(Generic[T]):
    """File handles of one kind.  No number is used twice."""

    def __init__(self) -> None:
        self._next = itertools.count(1).__next__
        self._opened: dict[int, T] = {}

    def add(self, opened: T) -> int:
        """A new handle for `opened`."""
        fh = self._next()
        self._opened[fh] = opened
        return fh

    def get(self, fh: int) -> T:
        """The open file or directory of `fh`; OSError(EBADF) when it is not open."""
        try:
            return self._opened[fh]
        except KeyError:
            raise OSError(errno.EBADF, f"no open handle {fh}") from None

    def remove(self, fh: int) -> T:
        """Remove `fh`, and return its file or directory; OSError(EBADF) when it is not open."""
        opened = self.get(fh)
        del self._opened[fh]
        return opened

    def clear(self) -> list[T]:
        """Remove every handle, and return their files or directories."""
        opened = list(self._opened.values())
        self._opened.clear()
        return opened
