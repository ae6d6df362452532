# SPDX-License-Identifier: Apache-2.0
"""Files in use: the lifetime of an inode's native.File.

Owns the native.Files.  Must not answer requests, nor know the guests that map a file.

An inode has a native.File while it is in use: open by a client, pinned by the host, or being truncated.
All its users share it, so its size and pages are the same for all.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import queue
import stat
import threading
import time
from collections.abc import Iterator

from daxfault import native
from daxfault.fsd.inodes import Inode, Inodes, proc_path
from daxfault.fsd.threads import END_SECONDS, Threads
from daxfault.fsd.watch import Watch

log = logging.getLogger(__name__)

# Timestamps of local file systems advance once a tick, 10 ms at HZ=100: a file changed less than this
# before it was closed may change again and keep its mtime.
TICK_NS = 20_000_000


class FilesInUse:
    """The native.Files of one mount; iterating yields each."""

    def __init__(self, inodes: Inodes, watch: Watch, threads: Threads) -> None:
        self._inodes = inodes
        self._watch = watch
        self._threads = threads

    def __iter__(self) -> Iterator[native.File]:
        return (inode.file for inode in self._inodes if inode.file is not None)

    def use(self, inode: Inode, *, writable: bool) -> native.File:
        """The native.File of `inode`, opened if there is none; adds one use, which `unuse` ends.

        A file is opened read-only until there is a writer, so that a read-only backing works, and so that
        programs can be executed.  Never with O_APPEND or O_DIRECT: one descriptor serves all handles, and
        with O_APPEND pwrite(2) ignores the offset.

        Raises OSError; EINVAL if it is not a regular file.
        """
        if inode.file is None:
            return self.adopt(inode, self._open(inode, writable), writable=writable)
        if writable and not inode.file.writable:
            inode.file.upgrade(self._open(inode, True))
            inode.noatime = False  # of the new descriptor
        inode.uses += 1
        return inode.file

    def adopt(self, inode: Inode, fd: int, *, writable: bool) -> native.File:
        """Like `use`, for an inode that has no native.File, with a descriptor already open (taken over)."""
        try:
            inode.file = native.File(fd, writable=writable)
        except BaseException:
            os.close(fd)
            raise
        inode.noatime = False
        inode.uses += 1
        self._inodes.close_path(inode)
        self._watch.add(inode)
        return inode.file

    def _open(self, inode: Inode, writable: bool) -> int:
        if inode.kind != stat.S_IFREG:  # opening a FIFO would wait for its other end
            raise OSError(errno.EINVAL, f"not a regular file: {inode!r}")
        flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_NOCTTY | os.O_CLOEXEC
        return self._inodes.open_file(proc_path(self._inodes.fd(inode)), flags)

    def unuse(self, inode: Inode) -> None:
        """End one use; the last one closes the file."""
        inode.uses -= 1
        if inode.uses:
            return
        self._inodes.keep_path(inode)
        file, inode.file = inode.file, None
        if file is not None:  # None: the mount has ended
            self._watch.remove(inode)
            inode.closed_state = _state(file) if file.local else None  # asking a server takes a thread
            file.close()
        self._inodes.drop_unused(inode)

    def unchanged_since_closed(self, inode: Inode) -> bool:
        """Whether the file of `inode`, in use again, has not changed since its last user closed it."""
        assert inode.file is not None
        return inode.closed_state is not None and inode.closed_state == _state(inode.file)

    def apply_noatime(self, inode: Inode) -> None:
        """Set O_NOATIME on the file of `inode`, which is in use, while all its handles have it."""
        wanted = inode.noatime_handles > 0 and not inode.atime_handles
        if wanted == inode.noatime or inode.file is None:
            return
        with contextlib.suppress(OSError):  # EPERM: neither the file's owner nor CAP_FOWNER
            fcntl.fcntl(inode.file.fileno(), fcntl.F_SETFL, os.O_NOATIME if wanted else 0)
            inode.noatime = wanted

    async def truncate(self, inode: Inode, size: int) -> None:
        """Set the size of `inode`, in use or not, in bytes.

        Runs in a thread: freeing the blocks of a big file, and zapping pages in every guest that maps it,
        can take long.
        """
        file = self.use(inode, writable=True)
        try:
            await self._threads.of(file, file.truncate, size)
        finally:
            self.unuse(inode)

    def close(self) -> None:
        """Write back what guests stored and close every file; a second call does nothing.

        Where writing back fails, or does not end, that is logged: no client is left to report it to.
        """
        files = {file.id: file for file in self}
        ended: queue.SimpleQueue[int] = queue.SimpleQueue()
        for file in files.values():
            threading.Thread(target=_write_back, args=(file, ended), name="write-back", daemon=True).start()
        until = time.monotonic() + END_SECONDS
        with contextlib.suppress(queue.Empty):
            while files:
                del files[ended.get(timeout=max(0, until - time.monotonic()))]
        for id in files:
            log.error("file %d: its storage does not answer: stores of guests may be lost", id)
        for inode in self._inodes:
            if inode.file is not None:
                inode.file.close()
                inode.file = None


def _write_back(file: native.File, ended: queue.SimpleQueue[int]) -> None:
    try:
        file.retire()
    except OSError as exc:
        if exc.errno != errno.EBUSY:  # a guest that still maps it keeps its pages
            log.error("file %d: stores of guests could not be written back: %s", file.id, exc)
    ended.put(file.id)


def _state(file: native.File) -> tuple[int, int, int] | None:
    """Size, mtime and ctime, which identify the state of a file; None when the file has changed so
    recently that a further change may leave them equal."""
    try:
        st = os.fstat(file.fileno())
    except OSError:
        return None
    if time.time_ns() - max(st.st_mtime_ns, st.st_ctime_ns) < TICK_NS:
        return None
    return st.st_size, st.st_mtime_ns, st.st_ctime_ns
