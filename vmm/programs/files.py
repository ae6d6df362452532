# SPDX-License-Identifier: Apache-2.0
"""The files that programs map; each is held once for all programs.

Owns the release of a file's page cache.  When the last program releases a file, its stores are written
back at once, and its page cache is released some time later.  Must not know programs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import logging
import os
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import trio

from daxfault.native import File, SyncErrors
from daxfault.vmm.errors import logged
from daxfault.vmm.host.session import FileServer, Pinned

log = logging.getLogger(__name__)

T = TypeVar("T")

# The pages stay for a program that maps the file again soon, as in the kernel's page cache.
LINGER_SECONDS = 1.0
_LOOK_SECONDS = 0.5

# Threads that wait for backing files, none of them from trio's common limit: a file whose storage does not
# answer holds up those who sync it, and nobody else.
SYNC_THREADS = 4  # of each file, for msync(2)
WRITE_BACK_THREADS = 64  # of all files together, one a file
END_THREADS = 64
ASKED_SECONDS = 5.0  # that storage may take for a write-back that somebody waits for
END_SECONDS = 30.0  # that storage may take for the last write-back


@dataclasses.dataclass(frozen=True, slots=True)
class Unwritten:
    """What programs stored to a file, and could not be written back."""

    file: str
    bytes: int
    error: int  # errno

    def __str__(self) -> str:
        return f"{self.file}: {self.bytes} bytes that were stored are not written: {os.strerror(self.error)}"

    def as_json(self) -> dict[str, Any]:
        return {"file": self.file, "bytes": self.bytes, "errno": errno.errorcode.get(self.error, self.error)}


class Held:
    """A file that programs map, or mapped shortly before.  `users` counts holds."""

    def __init__(self, pinned: Pinned, name: str) -> None:
        self.pinned = pinned
        self.name = name
        self.users = 0
        self.saving = 0  # write-backs in progress
        self.error = 0  # errno of the last write-back, 0: it wrote all
        self.left = 0.0  # trio.current_time() when the last user released it
        # protects sending and releasing the page cache
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
        self._nursery: trio.Nursery | None = None  # of reap()
        self._shields: set[trio.CancelScope] = set()  # of write-backs under way
        self._ended = False
        self.lost: list[Unwritten] = []  # once it has ended

    def __iter__(self) -> Iterator[Held]:
        return iter(tuple(self._held.values()))

    @property
    def used(self) -> bool:
        """A program, or its forked child, maps a file, or stores are being written back."""
        return any(held.users or held.saving or held.file.mapped for held in self)

    async def hold(self, fd: int, name: Callable[[], str]) -> Held:
        """Hold the file behind a program's descriptor.  `name` returns its path, and is called only if the
        file is not held yet.  OSError as FileServer.pin()."""
        if self._ended:
            raise OSError(errno.ENODEV, "the service has ended")
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
        """Release a hold.  Releasing the last one writes stores back."""
        held.users -= 1
        held.left = trio.current_time()
        if held.users == 0:
            await self._write_back(held)

    def find(self, file: int) -> Held | None:
        """The file with this native id."""
        return self._held.get(file)

    def _is_held(self, held: Held) -> bool:
        """Whether the file is still held; call it under `held.lock`."""
        return self._held.get(held.file.id) is held

    async def write_back(self) -> None:
        """Write stores back to each file.  What fails is tried again by the next call; msync, fsync and
        close report the error."""
        done = {held: trio.Event() for held in self}
        async with contextlib.AsyncExitStack() as stack:
            nursery = self._nursery
            if nursery is None:
                nursery = await stack.enter_async_context(trio.open_nursery())
            for held, event in done.items():
                nursery.start_soon(self._write_back_once, held, event)
            with trio.move_on_after(ASKED_SECONDS):
                for event in done.values():
                    await event.wait()
        for held, event in done.items():
            if not event.is_set():
                _failed(held, OSError(errno.ETIMEDOUT, "its storage does not answer"))

    async def _write_back_once(self, held: Held, done: trio.Event) -> None:
        await self._surely(self._write_back, held)
        done.set()

    def start_write_back(self, nursery: trio.Nursery) -> None:
        """The same without waiting for it; leaves out the files that are being written back."""
        for held in self:
            if not held.saving:
                nursery.start_soon(self._surely, self._write_back, held)

    @staticmethod
    async def _surely(step: Callable[[Held], Awaitable[None]], held: Held) -> None:
        with logged(log, "%s: writing back", held.name):
            await step(held)

    async def unwritten(self) -> list[Unwritten]:
        """The files that could not be written back the last time."""
        failed = [held for held in self if held.error]
        left = await trio.to_thread.run_sync(lambda: [_left(held) for held in failed])
        return [Unwritten(h.name, bytes, h.error) for h, bytes in zip(failed, left, strict=True) if bytes]

    async def sync(self, held: Held, seen: SyncErrors) -> None:
        """Write stores to the file's disk.  OSError as File.sync()."""
        held.users += 1  # it may be unmapped meanwhile
        try:
            sync = functools.partial(held.file.sync, seen, datasync=True)
            await self._in_thread(sync, held.syncing)
            self._server.mapping_changed(held.pinned.inode)
        finally:
            await self.let_go(held)

    async def _write_back(self, held: Held) -> None:
        held.saving += 1
        try:
            written = False
            with self._until_ended():
                async with held.lock:
                    if self._ended or not self._is_held(held):
                        return  # released meanwhile, after a write-back
                    written = await self._in_thread(held.file.write_back, self._writing_back)
                    _wrote(held)
        except OSError as e:
            written = True  # partly
            _failed(held, e)
        finally:
            held.saving -= 1
        if written:
            self._server.mapping_changed(held.pinned.inode)  # its times have changed

    @contextlib.contextmanager
    def _until_ended(self) -> Iterator[None]:
        """Shields the body, until the host has ended."""
        with trio.CancelScope(shield=True) as scope:
            self._shields.add(scope)
            try:
                yield
            finally:
                self._shields.discard(scope)

    @staticmethod
    async def _in_thread(call: Callable[[], T], limiter: trio.CapacityLimiter) -> T:
        """What does not return is left to itself when the host ends."""
        return await trio.to_thread.run_sync(call, limiter=limiter, abandon_on_cancel=True)

    async def reap(self) -> None:
        """Until cancelled, release files that have been unmapped for some time."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            while True:
                await trio.sleep(_LOOK_SECONDS)
                # the last munmap() of a forked child is not reported
                for held in self:
                    lingers = trio.current_time() - held.left <= LINGER_SECONDS
                    if not (held.users or lingers or held.lock.locked()):
                        nursery.start_soon(self._surely, self._retire, held)

    async def end(self) -> None:
        """Write back for the last time, and take the pages away: a program that goes on gets SIGBUS.

        What could not be written is `lost`, also where storage does not answer for END_SECONDS.
        """
        self._ended = True
        limiter = trio.CapacityLimiter(END_THREADS)
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                for held in self:
                    nursery.start_soon(self._surely, functools.partial(self._end, limiter), held)
        for shield in self._shields:
            shield.cancel()

    async def _end(self, limiter: trio.CapacityLimiter, held: Held) -> None:
        unwritten = 0

        def last() -> tuple[int, int]:
            nonlocal unwritten
            unwritten = _left(held)
            lost, error = held.file.end()
            return (lost if unwritten else 0), error

        with trio.move_on_after(END_SECONDS) as patience:
            lost, error = await trio.to_thread.run_sync(last, limiter=limiter, abandon_on_cancel=True)
        if patience.cancelled_caught:
            lost, error = unwritten, errno.ETIMEDOUT
        if lost:
            self.lost.append(Unwritten(held.name, lost, error))

    async def _retire(self, held: Held) -> None:
        """Release the file unless it is in use.  If the write-back fails, it stays, and is tried again."""
        async with held.lock:
            if self._ended or not self._is_held(held):
                return
            try:
                written = await self._in_thread(held.file.retire, self._writing_back)
            except OSError as e:
                if e.errno != errno.EBUSY:  # mapped: by a forked child, or by a guest of another kind
                    _failed(held, e)
                return
            if held.users == 0:
                held.file.inject_clear()
                del self._held[held.file.id]
                held.pinned.release()
        if written:
            self._server.mapping_changed(held.pinned.inode)


def _left(held: Held) -> int:
    """Bytes that are not written back; of a file that nobody can open any more, 0."""
    try:
        # whether it has a name is asked of no server, which may not answer
        named = not held.file.local or os.fstat(held.file.fileno()).st_nlink
        return held.file.unwritten if named else 0
    except (OSError, ValueError):  # it was closed meanwhile
        return 0


def _wrote(held: Held) -> None:
    if held.error:
        log.warning("%s: stores of programs are now written back", held.name)
    held.error = 0


def _failed(held: Held, error: OSError) -> None:
    """Log the first of a series of equal errors; the write-back is tried again."""
    if held.error != error.errno:
        log.warning("%s: stores of programs are not written back yet: %s", held.name, error.strerror)
    held.error = error.errno or errno.EIO
