# SPDX-License-Identifier: Apache-2.0
"""Directory entries: finding one, and entering a new file into the table.

Owns who owns a new file, and with which mode.  Must use names relative to a directory's descriptor
only, never a path, and must follow no symbolic link: those are the client's to follow.
"""

from __future__ import annotations

import errno
import os
import stat

from pyfuse3 import EntryAttributes, RequestContext

from daxfault.fsd.inodes import Inode, Inodes, proc_path
from daxfault.fsd.replies import Replies

PERMISSIONS = 0o7777  # of a mode
RIGHTS = 0o777


def checked(name: bytes) -> bytes:
    """`name` if it can only mean an entry of the directory it is used in; OSError(EINVAL) otherwise.

    The kernel sends no other (fs/namei.c resolves "." and ".." itself), but nothing may depend on that:
    such a name would leave the backing directory.
    """
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
        raise OSError(errno.EINVAL, f"not a file name: {name!r}")
    return name


class Entries:
    """The entries of one mount's directories."""

    def __init__(self, inodes: Inodes, replies: Replies) -> None:
        self._inodes = inodes
        self._replies = replies

    def look_up(self, parent: Inode, name: bytes) -> EntryAttributes:
        """The reply for the file `name` in `parent`; counts one lookup."""
        return self._enter(parent, name, self._inodes.open_path(checked(name), self._inodes.fd(parent)))

    def _enter(self, parent: Inode, name: bytes, fd: int) -> EntryAttributes:
        """The reply for the file `name`, whose O_PATH descriptor is `fd` (taken over); counts one lookup."""
        try:
            st = os.fstat(fd)
        except OSError:
            os.close(fd)
            raise
        inode = self._inodes.enter(parent, name, st, fd)
        try:
            return self._replies.attributes(inode, st)
        except BaseException:
            self._inodes.forget(inode.nodeid, 1)  # the kernel will not receive the reply
            raise

    def made(
        self, parent: Inode, name: bytes, kind: int, mode: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        """Give the file of `kind` (S_IFMT) just made at `name` to the caller; -> the reply for it."""
        fd = self._inodes.open_path(checked(name), self._inodes.fd(parent))
        if stat.S_IFMT(os.fstat(fd).st_mode) != kind:
            os.close(fd)
            raise OSError(errno.ESTALE, f"replaced behind the mount: {name!r}")
        return self.made_at(parent, name, fd, mode, ctx)

    def made_at(
        self, parent: Inode, name: bytes, fd: int, mode: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        """Like `made`, with an O_PATH descriptor of the new file (taken over).

        A file that cannot be given to the caller is removed again: it would be root's.
        """
        try:
            self._give(fd, parent, mode, ctx)
        except OSError:
            directory = stat.S_ISDIR(os.fstat(fd).st_mode)
            os.close(fd)
            (os.rmdir if directory else os.unlink)(name, dir_fd=self._inodes.fd(parent))
            raise
        return self._enter(parent, name, fd)

    def _give(self, fd: int, parent: Inode, mode: int | None, ctx: RequestContext) -> None:
        """Make the new file behind `fd` what it would be if the caller had made it.

        The owner is the caller's, when we may give files away (root); in a set-group-ID directory the
        group stays the directory's, and directories inherit that bit (inode_init_owner in fs/inode.c).
        `mode` is what the caller asked for, its umask applied, and None for symlinks; our own umask may
        have cleared bits of it.
        """
        st = os.fstat(fd)
        inherits = os.fstat(self._inodes.fd(parent)).st_mode & stat.S_ISGID
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
            missing &= ~RIGHTS  # cleared by the ACL, not by our umask (posix_acl_create in fs/posix_acl.c)
        if missing:
            os.chmod(proc_path(fd), stat.S_IMODE(st.st_mode) | missing)

    def _has_default_acl(self, directory: Inode) -> bool:
        try:
            return bool(os.getxattr(proc_path(self._inodes.fd(directory)), "system.posix_acl_default"))
        except OSError as exc:
            if exc.errno in (errno.ENODATA, errno.EOPNOTSUPP):
                return False
            raise
