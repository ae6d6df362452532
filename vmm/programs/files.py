# SPDX-License-Identifier: Apache-2.0
"""Files that programs map, each held once however many map it.

Owns when a file's page cache is released: some time after the last program has released the file, whose
stores are written back at once.  Must not know what a program is.
"""

from __future__ import annotations

import errno
import functools
import logging
from collections.abc import Awaitable, Callable, Iterator

import trio

from daxfault.native import File, SyncErrors
from daxfault.vmm.errors import logged
from daxfault.vmm.host.session import FileServer, Pinned

log = logging.getLogger(__name__)

# A program that maps the file again soon finds its pages, as in the kernel's page cache.
LINGER_SECONDS = 1.0
_LOOK_SECONDS = 0.5

# Threads that wait for backing files, none of them from trio's common limit: a file whose storage does not
# answer holds up those who sync it, and nobody else.
SYNC_THREADS = 4  # of each file, for msync(2)
WRITE_BACK_THREADS = 64  # of all files together, one a file


class Held:
    """A file that programs map, or did a moment ago.  `users` counts holds."""

    def __init__(self, pinned: Pinned, name: str) -> None:
        self.pinned = pinned
        self.name = name
        self.users = 0
        self.saving = 0  # write-backs under way
        self.left = 0.0  # trio.current_time() when the last user released it
        # held to hand out the page cache, and to release it
        self.lock = trio.Lock()
        self.syncing = trio.CapacityLimiter(SYNC_THREADS)

    @property
    def file(self) -> File:
        return self.pinned.file


class Files:
    """The files of all programs of a host."""

    def __init__(self, server: FileServer, opened: Callable[[Held], None]) -> None:
        """`opened` is called with each file that is new here."""
        self._server = server
        self._opened = opened
        self._held: dict[int, Held] = {}
        self._writing_back = trio.CapacityLimiter(WRITE_BACK_THREADS)

    def __iter__(self) -> Iterator[Held]:
        return iter(tuple(self._held.values()))

    @property
    def used(self) -> bool:
        """A program or a forked child of one maps a file, or stores are being written back."""
        return any(held.users or held.saving or held.file.mapped for held in self)

    async def hold(self, fd: int, name: Callable[[], str]) -> Held:
        """Hold the file behind a program's own descriptor; `name` returns its path, called only if it is
        news.  OSError as FileServer.pin()."""
        pinned = await self._server.pin(fd)
        held = self._held.get(pinned.file.id)
        if held is None:
            held = self._held[pinned.file.id] = Held(pinned, name())
            self._opened(held)
        else:
            pinned.release()
        held.users += 1
        return held

    async def let_go(self, held: Held) -> None:
        """Release a hold.  The last one writes back what was stored."""
        held.users -= 1
        held.left = trio.current_time()
        if held.users == 0:
            await self._write_back(held)

    def find(self, file: int) -> Held | None:
        """The file with this native id."""
        return self._held.get(file)

    def _is_held(self, held: Held) -> bool:
        """Not given up yet; to be asked under `held.lock`."""
        return self._held.get(held.file.id) is held

    async def write_back(self) -> None:
        """Write back what was stored to each file.  Tries again the next time what fails; msync and fsync
        report the error."""
        async with trio.open_nursery() as nursery:
            self.start_write_back(nursery)

    def start_write_back(self, nursery: trio.Nursery) -> None:
        """The same without waiting for it; leaves out the files that are being written back."""
        for held in self:
            if not held.saving:
                nursery.start_soon(self._surely, self._write_back, held)

    @staticmethod
    async def _surely(step: Callable[[Held], Awaitable[None]], held: Held) -> None:
        with logged(log, "%s: writing back", held.name):
            await step(held)

    async def sync(self, held: Held, seen: SyncErrors) -> None:
        """Write what was stored to the file to its disk.  OSError as File.sync()."""
        held.users += 1  # it may be unmapped meanwhile
        try:
            sync = functools.partial(held.file.sync, seen, datasync=True)
            await trio.to_thread.run_sync(sync, limiter=held.syncing)
        finally:
            await self.let_go(held)

    async def _write_back(self, held: Held) -> None:
        held.saving += 1
        try:
            with trio.CancelScope(shield=True):
                async with held.lock:
                    if not self._is_held(held):
                        return  # given up meanwhile, written back and perhaps closed
                    written = await trio.to_thread.run_sync(held.file.write_back, limiter=self._writing_back)
        except OSError as e:
            written = True  # in part
            log.warning("%s: not written back yet: %s", held.name, e.strerror)
        finally:
            held.saving -= 1
        if written:
            self._server.mapping_changed(held.pinned.inode)  # its times have changed

    async def reap(self) -> None:
        """Release, for ever, files that have been unmapped for some time; all files when cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                while True:
                    await trio.sleep(_LOOK_SECONDS)
                    # the last munmap() of a forked child is not reported
                    for held in self:
                        lingers = trio.current_time() - held.left <= LINGER_SECONDS
                        if not (held.users or lingers or held.lock.locked()):
                            nursery.start_soon(self._surely, self._retire, held)
        finally:
            with trio.CancelScope(shield=True):
                async with trio.open_nursery() as nursery:
                    for held in self:
                        nursery.start_soon(self._surely, self._retire, held)

    async def _retire(self, held: Held) -> None:
        """Unless somebody uses it.  Where writing back fails it stays, to be tried again."""
        async with held.lock:
            if not self._is_held(held):
                return
            try:
                written = await trio.to_thread.run_sync(held.file.retire, limiter=self._writing_back)
            except OSError as e:
                if e.errno != errno.EBUSY:  # mapped: by a forked child, or by a guest of another kind
                    log.error("%s: what programs stored is not written back: %s", held.name, e.strerror)
                return
            if held.users == 0:
                held.file.inject_clear()
                del self._held[held.file.id]
                held.pinned.release()
        if written:
            self._server.mapping_changed(held.pinned.inode)
