# SPDX-License-Identifier: Apache-2.0
"""Requests on names: look up, make, link, rename, remove.

Owns changes of names.  Must use only names relative to a directory's descriptor, never a path, and must
not follow symbolic links: the client follows them.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence

import pyfuse3
from pyfuse3 import EntryAttributes, RequestContext

from daxfault.fsd import syscalls
from daxfault.fsd.changes import note_own_change
from daxfault.fsd.entries import PERMISSIONS, Entries, checked
from daxfault.fsd.inodes import Inode, Inodes, proc_path
from daxfault.fsd.replies import Replies


class Names:
    """lookup, forget, mknod, mkdir, symlink, link, readlink, rename, unlink, rmdir."""

    def __init__(self, inodes: Inodes, entries: Entries, replies: Replies) -> None:
        self._inodes = inodes
        self._entries = entries
        self._replies = replies

    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        """Find `name`.  A missing name is ENOENT and not cached, so that a file made behind the mount
        appears at once."""
        return self._entries.look_up(self._inodes.get(parent_inode), name)

    def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Subtract lookups, given as (inode, count).  Never raises."""
        for nodeid, count in inode_list:
            self._inodes.forget(nodeid, count)

    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        # readlinkat(2): with an empty name it reads the link behind the descriptor
        return os.readlink(b"", dir_fd=self._inodes.fd(self._inodes.get(inode)))

    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        parent = self._inodes.get(parent_inode)
        os.mknod(checked(name), mode & ~ctx.umask, rdev, dir_fd=self._inodes.fd(parent))
        return self._entries.made(parent, name, stat.S_IFMT(mode) or stat.S_IFREG, mode & ~ctx.umask, ctx)

    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        parent = self._inodes.get(parent_inode)
        os.mkdir(checked(name), mode & PERMISSIONS & ~ctx.umask, dir_fd=self._inodes.fd(parent))
        return self._entries.made(parent, name, stat.S_IFDIR, mode & ~ctx.umask, ctx)

    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        parent = self._inodes.get(parent_inode)
        os.symlink(target, checked(name), dir_fd=self._inodes.fd(parent))
        return self._entries.made(parent, name, stat.S_IFLNK, None, ctx)

    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        source = self._inodes.get(inode)
        parent = self._inodes.get(new_parent_inode)
        # linkat(2), AT_SYMLINK_FOLLOW: the /proc link leads to the inode itself, even to a symlink
        os.link(
            proc_path(self._inodes.fd(source)),
            checked(new_name),
            dst_dir_fd=self._inodes.fd(parent),
            follow_symlinks=True,
        )
        note_own_change(source)
        # by inode, because the new name may belong to another file already
        st = os.fstat(self._inodes.fd(source))
        return self._replies.attributes(self._inodes.enter(parent, new_name, st, None), st)

    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        self._remove(self._inodes.get(parent_inode), checked(name), directory=False)

    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        self._remove(self._inodes.get(parent_inode), checked(name), directory=True)

    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        """rename(2), with RENAME_NOREPLACE or RENAME_EXCHANGE; other flags are EINVAL."""
        if flags not in (0, pyfuse3.RENAME_NOREPLACE, pyfuse3.RENAME_EXCHANGE):
            raise OSError(errno.EINVAL, f"rename flags {flags:#x}")
        table = self._inodes
        old_parent, new_parent = table.get(parent_inode_old), table.get(parent_inode_new)
        moved = table.child(old_parent, checked(name_old))
        try:
            replaced = table.child(new_parent, checked(name_new))
        except FileNotFoundError:
            replaced = None
        if replaced is not None and not flags:
            table.hold(replaced, new_parent, name_new)
        syscalls.renameat2(table.fd(old_parent), name_old, table.fd(new_parent), name_new, flags)
        for inode in (moved, replaced):
            if inode is not None:
                note_own_change(inode)
        if moved is replaced:
            return  # two names of one file: rename(2) leaves both
        if replaced is not None:
            if flags == pyfuse3.RENAME_EXCHANGE:
                table.renamed(replaced, old_parent, name_old)
            else:
                table.removed(replaced, new_parent, name_new)
        if moved is not None:
            table.renamed(moved, new_parent, name_new)

    def _remove(self, parent: Inode, name: bytes, *, directory: bool) -> None:
        inode = self._inodes.child(parent, name)
        if inode is not None:
            self._inodes.hold(inode, parent, name)
        (os.rmdir if directory else os.unlink)(name, dir_fd=self._inodes.fd(parent))
        if inode is not None:
            note_own_change(inode)
            self._inodes.removed(inode, parent, name)
