# SPDX-License-Identifier: Apache-2.0
"""The worker threads of one mount.

Owns how many there are, and which calls may use which.  Must not know what the calls do.

A call on names or attributes is made at once, in the trio thread: it costs less than a switch to
another thread, and it makes each of these requests one atomic step on the inode table.  A call that
waits for storage (a read that misses the page cache, a write when storage is slow, truncate, fsync,
listing a directory) runs in a worker thread, so that one slow file does not stop the mount.  A backing
file system that is not local is first asked in a thread whether it answers at all (locality.py).

Each file has a few threads of its own: one whose backing file does not answer holds up those who wait for
it, and no other file.  A call that waits for an answer of this mount (cache invalidation waits for reads
in flight) must never take the thread that this answer needs: these have a pool of their own.

A call that does not return holds up no end of the mount either: END_SECONDS after its task was cancelled its
thread is abandoned, and ends with the process.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable
from typing import TypeVar
from weakref import WeakKeyDictionary

import outcome
import trio

from daxfault import native

log = logging.getLogger(__name__)

T = TypeVar("T")

STORAGE_THREADS = 32  # for what is no native.File
FILE_THREADS = 8  # of each
KERNEL_THREADS = 8
END_SECONDS = 5.0


class Threads:
    """The threads of one mount."""

    def __init__(self) -> None:
        self._storage = trio.CapacityLimiter(STORAGE_THREADS)
        self._kernel = trio.CapacityLimiter(KERNEL_THREADS)
        self._files: WeakKeyDictionary[native.File, trio.CapacityLimiter] = WeakKeyDictionary()

    async def storage(self, call: Callable[..., T], *args: object) -> T:
        """Run `call(*args)`, which waits for storage, in a worker thread."""
        return await to_its_end(functools.partial(call, *args), self._storage)

    async def of(self, file: native.File, call: Callable[..., T], *args: object) -> T:
        """Run `call(*args)`, which waits for the storage of `file`, in one of the file's threads."""
        limiter = self._files.setdefault(file, trio.CapacityLimiter(FILE_THREADS))
        return await to_its_end(functools.partial(call, *args), limiter)

    async def look(self, file: native.File, call: Callable[..., T], *args: object) -> T:
        """Run `call(*args)`, which looks at the backing file: here if that cannot hang, else as `of`."""
        return call(*args) if file.local else await self.of(file, call, *args)

    async def kernel(self, call: Callable[..., T], *args: object) -> T:
        """Run `call(*args)`, which may wait for an answer of this mount, in a worker thread.

        When cancelled, the thread is abandoned: it ends when the mount does.
        """
        return await trio.to_thread.run_sync(call, *args, limiter=self._kernel, abandon_on_cancel=True)


async def cache_fd(file: native.File, *, writable: bool, sized: bool = False) -> int:
    """File.cache_fd(), which looks at the backing file: in a thread if that may hang."""
    call = functools.partial(file.cache_fd, writable=writable, sized=sized)
    if file.local:
        return call()
    return await trio.to_thread.run_sync(call, limiter=trio.CapacityLimiter(1))


async def to_its_end(call: Callable[[], T], limiter: trio.CapacityLimiter) -> T:
    """Run `call()` in a worker thread, to its end; when cancelled, END_SECONDS longer at most."""
    ended = trio.Event()
    results: list[outcome.Outcome[T]] = []

    def deliver(result: outcome.Outcome[T]) -> None:
        results.append(result)
        ended.set()

    async with limiter:
        token = trio.lowlevel.current_trio_token()
        trio.lowlevel.start_thread_soon(call, lambda result: _report(token, deliver, result))
        try:
            await ended.wait()
        except trio.Cancelled:
            with trio.move_on_after(END_SECONDS, shield=True):
                await ended.wait()
            if not results:
                log.error("%s: has not returned after %g s, and is abandoned", call, END_SECONDS)
                raise
    return results[0].unwrap()


def _report(
    token: trio.lowlevel.TrioToken, deliver: Callable[[outcome.Outcome[T]], None], result: outcome.Outcome[T]
) -> None:
    with contextlib.suppress(trio.RunFinishedError):  # it was abandoned
        token.run_sync_soon(deliver, result)
