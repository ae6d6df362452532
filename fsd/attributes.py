# SPDX-License-Identifier: Apache-2.0
"""Requests on attributes: stat, change, extended attributes, statfs.

Owns the order in which one request's changes are applied.  Must not change a
size by itself: that is files.py's, through the file's native.File.

Extended attributes cost something: before every write the kernel asks for
security.capability (file_remove_privs in mm/filemap.c), which it must not cache.
They are served nevertheless, because programs that copy trees need them;
Filesystem(xattr=False) answers ENOSYS once, after which the kernel does not ask
again.  There is no access handler: with default_permissions the kernel checks.
"""

from __future__ import annotations

import errno
import os

import pyfuse3
from pyfuse3 import EntryAttributes, RequestContext, SetattrFields, StatvfsData

from daxfault.fsd import syscalls
from daxfault.fsd.errors import operation
from daxfault.fsd.files import Files
from daxfault.fsd.inodes import proc_path
from daxfault.fsd.names import PERMISSIONS


class Attributes(Files):
    """getattr, setattr, statfs, {get,set,list,remove}xattr."""

    @operation
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        node = self.inodes.get(inode)
        if self.direct_io and node.file is not None:
            self.recheck(node)  # a program that is told a new size may rely on it in a mapping
        return self.attributes(node, os.fstat(self.inodes.fd(node)))

    @operation
    async def setattr(
        self,
        inode: int,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: int | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        """Apply size, owner, mode and times, in this order, and answer with the result.

        Size first: it alone is likely to fail, and then nothing has changed.
        Mode after owner: chown(2) clears the set-ID bits.  Times last: the
        others set them.  Works by inode, with or without an open file, and on
        a symlink it changes the link.  With nothing to change it is a chown(2) to
        nobody new, which marks st_ctime for update; the kernel asks for the mode
        besides where that call clears set-ID bits (fuse_setattr in fs/fuse/dir.c).
        """
        node = self.inodes.get(inode)
        owner = fields.update_uid or fields.update_gid
        times = fields.update_atime or fields.update_mtime
        nothing = not (fields.update_size or fields.update_mode or owner or times)
        if fields.update_size:
            await self.truncate(node, attr.st_size)
        # each call by its own look at the table: a descriptor is good until the next
        if owner or nothing:
            uid = attr.st_uid if fields.update_uid else -1
            gid = attr.st_gid if fields.update_gid else -1
            os.chown(proc_path(self.inodes.fd(node)), uid, gid)
        if fields.update_mode:
            os.chmod(proc_path(self.inodes.fd(node)), attr.st_mode & PERMISSIONS)
        if times:
            syscalls.set_times(
                proc_path(self.inodes.fd(node)),
                attr.st_atime_ns if fields.update_atime else None,
                attr.st_mtime_ns if fields.update_mtime else None,
            )
        self.changed_by_us(node)
        return self.attributes(node, os.fstat(self.inodes.fd(node)))

    @operation
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        """The backing file system's figures, its limit on the length of a name among them."""
        found = os.fstatvfs(self.inodes.fd(self.inodes.root))
        reply = StatvfsData()
        for field in ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail",
                      "f_files", "f_ffree", "f_favail", "f_namemax"):  # fmt: skip
            setattr(reply, field, getattr(found, field))
        return reply

    def read_only(self) -> bool:
        """Whether the backing file system is mounted read-only."""
        return bool(os.fstatvfs(self.inodes.fd(self.inodes.root)).f_flag & os.ST_RDONLY)

    # The /proc path reaches the inode itself, so on a symlink these are lgetxattr(2) and so on.
    # XATTR_CREATE and XATTR_REPLACE are pyfuse3's: it asks getxattr first.

    @operation
    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        return os.getxattr(self._xattr_path(inode), name)

    @operation
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        os.setxattr(self._xattr_path(inode), name, value)
        self.changed_by_us(self.inodes.get(inode))

    @operation
    async def listxattr(self, inode: int, ctx: RequestContext) -> list[bytes]:
        return [os.fsencode(name) for name in os.listxattr(self._xattr_path(inode))]

    @operation
    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        os.removexattr(self._xattr_path(inode), name)
        self.changed_by_us(self.inodes.get(inode))

    def _xattr_path(self, inode: int) -> bytes:
        if not self.xattr:
            raise pyfuse3.FUSEError(errno.ENOSYS)  # meant as what the kernel takes it for
        return proc_path(self.inodes.fd(self.inodes.get(inode)))
