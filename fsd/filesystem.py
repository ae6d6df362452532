# SPDX-License-Identifier: Apache-2.0
"""The file system of one mount, composed of its parts.

Owns the order in which the parts are made and closed, and passes requests from pyfuse3 to their
handlers; failures become errnos here.  Must not do the work of a part.

    threads        worker threads                  in_use       a native.File for each inode in use
    inodes         the inode table                 changes      noticing changes behind the mount
    watch          inotify                         pins         files that the host keeps in use
    invalidation   the kernel's caches             replies      attributes for the kernel
    sizes          the size that the kernel uses   entries      names and new files

    names, directories, files, attributes          the requests
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Sequence

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, ReaddirToken, RequestContext, SetattrFields, StatvfsData

from daxfault.fsd.attributes import Attributes
from daxfault.fsd.changes import Changes
from daxfault.fsd.directories import Directories
from daxfault.fsd.entries import Entries
from daxfault.fsd.errors import MountError, operation
from daxfault.fsd.files import Buffer, Files
from daxfault.fsd.in_use import FilesInUse
from daxfault.fsd.inodes import Inodes, descriptor_bound
from daxfault.fsd.invalidation import Invalidation
from daxfault.fsd.locality import Locality
from daxfault.fsd.names import Names
from daxfault.fsd.pins import Pinned, Pins
from daxfault.fsd.replies import Replies
from daxfault.fsd.sizes import Sizes
from daxfault.fsd.threads import Threads
from daxfault.fsd.watch import Watch


class Filesystem(pyfuse3.Operations):
    """Passes a backing directory through; file data goes through one native.File for each inode.

    All methods except `close` must be called in the trio thread that serves the mount.  It can be mounted
    once, by `mounted` (mount.py), which closes it; otherwise its creator must close it.
    """

    # "." and ".." are refused as names, so file handles exported over NFS cannot be decoded
    supports_dot_lookup = False
    # with the kernel's write-back cache, sizes go stale after changes behind the mount
    enable_writeback_cache = False

    def __init__(
        self,
        backing: str | os.PathLike[str],
        *,
        attr_timeout: float = 1.0,
        entry_timeout: float = 1.0,
        max_descriptors: int | None = None,
        xattr: bool = True,
        direct_io: bool = False,
    ) -> None:
        """Serve the directory `backing`.

        `attr_timeout` and `entry_timeout`, in seconds, are how long the kernel may cache attributes and
        names.  `max_descriptors` bounds the O_PATH descriptors (default: half the hard
        RLIMIT_NOFILE, 65536 at most).  `xattr` serves extended attributes; without them the kernel saves
        one GETXATTR per write (attributes.py), but a backing with POSIX ACLs must not be served.  With
        `direct_io` the kernel caches no data: read(2) sees what guests have stored whenever the file was
        opened, and mmap(2) with MAP_SHARED is for guests only (ENODEV for others).

        Raises MountError when `backing` cannot be opened as a directory.
        """
        super().__init__()
        self.backing = os.path.realpath(backing)
        # Modes and ACLs are enforced by the kernel (default_permissions).  With ACLs in the backing and
        # none served, the kernel would take an ACL's mask for the rights of the owning group.
        self.enable_acl = xattr
        self.inodes = _table(self.backing, os.fspath(backing), max_descriptors)
        self.locality = Locality(self.inodes)
        self.threads = Threads()
        self.watch = Watch()
        self.sizes = Sizes()
        self.invalidation = Invalidation(self.threads, self.sizes)
        self.in_use = FilesInUse(self.inodes, self.watch, self.threads)
        self.changes = Changes(self.in_use, self.watch, self.invalidation, self.threads)
        self.pins = Pins(self.inodes, self.in_use, self.threads)
        self.replies = Replies(attr_timeout, entry_timeout)
        entries = Entries(self.inodes, self.replies)
        self.names = Names(self.inodes, entries, self.replies)
        self.directories = Directories(self.inodes, self.replies, self.threads)
        self.files = Files(self.inodes, entries, self.in_use, self.changes, self.invalidation, self.threads,
                           direct_io=direct_io)  # fmt: skip
        self.attributes = Attributes(self.inodes, self.replies, self.in_use, self.changes,
                                     xattr=xattr, direct_io=direct_io)  # fmt: skip

    # ---- for the host

    @property
    def device(self) -> int | None:
        """The mount's st_dev, as its clients see it; None until it is mounted."""
        return self.pins.device

    async def pin(self, fd: int) -> Pinned:
        """Keep the file behind `fd` in use until it is released; see Pins.pin."""
        return await self.pins.pin(fd)

    def mapping_changed(self, inode: int) -> None:
        """Drop the kernel's cache of the file `inode` (a nodeid): a guest began or stopped mapping it for
        writing."""
        self.invalidation.invalidate(inode)

    # ---- for mount.py

    async def background(
        self, path: str, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve changes behind the mount, which is at `path`, until cancelled."""
        self.sizes.start(path)
        async with trio.open_nursery() as nursery:
            await nursery.start(self.invalidation.run)
            nursery.start_soon(self.changes.run)
            task_status.started()

    def close(self) -> None:
        """Close everything that clients left open.  Safe to call twice."""
        self.in_use.close()
        self.files.close()
        self.directories.close()
        self.watch.close()
        self.sizes.close()
        self.inodes.close()

    # ---- requests.  Each returns its handler's coroutine: `operation` awaits it.

    @operation
    def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> Awaitable[EntryAttributes]:
        return self.names.lookup(parent_inode, name, ctx)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        self.names.forget(inode_list)

    @operation
    def readlink(self, inode: int, ctx: RequestContext) -> Awaitable[bytes]:
        return self.names.readlink(inode, ctx)

    @operation
    def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> Awaitable[EntryAttributes]:
        return self.names.mknod(parent_inode, name, mode, rdev, ctx)

    @operation
    def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext
    ) -> Awaitable[EntryAttributes]:
        return self.names.mkdir(parent_inode, name, mode, ctx)

    @operation
    def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext
    ) -> Awaitable[EntryAttributes]:
        return self.names.symlink(parent_inode, name, target, ctx)

    @operation
    def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext
    ) -> Awaitable[EntryAttributes]:
        return self.names.link(inode, new_parent_inode, new_name, ctx)

    @operation
    def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> Awaitable[None]:
        return self.names.unlink(parent_inode, name, ctx)

    @operation
    def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> Awaitable[None]:
        return self.names.rmdir(parent_inode, name, ctx)

    @operation
    def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> Awaitable[None]:
        return self.names.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags, ctx)

    @operation
    def opendir(self, inode: int, ctx: RequestContext) -> Awaitable[int]:
        return self.directories.opendir(inode, ctx)

    @operation
    def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> Awaitable[None]:
        return self.directories.readdir(fh, start_id, token)

    @operation
    def fsyncdir(self, fh: int, datasync: bool) -> Awaitable[None]:
        return self.directories.fsyncdir(fh, datasync)

    @operation
    def releasedir(self, fh: int) -> Awaitable[None]:
        return self.directories.releasedir(fh)

    @operation
    def open(self, inode: int, flags: int, ctx: RequestContext) -> Awaitable[FileInfo]:
        return self.files.open(inode, flags, ctx)

    @operation
    def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> Awaitable[tuple[FileInfo, EntryAttributes]]:
        return self.files.create(parent_inode, name, mode, flags, ctx)

    @operation
    def read(self, fh: int, off: int, size: int) -> Awaitable[Buffer]:  # type: ignore[override]
        return self.files.read(fh, off, size)

    @operation
    def write(self, fh: int, off: int, buf: bytes) -> Awaitable[int]:
        return self.files.write(fh, off, buf)

    @operation
    def flush(self, fh: int) -> Awaitable[None]:
        return self.files.flush(fh)

    @operation
    def fsync(self, fh: int, datasync: bool) -> Awaitable[None]:
        return self.files.fsync(fh, datasync)

    @operation
    def release(self, fh: int) -> Awaitable[None]:
        return self.files.release(fh)

    @operation
    def getattr(self, inode: int, ctx: RequestContext) -> Awaitable[EntryAttributes]:
        return self.attributes.getattr(inode, ctx)

    @operation
    def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> Awaitable[EntryAttributes]:
        return self.attributes.setattr(inode, attr, fields, fh, ctx)

    @operation
    def statfs(self, ctx: RequestContext) -> Awaitable[StatvfsData]:
        return self.attributes.statfs(ctx)

    @operation
    def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> Awaitable[bytes]:
        return self.attributes.getxattr(inode, name, ctx)

    @operation
    def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> Awaitable[None]:
        return self.attributes.setxattr(inode, name, value, ctx)

    @operation
    def listxattr(self, inode: int, ctx: RequestContext) -> Awaitable[list[bytes]]:
        return self.attributes.listxattr(inode, ctx)

    @operation
    def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> Awaitable[None]:
        return self.attributes.removexattr(inode, name, ctx)


def _table(backing: str, given: str, max_descriptors: int | None) -> Inodes:
    """The inode table whose root is `backing`; messages name it as it was `given`."""
    bound = descriptor_bound()
    try:
        root = os.open(backing, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError as exc:
        raise MountError(f"backing directory {given}: does not exist; create it or name another") from exc
    except NotADirectoryError as exc:
        raise MountError(
            f"backing directory {given}: is not a directory; name the directory to be served"
        ) from exc
    except OSError as exc:
        raise MountError(f"backing directory {given}: cannot be opened: {exc.strerror}") from exc
    try:
        return Inodes(root, bound if max_descriptors is None else max_descriptors)
    except BaseException:
        os.close(root)
        raise
