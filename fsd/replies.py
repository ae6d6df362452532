# SPDX-License-Identifier: Apache-2.0
"""What every request handler of one mount shares.

Owns the state of a mount: its inode table, its open handles, its threads, and
how a backing file's stat becomes an attribute reply.  Must not handle any
request itself: names.py, directories.py, attributes.py and files.py do.

What runs where.  A call on names or attributes is made at once, in the trio
thread: it costs less than a switch to another thread would, and it makes each of
these requests one atomic step on the inode table.  What waits for storage (a
read that misses the page cache, a write when storage is slow, truncate, fsync,
listing a directory) runs in a worker thread, so that one slow file does not
stop the mount.  A backing file system that does not even answer stat(2) does.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import pyfuse3
import trio

from daxfault.fsd.errors import MountError
from daxfault.fsd.inodes import Inode, Inodes, descriptor_bound

P = ParamSpec("P")
T = TypeVar("T")

STORAGE_THREADS = 32
KERNEL_THREADS = 8


class Handle:
    """An open regular file, as one client sees it.  It is one use of `inode` (in_use.py)."""

    __slots__ = ("direct_io", "inode", "written")

    def __init__(self, inode: Inode, direct_io: bool) -> None:
        self.inode = inode
        self.direct_io = direct_io
        self.written = False  # since the last flush


class OpenDirectory:
    """An open directory, as one client sees it: a readable descriptor, and the listing being read."""

    __slots__ = ("fd", "inode", "names")

    def __init__(self, inode: Inode, fd: int) -> None:
        self.inode = inode
        self.fd = fd
        self.names: list[bytes] | None = None


class Base(pyfuse3.Operations):
    """State of one mount."""

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

        `attr_timeout` and `entry_timeout`, in seconds, are how long the kernel
        may believe attributes and names without asking.  `max_descriptors`
        bounds the O_PATH descriptors (default: half the hard RLIMIT_NOFILE,
        65536 at most).  `xattr` serves extended attributes; without them the
        kernel saves one GETXATTR a write (see attributes.py), but must not be
        trusted with a backing that has POSIX ACLs.  With `direct_io` the kernel
        caches no data: read(2) sees what guests have stored whenever the file was
        opened, and mmap(2) with MAP_SHARED is for guests only (ENODEV for others).

        Raises MountError when `backing` cannot be opened as a directory.
        """
        super().__init__()
        self.backing = os.path.realpath(backing)
        self.attr_timeout = attr_timeout
        self.entry_timeout = entry_timeout
        self.xattr = xattr
        self.direct_io = direct_io
        # Modes and ACLs are enforced by the kernel (default_permissions).  With ACLs in the backing and
        # none to see, the kernel would take an ACL's mask for the rights of the owning group.
        self.enable_acl = xattr
        # the mount's st_dev as its clients see it, set when it is mounted
        self.device: int | None = None
        self.mount_id: int | None = None  # as in /proc/self/mountinfo
        bound = descriptor_bound()
        try:
            root = os.open(self.backing, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as exc:
            raise MountError(_refusal(backing, exc)) from exc
        try:
            self.inodes = Inodes(root, bound if max_descriptors is None else max_descriptors)
        except BaseException:
            os.close(root)
            raise
        self.new_fh = itertools.count(1).__next__
        self.handles: dict[int, Handle] = {}
        self.directories: dict[int, OpenDirectory] = {}
        self.writes_begun = self.writes_ended = 0  # WRITE requests, see mount.py
        self.storage_slow_until = 0.0  # time.monotonic(), see Files.write
        # Two pools.  A call that itself waits for our answers (cache invalidation waits for reads in
        # flight) must never take the thread that such an answer needs.
        self._storage = trio.CapacityLimiter(STORAGE_THREADS)
        self._kernel = trio.CapacityLimiter(KERNEL_THREADS)

    async def in_thread(self, call: Callable[..., T], *args: object) -> T:
        """Run `call(*args)`, which waits for storage, in a worker thread."""
        return await trio.to_thread.run_sync(call, *args, limiter=self._storage)

    async def ask_kernel(self, call: Callable[..., T], *args: object) -> T:
        """Run `call(*args)`, which may wait for an answer of this very mount, in a worker thread.

        When cancelled, the thread is left behind: it ends when the mount does.
        """
        return await trio.to_thread.run_sync(call, *args, limiter=self._kernel, abandon_on_cancel=True)

    def changed_by_us(self, inode: Inode) -> None:
        """Attributes of `inode` were just changed for a client: its new ctime is no stranger's.  Never
        raises, as what was asked for is done."""
        if inode.file is not None:
            with contextlib.suppress(OSError):
                inode.ctime_ns = os.fstat(inode.file.fileno()).st_ctime_ns

    def attributes(self, inode: Inode, st: os.stat_result) -> pyfuse3.EntryAttributes:
        """The reply that tells the kernel about `inode`, whose backing file's stat is `st`.

        While a guest maps the file for writing, times change without a request:
        then the kernel may not keep the attributes.
        """
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode.nodeid
        entry.st_mode = st.st_mode
        entry.st_nlink = st.st_nlink
        entry.st_uid = st.st_uid
        entry.st_gid = st.st_gid
        entry.st_rdev = st.st_rdev
        entry.st_size = st.st_size
        entry.st_blksize = st.st_blksize
        entry.st_blocks = st.st_blocks
        entry.st_atime_ns = st.st_atime_ns
        entry.st_mtime_ns = st.st_mtime_ns
        entry.st_ctime_ns = st.st_ctime_ns
        entry.entry_timeout = self.entry_timeout
        written_unseen = inode.file is not None and inode.file.mapped_writable
        entry.attr_timeout = 0 if written_unseen else self.attr_timeout
        return entry


def checked(name: bytes) -> bytes:
    """`name` if it can only mean an entry of the directory it is used in; OSError(EINVAL) otherwise.

    The kernel sends no other (fs/namei.c resolves "." and ".." itself), but on
    this nothing may depend: such a name would leave the backing directory.
    """
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
        raise OSError(errno.EINVAL, f"not a file name: {name!r}")
    return name


def _refusal(backing: str | os.PathLike[str], exc: OSError) -> str:
    match exc.errno:
        case errno.ENOENT:
            return f"backing directory {backing}: does not exist; create it or name another"
        case errno.ENOTDIR:
            return f"backing directory {backing}: is not a directory; name the directory to be served"
    return f"backing directory {backing}: cannot be opened: {exc.strerror}"
