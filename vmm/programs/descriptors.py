# SPDX-License-Identifier: Apache-2.0
"""The file behind a descriptor of another process, found without receiving the descriptor.

Owns /proc/PID of a peer.  Must not open a file but with O_PATH.

A descriptor that is received must be closed, and close(2) of a file on our own mount sends FLUSH
to this very process and waits for its answer (fs/fuse/file.c, fuse_flush()).  A host that is killed
with such a descriptor waits for ever, and with it all whom it serves: its /dev/fuse is in the same
table, still open.  close(2) of anybody's file may fail or hang as well.  An O_PATH descriptor needs no
FLUSH.
"""

from __future__ import annotations

import contextlib
import errno
import os


class Descriptors:
    """The descriptors of process `pid`, which user `uid` runs."""

    def __init__(self, pid: int, uid: int) -> None:
        """OSError when the process is gone."""
        # stays this process's, even when another one is given its number
        self._proc = os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if uid not in self._users():
                raise OSError(errno.ESRCH, f"process {pid} is another one by now")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """A second call does nothing."""
        proc, self._proc = self._proc, -1
        if proc >= 0:
            os.close(proc)

    def open(self, thread: int, fd: int) -> tuple[int, int]:
        """The file behind descriptor `fd` of a thread of the process: an O_PATH descriptor of ours, the
        caller's to close, and the flags that the file was opened with (open(2)).

        Each thread may have a table of its own (CLONE_FILES).  OSError EBADF: no such descriptor, or not
        this file's any more.
        """
        table = f"task/{thread}"
        try:
            path = os.open(f"{table}/fd/{fd}", os.O_PATH | os.O_CLOEXEC, dir_fd=self._proc)
            try:
                # Looked at afterwards: the process has this very file open with these flags, or had a
                # moment ago.  It could have put another one there between two looks.
                flags, *theirs = self._fdinfo(f"{table}/fdinfo/{fd}", self._proc)
                _, *ours = self._fdinfo(f"/proc/self/fdinfo/{path}")
                if theirs != ours:
                    raise OSError(errno.EBADF, f"descriptor {fd} is another file's by now")
            except BaseException:
                os.close(path)
                raise
        except (FileNotFoundError, ProcessLookupError):
            raise OSError(errno.EBADF, f"thread {thread} has no descriptor {fd}") from None
        return path, flags

    def _fdinfo(self, path: str, directory: int | None = None) -> tuple[int, int, int]:
        """Flags, mount and inode, of which it asks no file system (proc_pid_fdinfo(5))."""
        found = self._fields(path, directory, ("flags", "mnt_id", "ino"))
        return int(found["flags"], 8), int(found["mnt_id"]), int(found["ino"])

    def _users(self) -> list[int]:
        """Its real, effective, saved and file system user id."""
        return [int(id) for id in self._fields("status", self._proc, ("Uid",))["Uid"].split()]

    @staticmethod
    def _fields(path: str, directory: int | None, names: tuple[str, ...]) -> dict[str, str]:
        found: dict[str, str] = {}
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
        with contextlib.closing(os.fdopen(fd)) as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name in names:
                    found[name] = value.strip()
        return found
