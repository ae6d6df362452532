# SPDX-License-Identifier: Apache-2.0
"""The inode table: the backing file of each FUSE nodeid.

Owns the identity of inodes, the kernel's lookup counts and the O_PATH descriptors.  Must not answer
requests, nor open a file for its data.

Identity.  The kernel identifies an inode by its nodeid, which is also the st_ino that clients see; the
table identifies it by (st_dev, st_ino) of the backing.  The nodeid is the backing's st_ino if that is
free, so that inode numbers stay the same from one mount to the next.  Files of other file systems below
the backing, and those whose number is taken, get one from a counter above 2**63.

Descriptors.  An inode is accessed through an O_PATH | O_NOFOLLOW descriptor.  Their number is bounded:
the least recently used one is closed, and opened again by (parent, name) when needed.  A file in use has
only its data descriptor.  If the name is gone, or belongs to another file now, the answer is ESTALE, and
the kernel resolves the path again (fs/namei.c, retry_estale).  An inode whose name was removed through
the mount cannot be opened again, so it keeps its descriptor until it is forgotten.

Lifetime.  An inode stays in the table while the kernel has looked it up, while
it is in use (open or pinned), or while an inode in the table was found in it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
from collections import OrderedDict
from collections.abc import Iterator

import pyfuse3

from daxfault import native
from daxfault.native import descriptors

log = logging.getLogger(__name__)

PATH_FLAGS = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC

LEAST_DESCRIPTORS = 16  # more than any request needs at a time

MOST_SIZES = 16  # remembered sizes of an inode

_FIRST_SPARE = 1 << 63


def descriptor_bound() -> int:
    """Raise this process's soft RLIMIT_NOFILE to the hard one; -> half of it, for O_PATH descriptors.

    The other half is for open files and other uses; idle O_PATH descriptors are closed if it is too few.
    """
    return max(LEAST_DESCRIPTORS, min(descriptors.raise_limit() // 2, 1 << 16))


def proc_path(fd: int) -> bytes:
    """The path that reaches the file behind `fd`, an O_PATH descriptor too (proc(5))."""
    return b"/proc/self/fd/%d" % fd


def _stale() -> OSError:
    return OSError(errno.ESTALE, os.strerror(errno.ESTALE))


class Inode:
    """One backing file, directory or special file that the kernel or the host knows.

    `nodeid`, `dev`, `ino`, `kind` (S_IFMT) never change.  `lookups` is the kernel's lookup count.  `parent`
    and `name` are its last known name, both None for the root and for an inode whose name was removed;
    `children` counts the inodes whose parent this is.  `uses` counts open handles, pins and running
    requests that need `file`, which exists exactly while it is not 0 (in_use.py); `closed_state` is the
    state in which the last user closed it.

    `kernel_size` is the size that was last sent to the kernel, `older_sizes` are earlier ones that it may
    still use: it drops a size that arrives during a write, or it has not received the size yet.

    `atime_handles` and `noatime_handles` count open handles without and with O_NOATIME; `noatime` says that
    reads of `file` leave the atime.

    The rest is for changes behind the mount (changes.py): `event_due` says that a change was found whose
    event has not been read, and `stores_until`, of time.monotonic(), until when pages may change without a
    trace.
    """

    __slots__ = ("atime_handles", "children", "closed_state", "dev", "event_due", "fd", "file", "ino",
                 "kernel_size", "kind", "lookups", "name", "noatime", "noatime_handles", "nodeid",
                 "older_sizes", "parent", "stores_until", "uses")  # fmt: skip

    def __init__(self, nodeid: int, st: os.stat_result, fd: int | None) -> None:
        self.nodeid = nodeid
        self.dev = st.st_dev
        self.ino = st.st_ino
        self.kind = stat.S_IFMT(st.st_mode)
        self.fd = fd
        self.lookups = 0
        self.parent: Inode | None = None
        self.name: bytes | None = None
        self.children = 0
        self.uses = 0
        self.file: native.File | None = None
        self.closed_state: tuple[int, int, int] | None = None
        self.kernel_size = st.st_size
        self.older_sizes: tuple[int, ...] = ()
        self.atime_handles = 0
        self.noatime_handles = 0
        self.noatime = False
        self.event_due = False
        self.stores_until = 0.0

    def __repr__(self) -> str:
        return f"<Inode {self.nodeid} {self.name!r} lookups={self.lookups} uses={self.uses}>"

    # ---- the size that the kernel uses

    def size_sent(self, size: int) -> None:
        """Attributes with this size are being sent: the kernel may use it from now on, or drop it."""
        if size != self.kernel_size:
            self.older_sizes = (self.kernel_size, *self.older_sizes[: MOST_SIZES - 1])
            self.kernel_size = size

    def size_settled(self, size: int) -> None:
        """The kernel will use this size, and none that was sent before."""
        self.kernel_size = size
        self.older_sizes = ()

    def size_at_least(self, size: int) -> None:
        """The kernel has just used a size that is not less."""
        self.kernel_size = max(self.kernel_size, size)
        if self.older_sizes:
            self.older_sizes = tuple(older for older in self.older_sizes if older >= size)


class Inodes:
    """The table of one mount.  Not thread-safe: used from the trio thread only."""

    def __init__(self, root_fd: int, max_descriptors: int) -> None:
        """Take over `root_fd`, an O_PATH descriptor of the backing directory."""
        if max_descriptors < LEAST_DESCRIPTORS:
            raise ValueError(f"max_descriptors is {max_descriptors}, must be {LEAST_DESCRIPTORS} or more")
        self.max_descriptors = max_descriptors
        self.root = Inode(pyfuse3.ROOT_INODE, os.fstat(root_fd), root_fd)
        self._by_nodeid = {self.root.nodeid: self.root}
        self._by_file = {(self.root.dev, self.root.ino): self.root}
        # inodes with a descriptor that may be closed and found again, least recently used first
        self._idle: OrderedDict[int, Inode] = OrderedDict()
        self._spare = _FIRST_SPARE

    def __len__(self) -> int:
        return len(self._by_nodeid)

    def __iter__(self) -> Iterator[Inode]:
        return iter(list(self._by_nodeid.values()))

    def find(self, nodeid: int) -> Inode | None:
        """The inode with this nodeid, if the table has one."""
        return self._by_nodeid.get(nodeid)

    def get(self, nodeid: int) -> Inode:
        """The inode with this nodeid; OSError(ESTALE) when the table has none."""
        try:
            return self._by_nodeid[nodeid]
        except KeyError:
            raise _stale() from None

    def child(self, parent: Inode, name: bytes) -> Inode | None:
        """The inode in the table for `name` in `parent`, or None.  OSError when the name does not exist."""
        st = os.stat(name, dir_fd=self.fd(parent), follow_symlinks=False)
        return self._by_file.get((st.st_dev, st.st_ino))

    # ---- descriptors

    def fd(self, inode: Inode) -> int:
        """A descriptor of `inode`, O_PATH unless the file is open; valid until the next call on the table.

        OSError(ESTALE) when it must be opened again but is gone.
        """
        if inode.fd is not None:
            if inode.parent is not None:
                self._idle.move_to_end(inode.nodeid)
            return inode.fd
        if inode.file is not None:
            return inode.file.fileno()
        chain = [inode]
        above = inode.parent
        while above is not None and above.fd is None:
            chain.append(above)
            above = above.parent
        # one by one from the top: without a path there is no limit on depth, and no symlink is followed
        for node in reversed(chain):
            self._reopen(node)
        assert inode.fd is not None
        return inode.fd

    def _reopen(self, inode: Inode) -> None:
        if inode.parent is None or inode.name is None:
            raise _stale()
        try:
            fd = self.open_path(inode.name, self.fd(inode.parent))
        except FileNotFoundError:
            raise _stale() from None
        st = os.fstat(fd)
        if (st.st_dev, st.st_ino, stat.S_IFMT(st.st_mode)) != (inode.dev, inode.ino, inode.kind):
            os.close(fd)
            raise _stale()
        self._keep(inode, fd)

    def open_path(self, name: bytes, dir_fd: int) -> int:
        """Open an O_PATH | O_NOFOLLOW descriptor of `name`; the caller owns it.

        As open_file().
        """
        return self.open_file(name, PATH_FLAGS, dir_fd=dir_fd)

    def open_file(self, path: bytes, flags: int, *, dir_fd: int | None = None) -> int:
        """os.open() that leaves the reserve of descriptors free; the caller owns the result.

        If no other descriptor is free, closes idle ones and tries again.  OSError EMFILE when only the
        reserve is left.
        """
        while True:
            try:
                return descriptors.for_file(os.open(path, flags, dir_fd=dir_fd))
            except OSError as exc:
                if exc.errno not in (errno.EMFILE, errno.ENFILE) or len(self._idle) < LEAST_DESCRIPTORS:
                    raise
                self._evict(len(self._idle) // 2)

    def make_room(self, near: Inode) -> None:
        """Make sure that a descriptor is free; `near` is any existing inode.  OSError as open_file()."""
        os.close(self.open_file(proc_path(self.fd(near)), os.O_PATH | os.O_CLOEXEC))

    def close_path(self, inode: Inode) -> None:
        """Close the O_PATH descriptor of `inode`, which has a file with its own descriptor now."""
        self._idle.pop(inode.nodeid, None)
        self._close(inode)

    def keep_path(self, inode: Inode) -> None:
        """Keep a descriptor of `inode`, whose file is about to be closed, if it has no name."""
        if inode.parent is None and inode.fd is None and inode.lookups and inode.file is not None:
            with contextlib.suppress(OSError):  # requests on it get ESTALE
                inode.fd = os.open(proc_path(inode.file.fileno()), os.O_PATH | os.O_CLOEXEC)

    def _keep(self, inode: Inode, fd: int) -> None:
        inode.fd = fd
        if inode.parent is not None:
            self._idle[inode.nodeid] = inode
            self._evict(self.max_descriptors)

    def _evict(self, keep: int) -> None:
        while len(self._idle) > keep:
            _, oldest = self._idle.popitem(last=False)
            self._close(oldest)

    @staticmethod
    def _close(inode: Inode) -> None:
        if inode.fd is not None:
            os.close(inode.fd)
            inode.fd = None

    # ---- names

    def enter(self, parent: Inode, name: bytes, st: os.stat_result, fd: int | None) -> Inode:
        """The inode of the file `name` in `parent`, new or known, its lookup count one higher.

        `st` is its lstat and `fd` an O_PATH descriptor of it, taken over, or
        None to open one when it is needed.
        """
        key = (st.st_dev, st.st_ino)
        inode = self._by_file.get(key)
        if inode is not None and inode.kind != stat.S_IFMT(st.st_mode):
            # The number was given to another file behind the mount, while we had no descriptor open on
            # the first.  Requests on the first get ESTALE.
            self._unname(inode)
            del self._by_file[key]
            inode = None
        if inode is None:
            inode = Inode(self._new_nodeid(st), st, None)
            self._by_nodeid[inode.nodeid] = inode
            self._by_file[key] = inode
        inode.lookups += 1
        if inode is not self.root:
            self._name(inode, parent, name)
        if fd is not None:
            if inode.fd is None and inode.file is None:
                self._keep(inode, fd)
            else:
                os.close(fd)
        return inode

    def _new_nodeid(self, st: os.stat_result) -> int:
        if st.st_dev == self.root.dev and 1 < st.st_ino < _FIRST_SPARE and st.st_ino not in self._by_nodeid:
            return st.st_ino
        self._spare += 1
        return self._spare

    def hold(self, inode: Inode, parent: Inode, name: bytes) -> None:
        """Make sure that `inode`, found at `name` in `parent`, has a descriptor, because its name is about
        to be removed."""
        if inode.fd is None and inode.file is None:
            fd = self.open_path(name, self.fd(parent))
            st = os.fstat(fd)
            if (st.st_dev, st.st_ino) == (inode.dev, inode.ino):
                self._keep(inode, fd)
            else:  # replaced behind the mount meanwhile
                os.close(fd)

    def renamed(self, inode: Inode, parent: Inode, name: bytes) -> None:
        """`inode` is now found at `name` in `parent`."""
        self._name(inode, parent, name)

    def removed(self, inode: Inode, parent: Inode, name: bytes) -> None:
        """Note that `name` in `parent`, a name of `inode`, was removed; after `hold`."""
        if inode.parent is parent and inode.name == name:
            self._unname(inode)

    def _name(self, inode: Inode, parent: Inode, name: bytes) -> None:
        inode.name = name
        if inode.parent is parent:
            return
        # A directory that was moved behind the mount may now be below its own former child.  The older
        # entry is wrong then, and parents must not form a cycle.
        above: Inode | None = parent
        while above is not None:
            if above.parent is inode:
                self._unname(above)
                break
            above = above.parent
        old = inode.parent
        inode.parent = parent
        parent.children += 1
        if old is not None:
            old.children -= 1
            self.drop_unused(old)
        if inode.fd is not None:
            self._idle[inode.nodeid] = inode
            self._idle.move_to_end(inode.nodeid)
            self._evict(self.max_descriptors)

    def _unname(self, inode: Inode) -> None:
        old = inode.parent
        inode.parent = inode.name = None
        self._idle.pop(inode.nodeid, None)
        if old is not None:
            old.children -= 1
            self.drop_unused(old)

    # ---- the end of an inode

    def forget(self, nodeid: int, count: int) -> None:
        """The kernel drops `count` lookups.  Never raises."""
        inode = self._by_nodeid.get(nodeid)
        if inode is None or inode.lookups < count:
            log.error("the kernel forgot inode %d %d times, more often than it looked it up: %r",
                      nodeid, count, inode)  # fmt: skip
        if inode is not None and inode is not self.root:
            inode.lookups = max(0, inode.lookups - count)
            self.drop_unused(inode)

    def drop_unused(self, inode: Inode) -> None:
        """Remove `inode` from the table unless it is needed, and then its parents in the same way."""
        node: Inode | None = inode
        while node is not None and node is not self.root and not (node.lookups or node.children or node.uses):
            if self._by_nodeid.pop(node.nodeid, None) is None:
                return  # the table was closed
            if self._by_file.get((node.dev, node.ino)) is node:
                del self._by_file[(node.dev, node.ino)]
            self._idle.pop(node.nodeid, None)
            self._close(node)
            above, node.parent = node.parent, None
            if above is not None:
                above.children -= 1
            node = above

    def open_descriptors(self) -> int:
        """The number of open O_PATH descriptors, including the root's."""
        return sum(inode.fd is not None for inode in self._by_nodeid.values())

    def close(self) -> None:
        """Close every descriptor.  The table must not be used afterwards."""
        for inode in self._by_nodeid.values():
            self._close(inode)
        self._idle.clear()
        self._by_nodeid.clear()
        self._by_file.clear()
