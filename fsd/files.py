# SPDX-License-Identifier: Apache-2.0
"""Requests on open regular files.

Owns open, read, write and close, and the kernel's caching of data.  Must access file data only through
the inode's native.File (in_use.py).

Each open decides what the kernel may cache:

- Normally its pages stay valid from one open to the next (keep_cache) if the file has not changed since
  it was closed: same size, mtime and ctime (close-to-open, as in NFS).  While a file is open, changes.py
  notices changes behind the mount.
- When a guest maps the file for writing, its stores cause no request, so the kernel must not cache
  (direct_io).  A handle opened before that still fills the kernel's cache.  The pages that it reads are
  invalidated after each read, so a second reader may see data that is old by one round trip.
  A kernel mmap(MAP_SHARED) of a direct_io file fails with ENODEV (fs/fuse/file.c).
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
SLOW_PERIOD = 1.0  # seconds for which writes use threads after a slow one

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

        The kernel sends this only for a name that it takes to be free.  A file that was made behind the
        mount is opened, unless the caller used O_EXCL: EEXIST.
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
            # by descriptor, because the name may belong to another file already
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
                # on ESTALE the kernel resolves the path again, and finds the new file
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
        """A new handle, which takes over the caller's use of `inode`."""
        assert inode.file is not None
        direct_io = self._direct_io or inode.file.mapped_writable
        handle = OpenFile(inode, flags, direct_io=direct_io, by_user=ctx.uid != 0)
        self._count_atime(handle, 1)
        fh = self._handles.add(handle)
        return FileInfo(fh=fh, direct_io=direct_io, keep_cache=keep_cache and not direct_io)

    async def read(self, fh: int, off: int, size: int) -> Buffer:
        """`size` bytes at `off`, fewer only at the end of the file.

        Answers at once when the data is in memory; otherwise in a thread that waits for storage.
        """
        handle = self._handles.get(fh)
        file = _file(handle)
        try:
            found = file.read(off, size, nowait=True)
        except BlockingIOError:
            found = await self._threads.of(file, file.read, off, size)
        if handle.inode.older_sizes and not handle.direct_io:
            # the kernel reads whole pages, and only those that begin below the size (mm/readahead.c)
            handle.inode.size_at_least((off + size - 1) // mmap.PAGESIZE * mmap.PAGESIZE + 1)
        if file.mapped_writable and not handle.direct_io:
            self._invalidation.invalidate(handle.inode.nodeid)
        return found

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """Write all of `buf`.

        Writes at once, because a write is a copy into the page cache, and a thread costs more (measured:
        1 MiB writes 1.0 GB/s against 0.35, 4 KiB 150 us against 320).  After a slow write, as when the
        system is out of clean pages, writes use threads for SLOW_PERIOD.
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
        if at != off:  # the kernel has the data at the wrong offset in its cache
            self._invalidation.invalidate(inode.nodeid, size=True)
        return written

    async def flush(self, fh: int) -> None:
        """close(2) by a client: reports lost stores through a mapping, for the last time.  A network file
        system reports failed writes at close(2), so this closes a copy and reports its error too."""
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
        """Clear the set-ID bits of `inode`, which is in use, after a change by a user.

        The kernel requests that before write(2) and truncate(2) (file_remove_privs in fs/inode.c), but
        not for O_TRUNC, nor for write(2) with direct_io (FUSE_WRITE_KILL_SUIDGID, which pyfuse3 does not
        pass on).  The backing file system keeps the bits, because this process is root.
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

    The kernel appends at its own idea of the size, without asking for the size first.  So the offset is
    wrong if the file grew behind the mount.  A write elsewhere comes after fcntl(2) has cleared O_APPEND,
    or writes back a page of a mapping.  That page is below the size, and the kernel has read it before,
    which showed us the kernel's size (`read`).
    """
    return off == inode.kernel_size or off in inode.older_sizes


def _file(handle: OpenFile) -> native.File:
    assert handle.inode.file is not None, "a handle is a use"
    return handle.inode.file
