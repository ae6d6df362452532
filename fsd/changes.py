# SPDX-License-Identifier: Apache-2.0
"""Noticing that a file in use was changed behind the mount.

Owns the decision that a file has changed.  Must not answer requests, nor know the guests that map a file.

A change is first reported to the native.File (recheck), which updates the guests' mappings, then to the
kernel, whose pages and attributes of the inode are invalidated.

A store through a mapping of the backing file changes the times only if the page was clean.  After such a
store was noticed, the kernel's pages are dropped at every poll for as long as a page may stay dirty.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

import trio

from daxfault import native
from daxfault.fsd.in_use import FilesInUse
from daxfault.fsd.inodes import Inode
from daxfault.fsd.invalidation import Invalidation
from daxfault.fsd.threads import Threads
from daxfault.fsd.watch import ATTRIBUTES, Watch

Changed = list[int]  # enum df_change bits, of each file

log = logging.getLogger(__name__)

# How long stores to a page may change no times: the page is written, and so write-protected again, after
# vm.dirty_expire_centisecs (30 s) and vm.dirty_writeback_centisecs (5 s), plus the time of the disk.
STORES_FOR = 60.0


class Changes:
    """Notices changes of the files in use of one mount."""

    def __init__(
        self, in_use: FilesInUse, watch: Watch, invalidation: Invalidation, threads: Threads
    ) -> None:
        self._in_use = in_use
        self._watch = watch
        self._invalidation = invalidation
        self._threads = threads
        self._nursery: trio.Nursery | None = None
        self._looking: set[Inode] = set()  # files that are not local, and are being looked at

    async def recheck(self, inode: Inode) -> bool:
        """Check the file of `inode`, which is in use; -> whether it was changed behind the mount.  If so,
        notifies guests and the kernel."""
        assert inode.file is not None
        inode.uses += 1
        try:
            change = await self._threads.look(inode.file, inode.file.recheck)
        finally:
            self._in_use.unuse(inode)
        if not change:
            return False
        inode.event_due = True
        self._invalidation.invalidate(inode.nodeid, size=bool(change & native.CHANGED_SIZE))
        return True

    async def run(self) -> None:
        """Serve changes behind the mount until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await self._watch.run(self._look_at)

    async def _look_at(self, found: Sequence[tuple[Inode, int]]) -> bool:
        """Check files that may have changed, each with its events (watch.py); True when one has.

        Those that are not local are not waited for: one may not answer.
        """
        assert self._nursery is not None
        local = [(inode, events) for inode, events in found if inode.file is None or inode.file.local]
        for inode, events in found:
            if inode.file is not None and not inode.file.local and inode not in self._looking:
                self._looking.add(inode)
                self._nursery.start_soon(self._look_apart, inode, inode.file, events)
        return await self._check(local, self._threads.storage)

    async def _look_apart(self, inode: Inode, file: native.File, events: int) -> None:
        try:
            await self._check([(inode, events)], functools.partial(self._threads.of, file))
        finally:
            self._looking.discard(inode)

    async def _check(
        self,
        found: Sequence[tuple[Inode, int]],
        run: Callable[[Callable[[], list[int]]], Awaitable[list[int]]],
    ) -> bool:
        """In a thread: dropping the pages past a new end of file can take long."""
        files = [inode.file for inode, _ in found]
        for inode, _ in found:
            inode.uses += 1
        try:
            try:
                changes = await run(lambda: [_recheck(file) for file in files])
            except Exception:  # no thread can be started, for instance: the mount goes on
                log.exception("%d files: cannot be checked, so they are taken for changed", len(files))
                changes = [native.CHANGED_CONTENT] * len(files)
            for (inode, events), change in zip(found, changes, strict=True):
                self._report(inode, events, change)
        finally:
            for inode, _ in found:
                self._in_use.unuse(inode)
        return any(changes)

    def _report(self, inode: Inode, events: int, change: int) -> None:
        data = bool(change) or (not events and time.monotonic() < inode.stores_until)
        if not events and (change or inode.event_due):
            inode.stores_until = time.monotonic() + STORES_FOR
        if events != ATTRIBUTES:
            inode.event_due = False
        if data or events & ATTRIBUTES:
            self._invalidation.invalidate(inode.nodeid, data=data, size=bool(change & native.CHANGED_SIZE))


def note_own_change(inode: Inode) -> None:
    """Note that a client's request changed attributes of `inode`: ignore its new ctime."""
    if inode.file is not None:
        inode.file.attributes_set()


def _recheck(file: native.File | None) -> int:
    if file is None:
        return 0
    try:
        return file.recheck()
    except OSError as exc:
        log.warning("file %d: fstat: %s", file.id, exc)
        return native.CHANGED_SIZE | native.CHANGED_CONTENT
