# SPDX-License-Identifier: Apache-2.0
"""Files that programs map, each held once however many map it.

Owns when a file's page cache is given up: when the last of them has let go, after what
they stored was written back.  Must not know what a program is.
"""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import AsyncIterator, Callable, Iterator

import trio

from native import File
from vmm.session import FileServer, Pinned

log = logging.getLogger(__name__)


class Held:
    """A file that programs map, or are about to.  `users` counts holds."""

    def __init__(self, pinned: Pinned, name: str) -> None:
        self.pinned = pinned
        self.id = pinned.file.id
        self.name = name
        self.users = 0
        # taken to hand out the page cache, and to give it up
        self.lock = trio.Lock()

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

    def __iter__(self) -> Iterator[Held]:
        return iter(tuple(self._held.values()))

    async def hold(self, fd: int, name: str) -> Held:
        """Hold the file behind a program's own descriptor, which it knows as `name`.  OSError as
        FileServer.pin()."""
        pinned = await self._server.pin(fd)
        held = self._held.get(pinned.file.id)
        if held is None:
            held = self._held[pinned.file.id] = Held(pinned, name)
            self._opened(held)
        else:
            pinned.release()
        held.users += 1
        return held

    @contextlib.asynccontextmanager
    async def using(self, held: Held) -> AsyncIterator[File | None]:
        """Hold it while the body runs; None when it was given up already."""
        if self._held.get(held.id) is not held:
            yield None
            return
        held.users += 1
        try:
            yield held.file
        finally:
            await self.let_go(held)

    async def let_go(self, held: Held) -> None:
        """Give a hold back.  Not to be cancelled: a store would be lost."""
        held.users -= 1
        with trio.CancelScope(shield=True):
            while self._unused(held) and held.file.mapped_by_children:  # noqa: ASYNC110 - see below
                # They have no connection and nobody tells of their end, for which the engine looks
                # as often.  Whoever else comes for the file meanwhile takes it over.
                await trio.sleep(0.5)
            async with held.lock:
                if not self._unused(held):
                    return
                await self._retire(held)
                if held.users == 0:
                    held.file.inject_clear()
                    del self._held[held.id]
                    held.pinned.release()

    def _unused(self, held: Held) -> bool:
        """Nobody holds it, and it was not given up by another who let it go."""
        return held.users == 0 and self._held.get(held.id) is held

    async def _retire(self, held: Held) -> None:
        try:
            await trio.to_thread.run_sync(held.file.retire)
        except OSError as e:
            if e.errno != errno.EBUSY:  # mapped by a guest of another kind
                log.error("%s: what programs stored was not written back: %s", held.name, e.strerror)
        self._server.mapping_changed(held.pinned.inode)

    def changed(self, held: Held) -> None:
        """A program may store to the file from now on."""
        self._server.mapping_changed(held.pinned.inode)

    def find(self, file: int) -> Held | None:
        """The file with this native id."""
        return self._held.get(file)

    async def write_back(self) -> None:
        """Write back what was stored to each file.  What fails is tried again the next time, and is told to
        who asks for it (msync, fsync)."""
        for held in self:
            async with self.using(held) as file:
                try:
                    if file is not None and file.mapped_writable:
                        await trio.to_thread.run_sync(file.write_back)
                except OSError as e:
                    log.warning("%s: not written back yet: %s", held.name, e.strerror)
