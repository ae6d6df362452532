# SPDX-License-Identifier: Apache-2.0
"""Requests on names: look up, make, link, rename, remove.

Owns what a name in a directory means, and who owns a new file.  Must use names
relative to a directory's descriptor only, never a path, and must follow no
symbolic link: those are the client's to follow.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence

import pyfuse3
from pyfuse3 import EntryAttributes, RequestContext

from daxfault.fsd import syscalls
from daxfault.fsd.replies import Base, checked
from daxfault.fsd.errors import operation
from daxfault.fsd.inodes import Inode, proc_path

PERMISSIONS = 0o7777  # of a mode
RIGHTS = 0o777


class Names(Base):
    """lookup, forget, mknod, mkdir, symlink, link, readlink, rename, unlink, rmdir."""

    @operation
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        """Find `name`; a missing one is ENOENT and not cached, so that it appears as soon as it is made
        behind the mount."""
        parent = self.inodes.get(parent_inode)
        return self._entry(parent, name, self._open_path(parent, name))

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for nodeid, count in inode_list:
            self.inodes.forget(nodeid, count)

    @operation
    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        # readlinkat(2): an empty name reads the link that the descriptor is
        return os.readlink(b"", dir_fd=self.inodes.fd(self.inodes.get(inode)))

    @operation
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        parent = self.inodes.get(parent_inode)
        os.mknod(checked(name), mode & ~ctx.umask, rdev, dir_fd=self.inodes.fd(parent))
        return self._made(parent, name, stat.S_IFMT(mode) or stat.S_IFREG, mode & ~ctx.umask, ctx)

    @operation
    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        parent = self.inodes.get(parent_inode)
        os.mkdir(checked(name), mode & PERMISSIONS & ~ctx.umask, dir_fd=self.inodes.fd(parent))
        return self._made(parent, name, stat.S_IFDIR, mode & ~ctx.umask, ctx)

    @operation
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        parent = self.inodes.get(parent_inode)
        os.symlink(target, checked(name), dir_fd=self.inodes.fd(parent))
        return self._made(parent, name, stat.S_IFLNK, None, ctx)

    @operation
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        source = self.inodes.get(inode)
        parent = self.inodes.get(new_parent_inode)
        # linkat(2), AT_SYMLINK_FOLLOW: the /proc link leads to the inode itself, even to a symlink
        os.link(
            proc_path(self.inodes.fd(source)),
            checked(new_name),
            dst_dir_fd=self.inodes.fd(parent),
            follow_symlinks=True,
        )
        self.changed_by_us(source)
        # by inode, not by the new name, which may have been given to another file already
        st = os.fstat(self.inodes.fd(source))
        return self.attributes(self.inodes.enter(parent, new_name, st, None), st)

    @operation
    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        self._remove(self.inodes.get(parent_inode), checked(name), directory=False)

    @operation
    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        self._remove(self.inodes.get(parent_inode), checked(name), directory=True)

    @operation
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
        table = self.inodes
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
                self.changed_by_us(inode)
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
        inode = self.inodes.child(parent, name)
        if inode is not None:
            self.inodes.hold(inode, parent, name)
        (os.rmdir if directory else os.unlink)(name, dir_fd=self.inodes.fd(parent))
        if inode is not None:
            self.changed_by_us(inode)
            self.inodes.removed(inode, parent, name)

    def _open_path(self, parent: Inode, name: bytes) -> int:
        return self.inodes.open_path(checked(name), self.inodes.fd(parent))

    def _entry(self, parent: Inode, name: bytes, fd: int) -> EntryAttributes:
        """Answer with the file `name`, whose O_PATH descriptor is `fd` (taken over); one lookup more."""
        try:
            st = os.fstat(fd)
        except OSError:
            os.close(fd)
            raise
        inode = self.inodes.enter(parent, name, st, fd)
        try:
            return self.attributes(inode, st)
        except BaseException:
            self.inodes.forget(inode.nodeid, 1)  # the kernel will not hear of it
            raise

    def _made(
        self, parent: Inode, name: bytes, kind: int, mode: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        """Answer with the file of `kind` (S_IFMT) just made at `name`, after giving it to the caller."""
        fd = self._open_path(parent, name)
        if stat.S_IFMT(os.fstat(fd).st_mode) != kind:
            os.close(fd)
            raise OSError(errno.ESTALE, f"replaced behind the mount: {name!r}")
        return self.made(parent, name, fd, mode, ctx)

    def made(
        self, parent: Inode, name: bytes, fd: int, mode: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        """Like `_made`, with an O_PATH descriptor of the new file (taken over).

        A file that cannot be given to the caller is removed again: it would be root's.
        """
        try:
            self.give(fd, parent, mode, ctx)
        except OSError:
            directory = stat.S_ISDIR(os.fstat(fd).st_mode)
            os.close(fd)
            (os.rmdir if directory else os.unlink)(name, dir_fd=self.inodes.fd(parent))
            raise
        return self._entry(parent, name, fd)

    def give(self, fd: int, parent: Inode, mode: int | None, ctx: RequestContext) -> None:
        """Make the new file behind `fd` what it had been if the caller had made it itself.

        The owner is the caller's, when we may give files away (root); in a
        set-group-ID directory the group stays the directory's, and directories
        inherit that bit (inode_init_owner in fs/inode.c).  `mode` is what the
        caller asked for, its umask applied, and None for symlinks; our own
        umask may have taken bits from it.
        """
        st = os.fstat(fd)
        inherits = os.fstat(self.inodes.fd(parent)).st_mode & stat.S_ISGID
        if os.geteuid() == 0:
            gid = st.st_gid if inherits else ctx.gid
            if (st.st_uid, st.st_gid) != (ctx.uid, gid):
                os.chown(proc_path(fd), ctx.uid, gid)  # clears set-ID bits: before chmod
                st = os.fstat(fd)
        if mode is None:
            return
        wanted = mode & PERMISSIONS
        if inherits and stat.S_ISDIR(st.st_mode):
            wanted |= stat.S_ISGID
        missing = wanted & ~st.st_mode
        if missing & RIGHTS and self._has_default_acl(parent):
            missing &= ~RIGHTS  # the ACL's doing, not our umask's (posix_acl_create in fs/posix_acl.c)
        if missing:
            os.chmod(proc_path(fd), stat.S_IMODE(st.st_mode) | missing)

    def _has_default_acl(self, directory: Inode) -> bool:
        try:
            return bool(os.getxattr(proc_path(self.inodes.fd(directory)), "system.posix_acl_default"))
        except OSError as exc:
            if exc.errno in (errno.ENODATA, errno.EOPNOTSUPP):
                return False
            raise
