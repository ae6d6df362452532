# SPDX-License-Identifier: Apache-2.0
"""Which backing file systems answer from the kernel's own memory.

Owns what is known of each device.  Must not call the file systems themselves: one may not answer.

A request on an inode of another file system first asks that for the inode's attributes, in a thread.  As long
as there is no answer, only those wait who asked.  After it the kernel knows the attributes for a while, and
what the trio thread does next does not wait; a server that stops in between holds up the mount.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import trio

from daxfault.fsd.inodes import Inode, Inodes

LOCAL = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "tmpfs", "ramfs"})
DEVICE_THREADS = 8


class Locality:
    """The backing file systems of one mount, by device."""

    def __init__(self, inodes: Inodes) -> None:
        self._inodes = inodes
        self._others = False  # a device is not local
        self._threads: dict[int, trio.CapacityLimiter | None] = {}  # None: local

    async def ready(self, nodeid: int, name: object = None) -> None:
        """Return when the file system of the inode, and of what is known as `name` in it, has answered."""
        node = self._inodes.find(nodeid)
        if node is None:
            return
        await self._asked(node)
        if self._others and isinstance(name, bytes):
            for child in self._inodes:
                if child.parent is node and child.name == name and child.dev != node.dev:
                    await self._asked(child)
                    break

    async def _asked(self, node: Inode) -> None:
        limiter = self._threads[node.dev] if node.dev in self._threads else self._new(node.dev)
        if limiter is None:
            return
        fds = [os.dup(self._inodes.fd(node))]
        try:
            await trio.to_thread.run_sync(_ask, fds, limiter=limiter, abandon_on_cancel=True)
        finally:
            while fds:  # no thread has begun
                os.close(fds.pop())

    def _new(self, dev: int) -> trio.CapacityLimiter | None:
        types = _types()
        # a subvolume of btrfs has a device number that is nowhere to be read
        kind = types.get(dev) or types.get(self._inodes.root.dev, "btrfs")
        self._threads[dev] = None if kind in LOCAL else trio.CapacityLimiter(DEVICE_THREADS)
        self._others |= kind not in LOCAL
        return self._threads[dev]


def _ask(fds: list[int]) -> None:
    """What is wrong with the file the request itself will find."""
    with contextlib.suppress(IndexError, OSError):  # cancelled; or an answer as good as any
        fd = fds.pop()
        try:
            os.fstat(fd)
        finally:
            os.close(fd)


def _types() -> dict[int, str]:
    found = {}
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        fields, _, after = line.partition(b" - ")
        major, _, minor = fields.split()[2].partition(b":")
        found[os.makedev(int(major), int(minor))] = after.split()[0].decode().partition(".")[0]
    return found
