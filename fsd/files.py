# SPDX-License-Identifier: Apache-2.0
"""Requests on open regular files.

Owns what open, read, write and close mean, and what the kernel may cache.  Must
not touch file data except through the inode's native.File (in_use.py).

What the kernel may cache, decided at each open:

- normally its pages stay valid from one open to the next (keep_cache), provided
  the file is the one we closed: same size, mtime and ctime (close-to-open, as
  NFS has it).  While a file is open, changes.py notices changes behind the mount.
- when a guest maps the file for writing, its stores reach us without a request,
  so the kernel must ask every time (direct_io).  A handle opened before that
  still fills the kernel's cache: pages it reads are invalidated after each read,
  so a second reader may see data that is old by one round trip.  A kernel
  mmap(MAP_SHARED) of a direct_io file is ENODEV (fs/fuse/file.c).
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
import time

from pyfuse3 import EntryAttributes, FileInfo, RequestContext

from daxfault import native
from daxfault.fsd.changes import Changes, note_own_change
from daxfault.fsd.entries import PERMISSIONS, Entries, checked
from daxfault.fsd.handles import Handles, OpenFile
from daxfault.fsd.in_use import FilesInUse
from daxfault.fsd.inodes import Inode, Inodes, proc_path
from daxfault.fsd.invalidation import Invalidation
from daxfault.fsd.threads import Threads

SLOW_WRITE = 0.05  # seconds that a write may take
SLOW_PERIOD = 1.0  # seconds for which one that took longer is remembered

Buffer = bytes | bytearray | memoryview


class Files:
    """open, create, read, write, flush, fsync, release.

    `writes_begun` and `writes_ended` count WRITE requests (mount.py).
    """

    def __init__(
        self,
        inodes: Inodes,
        entries: Entries,
        in_use: FilesInUse,
        changes: Changes,
        invalidation: Invalidation,
        threads: Threads,
        *,
        direct_io: bool,
    ) -> None:
        self._inodes = inodes
        self._entries = entries
        self._in_use = in_use
        self._changes = changes
        self._invalidation = invalidation
        self._threads = threads
        self._direct_io = direct_io
        self._handles: Handles[OpenFile] = Handles()
        self.writes_begun = self.writes_ended = 0
        self.storage_slow_until = 0.0  # time.monotonic()

    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        """Open by inode; the kernel has checked permissions and resolved O_CREAT, O_EXCL and O_NOFOLLOW.

        O_DIRECT only concerns the kernel's cache, O_TRUNC arrives here (FUSE_ATOMIC_O_TRUNC), and for
        O_APPEND the kernel sends the offset of each write (_is_append).
        """
        return await self._open(self._inodes.get(inode), flags, ctx)

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        """Make and open a regular file.

        The kernel sends this only for a name it believes to be free.  If it is
        not, one made behind the mount is opened, unless the caller insisted
        (O_EXCL): EEXIST.
        """
        parent = self._inodes.get(parent_inode)
        self._inodes.make_room(parent)  # no file is made that cannot be opened
        how = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(checked(name), how, mode & PERMISSIONS & ~ctx.umask, dir_fd=self._inodes.fd(parent))
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            return await self._open_existing(parent, name, flags, ctx)
        try:
            # by descriptor, not by name: the name may have been given to another file already
            path_fd = os.open(proc_path(fd), os.O_PATH | os.O_CLOEXEC)
            entry = self._entries.made_at(parent, name, path_fd, mode & ~ctx.umask, ctx)
        except BaseException:
            os.close(fd)
            raise
        inode = self._inodes.get(entry.st_ino)
        try:
            self._in_use.adopt(inode, fd, writable=True)
            info = self._handle_of(inode, flags, ctx, keep_cache=False)
        except BaseException:
            self._inodes.forget(inode.nodeid, 1)
            raise
        return info, entry

    async def _open_existing(
        self, parent: Inode, name: bytes, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        entry = self._entries.look_up(parent, name)
        try:
            if not stat.S_ISREG(entry.st_mode):
                # on ESTALE the kernel walks the path again, and finds what is there now
                raise OSError(errno.ESTALE, "made behind the mount, and no regular file")
            info = await self._open(self._inodes.get(entry.st_ino), flags, ctx)
        except BaseException:
            self._inodes.forget(entry.st_ino, 1)
            raise
        return info, entry

    async def _open(self, inode: Inode, flags: int, ctx: RequestContext) -> FileInfo:
        writable = flags & os.O_ACCMODE != os.O_RDONLY or bool(flags & os.O_TRUNC)
        first = inode.file is None
        file = self._in_use.use(inode, writable=writable)
        try:
            if flags & os.O_TRUNC:
                if ctx.uid != 0:
                    self._clear_set_id(inode)
                await self._threads.of(file, file.truncate, 0)
                inode.size_settled(0)
            if first:
                keep_cache = self._in_use.unchanged_since_closed(inode)
            else:
                keep_cache = not await self._changes.recheck(inode)
            if time.monotonic() < inode.stores_until:  # pages may have changed without a trace (changes.py)
                keep_cache = False
            return self._handle_of(inode, flags, ctx, keep_cache=keep_cache)
        except BaseException:
            self._in_use.unuse(inode)
            raise

    def _handle_of(self, inode: Inode, flags: int, ctx: RequestContext, *, keep_cache: bool) -> FileInfo:
        """A new handle, to which the caller's use of `inode` now belongs."""
        assert inode.file is not None
        direct_io = self._direct_io or inode.file.mapped_writable
        handle = OpenFile(inode, flags, direct_io=direct_io, by_user=ctx.uid != 0)
        self._count_atime(handle, 1)
        fh = self._handles.add(handle)
        return FileInfo(fh=fh, direct_io=direct_io, keep_cache=keep_cache and not direct_io)

    async def read(self, fh: int, off: int, size: int) -> Buffer:
        """`size` bytes at `off`, fewer only at the end of the file.

        At once when the data is in memory; in a thread when storage must be
        waited for.
        """
        handle = self._handles.get(fh)
        file = _file(handle)
        try:
            found = file.read(off, size, nowait=True)
        except BlockingIOError:
            found = await self._threads.of(file, file.read, off, size)
        if handle.inode.older_sizes and not handle.direct_io:
            # whole pages are asked for, and only if they begin below the size (mm/readahead.c)
            handle.inode.size_at_least((off + size - 1) // mmap.PAGESIZE * mmap.PAGESIZE + 1)
        if file.mapped_writable and not handle.direct_io:
            self._invalidation.invalidate(handle.inode.nodeid)
        return found

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """Write all of `buf`.

        At once, because a write is a copy into the page cache, and handing it
        to a thread and back costs more (measured: 1 MiB writes 1.0 GB/s against
        0.35, 4 KiB 150 us against 320).  If storage has lately made a write
        wait, as it does when the system is out of clean pages, in threads for
        a while.
        """
        handle = self._handles.get(fh)
        handle.written = True
        if handle.direct_io and handle.by_user:
            self._clear_set_id(handle.inode)
        file = _file(handle)
        write = file.write
        begin = time.monotonic()
        self.writes_begun += 1
        try:
            append = handle.append and _is_append(handle.inode, off)
            at = (await self._threads.look(file, os.fstat, file.fileno())).st_size if append else off
            if begin < self.storage_slow_until:
                written = await self._threads.of(file, write, at, buf)
            else:
                try:
                    written = write(at, buf, nowait=True)
                except BlockingIOError:  # not local, or another call is changing the file
                    written = await self._threads.of(file, write, at, buf)
                else:
                    if time.monotonic() - begin > SLOW_WRITE:
                        self.storage_slow_until = time.monotonic() + SLOW_PERIOD
        finally:
            self.writes_ended += 1
        inode = handle.inode
        if append:
            inode.size_settled(off + written)
        else:
            inode.size_at_least(off + written)
        if at != off:  # the kernel has put the data at the wrong place in its cache
            self._invalidation.invalidate(inode.nodeid, size=True)
        return written

    async def flush(self, fh: int) -> None:
        """close(2) by a client: the last chance to report what was stored in vain through a mapping.
        A network file system reports failed writes when a descriptor is closed: close a copy, and pass
        that on."""
        handle = self._handles.get(fh)
        file = _file(handle)
        if handle.writes and file.unwritten:
            await self._threads.of(file, file.write_back)
        if handle.written:
            handle.written = False
            await self._threads.of(file, os.close, os.dup(file.fileno()))

    async def fsync(self, fh: int, datasync: bool) -> None:
        handle = self._handles.get(fh)
        file, seen = _file(handle), handle.sync_errors
        await self._threads.of(file, lambda: file.sync(seen, datasync=datasync))

    async def release(self, fh: int) -> None:
        handle = self._handles.remove(fh)
        self._count_atime(handle, -1)
        self._in_use.unuse(handle.inode)

    def _count_atime(self, handle: OpenFile, change: int) -> None:
        inode = handle.inode
        if handle.noatime:
            inode.noatime_handles += change
        else:
            inode.atime_handles += change
        if inode.noatime_handles or inode.noatime:
            self._in_use.apply_noatime(inode)

    def _clear_set_id(self, inode: Inode) -> None:
        """Clear the set-ID bits of `inode`, which is in use: they must not outlast a change by a user.

        The kernel asks for that before write(2) and truncate(2) (file_remove_privs in fs/inode.c).  It
        leaves to us O_TRUNC, and write(2) with direct_io (FUSE_WRITE_KILL_SUIDGID, which pyfuse3 does
        not pass on); and the backing kernel keeps the bits, since we are root.
        """
        assert inode.file is not None
        mode = os.fstat(inode.file.fileno()).st_mode
        cleared = mode & ~stat.S_ISUID
        if mode & stat.S_IXGRP:
            cleared &= ~stat.S_ISGID
        if cleared != mode:
            os.fchmod(inode.file.fileno(), cleared & PERMISSIONS)
            note_own_change(inode)
            self._invalidation.invalidate(inode.nodeid, data=False)

    def close(self) -> None:
        """Forget every open file; a second call does nothing."""
        self._handles.clear()


def _is_append(inode: Inode, off: int) -> bool:
    """Whether a write at `off`, through a handle that was opened with O_APPEND, is an append.

    The kernel appends at the size it uses, and does not ask for the size before: something may have been
    appended behind the mount meanwhile, and then the offset is wrong.  A write elsewhere comes after
    fcntl(2) has cleared O_APPEND, or writes back a page of a mapping.  That page lies below the size, and
    before it was stored to the kernel has read it from us, which showed us the size (`read`).
    """
    return off == inode.kernel_size or off in inode.older_sizes


def _file(handle: OpenFile) -> native.File:
    assert handle.inode.file is not None, "a handle is a use"
    return handle.inode.file
