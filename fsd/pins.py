# SPDX-License-Identifier: Apache-2.0
"""Files that the host keeps in use, even if no client has them open.

Owns finding the native.File of a descriptor of a file on this mount.  Must not know the host's reason.
"""

from __future__ import annotations

import errno
import os
import stat

from daxfault.fsd import syscalls
from daxfault.fsd.in_use import FilesInUse
from daxfault.fsd.inodes import Inode, Inodes
from daxfault.fsd.threads import Threads


class Pinned:
    """A regular file of the mount that the host needs, open or not, until `release`.

    `file` is its native.File, `inode` its nodeid, which is its st_ino on the mount.
    """

    def __init__(self, in_use: FilesInUse, inode: Inode) -> None:
        """Take over one use of `inode`."""
        assert inode.file is not None
        self._in_use: FilesInUse | None = in_use
        self._node = inode
        self.inode = inode.nodeid
        self.file = inode.file

    def release(self) -> None:
        """End the use of the file.  Safe to call twice.  In the trio thread, before the mount ends."""
        in_use, self._in_use = self._in_use, None
        if in_use is not None:
            in_use.unuse(self._node)


class Pins:
    """Pins files of one mount."""

    def __init__(self, inodes: Inodes, in_use: FilesInUse, threads: Threads) -> None:
        self._inodes = inodes
        self._in_use = in_use
        self._threads = threads
        # Both are None until the file system is mounted: st_dev as clients see it, and the mount's ID in
        # /proc/self/mountinfo.
        self.device: int | None = None
        self.mount_id: int | None = None

    async def pin(self, fd: int) -> Pinned:
        """Keep the file behind `fd`, any descriptor on this mount, in use until it is released.

        The file is identified by its inode, so it need not have a name.  The caller must keep `fd` open
        during the call, and still owns it.

        Raises OSError: EXDEV when `fd` is not on this mount, EINVAL when it is not a regular file, EMFILE
        when no descriptor is left for its page cache, otherwise as open(2) of the backing file.
        """
        mount, ino = fdinfo(fd)
        if mount != self.mount_id:
            # another mount point or namespace may show this file system
            if syscalls.device(fd) != self.device:
                raise OSError(errno.EXDEV, f"descriptor {fd} is not of this mount")
            if ino < 0:  # fstat(2) needs our answer
                ino = (await self._threads.kernel(os.fstat, fd)).st_ino
        inode = self._inodes.get(ino)
        if inode.kind != stat.S_IFREG:
            raise OSError(errno.EINVAL, f"descriptor {fd} is not a regular file")
        self._in_use.use(inode, writable=False)
        pinned = Pinned(self._in_use, inode)
        try:
            self._inodes.make_room(inode)  # for its page cache
        except BaseException:
            pinned.release()
            raise
        return pinned


def fdinfo(fd: int) -> tuple[int, int]:
    """The IDs of mount and inode behind a descriptor of this process, without a request to the file system
    (proc_pid_fdinfo(5); `ino` since Linux 5.14); -1 for a missing field.  OSError EBADF."""
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
