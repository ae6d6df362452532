# SPDX-License-Identifier: Apache-2.0
"""Requests on open directories.

Owns the order and the offsets of entries.  Must not change any name.

A listing is a snapshot taken when reading starts at offset 0 (open, rewinddir).  The offset of an entry
is its index in the snapshot, so it stays valid while entries are added and removed, and seekdir(3) works
within one open directory, as POSIX requires.  Removed entries are left out; new ones appear after
rewinddir(3).
"""

from __future__ import annotations

import os

import pyfuse3
from pyfuse3 import EntryAttributes, ReaddirToken, RequestContext

from daxfault.fsd.handles import Handles, OpenDirectory
from daxfault.fsd.inodes import Inodes, proc_path
from daxfault.fsd.replies import Replies
from daxfault.fsd.threads import Threads


class Directories:
    """opendir, readdir (with attributes), fsyncdir, releasedir."""

    def __init__(self, inodes: Inodes, replies: Replies, threads: Threads) -> None:
        self._inodes = inodes
        self._replies = replies
        self._threads = threads
        self._handles: Handles[OpenDirectory] = Handles()

    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        node = self._inodes.get(inode)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        # "." in an O_PATH directory is that directory: opening it gives a readable descriptor
        fd = self._inodes.open_file(b".", flags, dir_fd=self._inodes.fd(node))
        return self._handles.add(OpenDirectory(node, fd))

    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        opened = self._handles.get(fh)
        if start_id == 0 or opened.names is None:
            opened.names = await self._threads.storage(_list, opened.fd)
        names = opened.names
        for place in range(start_id, len(names)):
            if not self._reply(opened, names[place], token, place + 1):
                return

    def _reply(self, opened: OpenDirectory, name: bytes, token: ReaddirToken, next_id: int) -> bool:
        """Put one entry into the reply; False when it is full.

        readdirplus counts a lookup for every entry but "." and "..", and none
        for the entry that did not fit (pyfuse3.Operations.readdir).
        """
        if name in (b".", b".."):
            entry = EntryAttributes()
            node = opened.inode if name == b"." else opened.inode.parent
            entry.st_ino = (node or opened.inode).nodeid
            entry.st_mode = opened.inode.kind
            return pyfuse3.readdir_reply(token, name, entry, next_id)
        try:
            st = os.stat(name, dir_fd=opened.fd, follow_symlinks=False)
        except FileNotFoundError:
            return True  # gone since the snapshot
        # no descriptor yet: a listing must not open every file it passes
        inode = self._inodes.enter(opened.inode, name, st, None)
        fitted = False
        try:
            fitted = pyfuse3.readdir_reply(token, name, self._replies.attributes(inode, st), next_id)
        finally:
            if not fitted:
                self._inodes.forget(inode.nodeid, 1)
        return fitted

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._threads.storage(os.fdatasync if datasync else os.fsync, self._handles.get(fh).fd)

    async def releasedir(self, fh: int) -> None:
        os.close(self._handles.remove(fh).fd)

    def close(self) -> None:
        """Close every open directory; a second call does nothing."""
        for opened in self._handles.clear():
            os.close(opened.fd)


def _list(fd: int) -> list[bytes]:
    return [b".", b"..", *os.listdir(proc_path(fd))]
