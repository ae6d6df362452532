# SPDX-License-Identifier: Apache-2.0
"""Files in use: the life of an inode's one native.File, and noticing that it changed.

Owns which native.File exists, and when the kernel's cache of a file is dropped.
Must not answer requests, and must not know who maps a file or why.

An inode has a native.File while it is in use: open by a client, pinned by the
host, or being truncated.  All its users share it, so there is one truth about
its size and its pages.

A change behind the mount is first told to the native.File (recheck), which sees
to the guests' mappings, then to the kernel, whose pages and attributes of the
inode are invalidated.  The kernel answers that only after reads in flight on
the same pages, which wait for us: never in the trio thread, and with threads of
their own.

Two changes leave size and mtime as they were, and are told otherwise.  Who puts the
mtime back, as utime(2) can, moves the ctime: one that is neither the mtime nor of our
own making stands for a change of data.  A store through a mapping of the backing file
moves the mtime only if the page was clean: once that was seen to happen, the kernel's
pages are dropped at every turn for as long as a page may stay dirty.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from collections.abc import Iterator, Sequence

import pyfuse3
import trio

from daxfault import native
from daxfault.fsd.replies import Base
from daxfault.fsd.inodes import Inode, proc_path
from daxfault.fsd.watch import ATTRIBUTES, Watch

log = logging.getLogger(__name__)

# How long a page may be stored to without a trace: it is written, and so write-protected again, after
# vm.dirty_expire_centisecs (30 s) and vm.dirty_writeback_centisecs (5 s), and a disk takes its time.
STORED_FOR = 60.0

# Timestamps of local file systems advance once a tick, 10 ms at HZ=100: a file changed less than this
# before it was closed may change again and keep its mtime.
TICK_NS = 20_000_000


class Pinned:
    """A regular file of the mount that the host needs, open or not, until `release`.

    `file` is its native.File, `inode` its nodeid, which is its st_ino on the mount.
    """

    def __init__(self, opened: Opened, inode: Inode, file: native.File) -> None:
        self._opened: Opened | None = opened
        self._node = inode
        self.inode = inode.nodeid
        self.file = file

    def release(self) -> None:
        """Give the file back; a second call does nothing.  In the trio thread, before the mount ends."""
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.unuse(self._node)


class Opened(Base):
    """Files in use, by inode."""

    watch: Watch
    # what is to be invalidated, by nodeid: True with data, False attributes only
    _stale: dict[int, bool]
    _invalidating: set[int]
    _nursery: trio.Nursery | None

    # ---- one native.File an inode

    def use(self, inode: Inode, *, writable: bool) -> native.File:
        """The native.File of `inode`, opened if there is none; one use more, given back with `unuse`.

        A file is opened for reading only as long as nobody writes: a read-only
        backing serves readers, and a program that runs can still be executed.
        Never with O_APPEND or O_DIRECT: pwrite(2) ignores the offset with the
        first, and one descriptor serves all handles, whatever their flags.

        Raises OSError, EINVAL among them for what is not a regular file.
        """
        if inode.file is None:
            return self.adopt(inode, self._open_data(inode, writable), writable=writable)
        if writable and not inode.file.writable:
            inode.file.upgrade(self._open_data(inode, True))
        inode.uses += 1
        return inode.file

    def adopt(self, inode: Inode, fd: int, *, writable: bool) -> native.File:
        """Like `use`, for an inode that has no native.File, with a descriptor already open (taken over)."""
        try:
            inode.file = native.File(fd, writable=writable)
        except BaseException:
            os.close(fd)
            raise
        inode.uses += 1
        self.watch.add(inode)
        return inode.file

    def _open_data(self, inode: Inode, writable: bool) -> int:
        if inode.kind != stat.S_IFREG:  # opening a FIFO would wait for its other end
            raise OSError(errno.EINVAL, f"not a regular file: {inode!r}")
        flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_NOCTTY | os.O_CLOEXEC
        return os.open(proc_path(self.inodes.fd(inode)), flags)

    def unuse(self, inode: Inode) -> None:
        """Give back one use; the last one closes the file."""
        inode.uses -= 1
        if inode.uses:
            return
        file, inode.file = inode.file, None
        if file is not None:  # None: the mount has ended
            self.watch.remove(inode)
            inode.seen = look(file)
            file.close()
        self.inodes.drop_unused(inode)

    def files(self) -> Iterator[native.File]:
        """Every native.File there is."""
        for inode in self.inodes:
            if inode.file is not None:
                yield inode.file

    async def pin(self, fd: int) -> Pinned:
        """Keep the file behind `fd`, anyone's descriptor on this mount, in use until it is released.

        The file is told by its inode, so it need not have a name.  `fd` stays the
        caller's and must stay open meanwhile.

        Raises OSError: EXDEV when `fd` is not of this mount, EINVAL when it is
        not a regular file, else as open(2) of the backing file.
        """
        mount, ino = fdinfo(fd)
        if mount != self.mount_id:
            # bound elsewhere, or in another namespace?  fstat(2) may need an answer of this very mount
            st = await self.ask_kernel(os.fstat, fd)
            if st.st_dev != self.device:
                raise OSError(errno.EXDEV, f"descriptor {fd} is not of the mount of {self.backing}")
            ino = st.st_ino
        inode = self.inodes.get(ino)
        if inode.kind != stat.S_IFREG:
            raise OSError(errno.EINVAL, f"descriptor {fd} is not a regular file")
        return Pinned(self, inode, self.use(inode, writable=False))

    # ---- changes

    def mapping_changed(self, inode: int) -> None:
        """A guest began to map, or stopped mapping, the file `inode` (a nodeid) for writing: what the
        kernel has cached of it is dropped."""
        self._invalidate(inode, data=True)

    def invalidate(self, inode: Inode) -> None:
        """Have the kernel drop its pages and attributes of `inode`, soon."""
        self._invalidate(inode.nodeid, data=True)

    def recheck(self, inode: Inode) -> bool:
        """Whether the file of `inode`, which is in use, was changed behind the mount; if so, guests and the
        kernel are told."""
        assert inode.file is not None
        if not inode.file.recheck():
            return False
        inode.unheard = True
        self.invalidate(inode)
        return True

    async def background(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve changes behind the mount until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                task_status.started()
                await self.watch.run(self._changed)
            finally:
                self._nursery = None

    async def _changed(self, found: Sequence[tuple[Inode, int]]) -> bool:
        """See to files that were perhaps changed behind the mount, each with its events (watch.py); True
        when one had changed.

        In a thread: dropping the pages past a new end of file can take long.
        """
        files = [inode.file for inode, _ in found]
        for inode, _ in found:
            inode.uses += 1
        try:
            changes = await self.in_thread(lambda: [_recheck(file) for file in files])
            for (inode, events), change in zip(found, changes, strict=True):
                data = bool(change) or self._changed_unseen(inode, events)
                if not events and (change or inode.unheard):
                    inode.stored_until = time.monotonic() + STORED_FOR
                if events != ATTRIBUTES:
                    inode.unheard = False
                if data or events & ATTRIBUTES:
                    self._invalidate(inode.nodeid, data=data)
        finally:
            for inode, _ in found:
                self.unuse(inode)
        return any(changes)

    def _changed_unseen(self, inode: Inode, events: int) -> bool:
        """Whether the data of `inode`, whose size and mtime are as we left them, may be other data."""
        if not events:
            return time.monotonic() < inode.stored_until
        if not events & ATTRIBUTES or inode.file is None:
            return False
        try:
            st = os.fstat(inode.file.fileno())
        except OSError:
            return True
        ours, inode.ctime_ns = inode.ctime_ns, st.st_ctime_ns
        return st.st_ctime_ns not in (st.st_mtime_ns, ours)

    def _invalidate(self, nodeid: int, *, data: bool) -> None:
        if self._nursery is None:
            return
        self._stale[nodeid] = self._stale.get(nodeid, False) or data
        if nodeid not in self._invalidating:
            self._invalidating.add(nodeid)
            self._nursery.start_soon(self._invalidate_until_done, nodeid)

    async def _invalidate_until_done(self, nodeid: int) -> None:
        """One at a time for each inode; a change during one makes for another."""
        try:
            while nodeid in self._stale:
                await self.ask_kernel(_invalidate_inode, nodeid, self._stale.pop(nodeid))
        finally:
            self._invalidating.discard(nodeid)


def fdinfo(fd: int) -> tuple[int, int]:
    """The mount and the inode behind a descriptor of this process, without asking their file system
    (proc_pid_fdinfo(5); `ino` since Linux 5.14); -1 for what is not told.  OSError EBADF."""
    found = {"mnt_id": -1, "ino": -1}
    try:
        with open(f"/proc/self/fdinfo/{fd}") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name in found:
                    found[name] = int(value)
    except FileNotFoundError:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None
    return found["mnt_id"] if found["ino"] >= 0 else -1, found["ino"]


def _invalidate_inode(nodeid: int, data: bool) -> None:
    try:
        pyfuse3.invalidate_inode(nodeid, attr_only=not data)
    except FileNotFoundError:
        pass  # the kernel has forgotten the inode, and its cache with it
    except OSError as exc:
        log.warning("inode %d: the kernel's cache could not be invalidated: %s", nodeid, exc)


def _recheck(file: native.File | None) -> int:
    if file is None:
        return 0
    try:
        return file.recheck()
    except OSError as exc:
        log.warning("file %d: cannot be looked at: %s", file.id, exc)
        return native.CHANGED_SIZE | native.CHANGED_CONTENT


def look(file: native.File) -> tuple[int, int, int] | None:
    """What tells two states of a file apart, None when nothing can: it has only just changed."""
    try:
        st = os.fstat(file.fileno())
    except OSError:
        return None
    if time.time_ns() - max(st.st_mtime_ns, st.st_ctime_ns) < TICK_NS:
        return None
    return st.st_size, st.st_mtime_ns, st.st_ctime_ns
