# SPDX-License-Identifier: Apache-2.0
"""Finds the file behind a descriptor of another process, without receiving the descriptor.

Owns /proc/PID of a peer.  Must open files with O_PATH only.

A received descriptor must be closed.  close(2) of a file on our own mount sends FLUSH to this process
and waits for its answer (fs/fuse/file.c, fuse_flush()).  A host that is killed with such a descriptor
hangs, and so do all its clients, because its /dev/fuse stays open.  close(2) of other files may also
fail or hang.  An O_PATH descriptor needs no FLUSH.
"""

from __future__ import annotations

import contextlib
import errno
import os


class Descriptors:
    """The descriptors of process `pid`, which user `uid` runs."""

    def __init__(self, pid: int, uid: int) -> None:
        """OSError when the process is gone."""
        # refers to this process, even if its pid is reused
        self._proc = os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if uid not in self._users():
                raise OSError(errno.ESRCH, f"process {pid} is now another process")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Safe to call twice."""
        proc, self._proc = self._proc, -1
        if proc >= 0:
            os.close(proc)

    def open(self, thread: int, fd: int) -> tuple[int, int]:
        """The file behind descriptor `fd` of a thread of the process: a new O_PATH descriptor, which the
        caller closes, and the flags that the file was opened with (open(2)).

        Each thread may have its own descriptor table (CLONE_FILES).  OSError EBADF: the descriptor does
        not exist, or its file has changed.
        """
        table = f"task/{thread}"
        try:
            path = os.open(f"{table}/fd/{fd}", os.O_PATH | os.O_CLOEXEC, dir_fd=self._proc)
            try:
                # Checked after the open, because the process may replace the descriptor at any time:
                # this file is, or was just now, open there with these flags.
                flags, *theirs = self._fdinfo(f"{table}/fdinfo/{fd}", self._proc)
                _, *ours = self._fdinfo(f"/proc/self/fdinfo/{path}")
                if theirs != ours:
                    raise OSError(errno.EBADF, f"descriptor {fd} now belongs to another file")
            except BaseException:
                os.close(path)
                raise
        except (FileNotFoundError, ProcessLookupError):
            raise OSError(errno.EBADF, f"thread {thread} has no descriptor {fd}") from None
        return path, flags

    def _fdinfo(self, path: str, directory: int | None = None) -> tuple[int, int, int]:
        """Flags, mount and inode, without a request to the file system (proc_pid_fdinfo(5))."""
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
