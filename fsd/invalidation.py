# SPDX-License-Identifier: Apache-2.0
"""Dropping what the kernel has cached of an inode.

Owns the order of these calls: one at a time for an inode.  Must not decide when they are needed.

The kernel completes an invalidation only after reads in flight on the same pages, which wait for the
file server: so never in the trio thread, and in threads of their own.
"""

from __future__ import annotations

import logging

import pyfuse3
import trio

from daxfault.fsd.threads import Threads

log = logging.getLogger(__name__)

RETRY_INTERVAL = 1.0  # seconds


class Invalidation:
    """Invalidates inodes of one mount, while `run` runs."""

    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        # what is to be invalidated, by nodeid: True with data, False attributes only
        self._stale: dict[int, bool] = {}
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

    def invalidate(self, nodeid: int, *, data: bool = True) -> None:
        """Have the kernel drop its attributes of the inode, and with `data` its pages, soon."""
        if self._nursery is None:
            return
        self._stale[nodeid] = self._stale.get(nodeid, False) or data
        if nodeid not in self._running:
            self._running.add(nodeid)
            self._nursery.start_soon(self._until_done, nodeid)

    async def _until_done(self, nodeid: int) -> None:
        """A change during one invalidation causes another."""
        try:
            while nodeid in self._stale:
                await self._one(nodeid, self._stale.pop(nodeid))
        finally:
            self._running.discard(nodeid)

    async def _one(self, nodeid: int, data: bool) -> None:
        try:
            await self._threads.kernel(_invalidate_inode, nodeid, data)
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
