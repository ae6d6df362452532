# SPDX-License-Identifier: Apache-2.0
"""Drops the kernel's cache of an inode.

Owns the order of these calls: one at a time for an inode.  Must not decide when they are needed.

The kernel completes an invalidation only after reads in flight on the same pages, which wait for the
file server.  So it must not run in the trio thread, and has its own pool of threads.

The kernel must ask for a new size after it has dropped the pages, not before.  Dropping writes a client's
dirty page up to the size that the kernel uses; past the old size that page contains zeros.
"""

from __future__ import annotations

import logging

import pyfuse3
import trio

from daxfault.fsd.sizes import Sizes
from daxfault.fsd.threads import Threads

log = logging.getLogger(__name__)

RETRY_INTERVAL = 1.0  # seconds


class Invalidation:
    """Invalidates inodes of one mount, while `run` runs."""

    def __init__(self, threads: Threads, sizes: Sizes) -> None:
        self._threads = threads
        self._sizes = sizes
        # pending invalidations, by nodeid: True with data, False attributes only
        self._stale: dict[int, bool] = {}
        self._resized: set[int] = set()
        self._running: set[int] = set()
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve `invalidate` until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None

    def invalidate(self, nodeid: int, *, data: bool = True, size: bool = False) -> None:
        """Have the kernel drop its attributes of the inode, and with `data` its pages, without waiting;
        with `size` it then asks for the size."""
        if self._nursery is None:
            return
        if size:
            self._resized.add(nodeid)
        self._stale[nodeid] = self._stale.get(nodeid, False) or data
        if nodeid not in self._running:
            self._running.add(nodeid)
            self._nursery.start_soon(self._until_done, nodeid)

    async def _until_done(self, nodeid: int) -> None:
        """Invalidate, again if the inode changes meanwhile."""
        try:
            while nodeid in self._stale:
                await self._one(nodeid, self._stale.pop(nodeid))
        finally:
            self._running.discard(nodeid)

    async def _one(self, nodeid: int, data: bool) -> None:
        try:
            await self._threads.kernel(_invalidate_inode, nodeid, data)
            if nodeid in self._resized:
                self._resized.remove(nodeid)
                self._sizes.ask(nodeid)
        except Exception:  # no thread can be started, for instance: the mount goes on
            log.exception("inode %d: the kernel's cache is not invalidated yet", nodeid)
            self._stale[nodeid] = self._stale.get(nodeid, False) or data
            await trio.sleep(RETRY_INTERVAL)


def _invalidate_inode(nodeid: int, data: bool) -> None:
    try:
        pyfuse3.invalidate_inode(nodeid, attr_only=not data)
    except FileNotFoundError:
        pass  # the kernel has forgotten the inode, and its cache with it
    except OSError as exc:
        log.warning("inode %d: the kernel's cache could not be invalidated: %s", nodeid, exc)
