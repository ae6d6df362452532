# SPDX-License-Identifier: Apache-2.0
"""Makes the kernel ask for the size of an inode.

Owns the thread that does it.  Must not decide when that is needed.

The kernel does not ask for the size at a fault, nor at a write with O_APPEND: it uses the size that it
has, even if the attributes were invalidated (fs/fuse/file.c).  stat(2) makes it ask, so the thread calls
stat(2) on the inode, as a client would.  It opens the inode by its number, with FUSE's file handle
(open_by_handle_at(2)), so the file need not have a name.  That requires CAP_DAC_READ_SEARCH; without it
the kernel asks for the size when a client calls stat(2).

A thread that waits for an answer of this mount cannot be killed.  If it shared the process's descriptors,
a killed process would never close /dev/fuse, and the connection and all its clients would hang.  So the
thread has its own descriptor table without any descriptor of the process: neither /dev/fuse, nor the
standard streams, since the starter of a daemon may wait for their end.
"""

from __future__ import annotations

import collections
import errno
import logging
import os
import queue
import threading

from daxfault.fsd import syscalls

log = logging.getLogger(__name__)

_LEFT_OUT = (errno.ESTALE, errno.EPERM)  # the kernel does not have the inode; not permitted


class Sizes:
    """Asks on one mount, from `start` to `close`."""

    def __init__(self) -> None:
        self._wanted: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._failed: collections.deque[str] = collections.deque(maxlen=100)

    def start(self, path: str) -> None:
        """Serve `ask` for the mount at `path`."""
        threading.Thread(target=self._run, args=(path,), name="sizes", daemon=True).start()

    def ask(self, nodeid: int) -> None:
        """Have the kernel ask for the size of the inode, without waiting.  Logs failures since the last
        call, because the thread has no stream to log to."""
        while self._failed:
            log.warning("%s", self._failed.popleft())
        self._wanted.put(nodeid)

    def close(self) -> None:
        """End the thread, without waiting for it, because it may be waiting for the mount."""
        self._wanted.put(None)

    def _run(self, path: str) -> None:
        syscalls.unshare_files()
        os.closerange(0, os.sysconf("SC_OPEN_MAX"))
        for _ in range(3):  # 0, 1 and 2, so that no other file becomes a standard stream
            os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        while (nodeid := self._wanted.get()) is not None:
            try:
                _stat(path, nodeid)
            except OSError as exc:
                if exc.errno not in _LEFT_OUT:
                    self._failed.append(f"inode {nodeid}: stat on the mount: {exc}")


def _stat(path: str, nodeid: int) -> None:
    mount = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd = syscalls.open_fuse_inode(mount, nodeid)
    finally:
        os.close(mount)
    try:
        os.fstat(fd)
    finally:
        os.close(fd)
