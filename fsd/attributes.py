# SPDX-License-Identifier: Apache-2.0
"""Requests on attributes: stat, change, extended attributes, statfs.

Owns the order in which the changes of a request are applied.  Must not change sizes: in_use.py does,
through the inode's native.File.

Extended attributes have a cost: before every write the kernel requests security.capability
(file_remove_privs in mm/filemap.c), which it must not cache.  They are served because programs that
copy trees need them; Filesystem(xattr=False) answers ENOSYS once, and the kernel does not request them
again.  There is no access handler: with default_permissions the kernel checks.
"""

from __future__ import annotations

import errno
import os

import pyfuse3
from pyfuse3 import EntryAttributes, RequestContext, SetattrFields, StatvfsData

from daxfault.fsd import syscalls
from daxfault.fsd.changes import Changes, note_own_change
from daxfault.fsd.entries import PERMISSIONS
from daxfault.fsd.in_use import FilesInUse
from daxfault.fsd.inodes import Inodes, proc_path
from daxfault.fsd.replies import Replies


class Attributes:
    """getattr, setattr, statfs, {get,set,list,remove}xattr."""

    def __init__(
        self,
        inodes: Inodes,
        replies: Replies,
        in_use: FilesInUse,
        changes: Changes,
        *,
        xattr: bool,
        direct_io: bool,
    ) -> None:
        self._inodes = inodes
        self._replies = replies
        self._in_use = in_use
        self._changes = changes
        self._xattr = xattr
        self._direct_io = direct_io

    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        node = self._inodes.get(inode)
        if self._direct_io and node.file is not None:
            await self._changes.recheck(node)  # a program that reads a new size may rely on it in a mapping
        return self._replies.attributes(node, os.fstat(self._inodes.fd(node)))

    async def setattr(
        self,
        inode: int,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: int | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        """Apply size, owner, mode and times, in this order, and answer with the result.

        Size first: it is the most likely to fail, and then nothing has changed.  Mode after owner:
        chown(2) clears the set-ID bits.  Times last: the others set them.  Works by inode, with or
        without an open file; on a symlink it changes the link.  With nothing to change it is a chown(2)
        to the same owner, which marks st_ctime for update; if that clears set-ID bits, the kernel sends
        the new mode too (fuse_setattr in fs/fuse/dir.c).
        """
        node = self._inodes.get(inode)
        owner = fields.update_uid or fields.update_gid
        times = fields.update_atime or fields.update_mtime
        nothing = not (fields.update_size or fields.update_mode or owner or times)
        if fields.update_size:
            await self._in_use.truncate(node, attr.st_size)
        # a descriptor is valid until the next call on the table: each system call asks for its own
        if owner or nothing:
            uid = attr.st_uid if fields.update_uid else -1
            gid = attr.st_gid if fields.update_gid else -1
            os.chown(proc_path(self._inodes.fd(node)), uid, gid)
        if fields.update_mode:
            os.chmod(proc_path(self._inodes.fd(node)), attr.st_mode & PERMISSIONS)
        if times:
            syscalls.set_times(
                proc_path(self._inodes.fd(node)),
                attr.st_atime_ns if fields.update_atime else None,
                attr.st_mtime_ns if fields.update_mtime else None,
            )
        note_own_change(node)
        st = os.fstat(self._inodes.fd(node))
        if fields.update_size:
            node.size_settled(st.st_size)
        return self._replies.attributes(node, st)

    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        """The backing file system's statvfs(3), including its limit on the length of names."""
        found = os.fstatvfs(self._inodes.fd(self._inodes.root))
        reply = StatvfsData()
        for field in ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail",
                      "f_files", "f_ffree", "f_favail", "f_namemax"):  # fmt: skip
            setattr(reply, field, getattr(found, field))
        return reply

    def read_only(self) -> bool:
        """Whether the backing file system is mounted read-only."""
        return bool(os.fstatvfs(self._inodes.fd(self._inodes.root)).f_flag & os.ST_RDONLY)

    # The /proc path reaches the inode itself, so on a symlink these are lgetxattr(2) and so on.
    # XATTR_CREATE and XATTR_REPLACE are pyfuse3's: it asks getxattr first.

    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        return os.getxattr(self._xattr_path(inode), name)

    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        os.setxattr(self._xattr_path(inode), name, value)
        note_own_change(self._inodes.get(inode))

    async def listxattr(self, inode: int, ctx: RequestContext) -> list[bytes]:
        return [os.fsencode(name) for name in os.listxattr(self._xattr_path(inode))]

    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        os.removexattr(self._xattr_path(inode), name)
        note_own_change(self._inodes.get(inode))

    def _xattr_path(self, inode: int) -> bytes:
        if not self._xattr:
            raise pyfuse3.FUSEError(errno.ENOSYS)  # the kernel does not send this request again
        return proc_path(self._inodes.fd(self._inodes.get(inode)))
