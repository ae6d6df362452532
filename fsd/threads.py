# SPDX-License-Identifier: Apache-2.0
"""The worker threads of one mount.

Owns how many there are, and which calls may use which.  Must not know what the calls do.

A call on names or attributes is made at once, in the trio thread: it costs less than a switch to
another thread, and it makes each of these requests one atomic step on the inode table.  A call that
waits for storage (a read that misses the page cache, a write when storage is slow, truncate, fsync,
listing a directory) runs in a worker thread, so that one slow file does not stop the mount.  A backing
file system that does not even answer stat(2) does stop it.

There are two pools.  A call that waits for an answer of this mount (cache invalidation waits for reads
in flight) must never take the thread that this answer needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import trio

T = TypeVar("T")

STORAGE_THREADS = 32
KERNEL_THREADS = 8


class Threads:
    """The two pools."""

    def __init__(self) -> None:
        self._storage = trio.CapacityLimiter(STORAGE_THREADS)
        self._kernel = trio.CapacityLimiter(KERNEL_THREADS)

    async def storage(self, call: Callable[..., T], *args: object) -> T:
        """Run `call(*args)`, which waits for storage, in a worker thread."""
        return await trio.to_thread.run_sync(call, *args, limiter=self._storage)

    async def kernel(self, call: Callable[..., T], *args: object) -> T:
        """Run `call(*args)`, which may wait for an answer of this mount, in a worker thread.

        When cancelled, the thread is abandoned: it ends when the mount does.
        """
        return await trio.to_thread.run_sync(call, *args, limiter=self._kernel, abandon_on_cancel=True)
