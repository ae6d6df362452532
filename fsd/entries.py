# SPDX-License-Identifier: Apache-2.0
"""Directory entries: finding one, and entering a new file into the table.

Owns the owner and mode of a new file.  Must use only names relative to a directory's descriptor, never a
path, and must not follow symbolic links: the client follows them.
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
    """`name` if it can only mean an entry of its directory; otherwise OSError(EINVAL).

    The kernel sends no other names (fs/namei.c resolves "." and ".." itself), but they would lead out of
    the backing directory, so they are checked.
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
        """Make the caller the owner of the file of `kind` (S_IFMT) just made at `name`; -> the reply."""
        fd = self._inodes.open_path(checked(name), self._inodes.fd(parent))
        if stat.S_IFMT(os.fstat(fd).st_mode) != kind:
            os.close(fd)
            raise OSError(errno.ESTALE, f"replaced behind the mount: {name!r}")
        return self.made_at(parent, name, fd, mode, ctx)

    def made_at(
        self, parent: Inode, name: bytes, fd: int, mode: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        """Like `made`, with an O_PATH descriptor of the new file (taken over).

        A file whose owner cannot be set is removed again, because root would own it.
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
        """Set owner and mode of the new file behind `fd` as if the caller had made it.

        As root, set the owner to the caller; in a set-group-ID directory the group is the directory's,
        and directories inherit that bit (inode_init_owner in fs/inode.c).  `mode` is the caller's, with
        its umask applied, and None for symlinks; our own umask may have cleared bits of it.
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
