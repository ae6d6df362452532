# SPDX-License-Identifier: Apache-2.0
"""One program: its mmap()s, its msync()s, the end of its address space.

Limits a program to files that it has opened itself.  Reads its mappings from the kernel.  The service
lasts as long as the address space.  It does not end with the connection, since a program may close all
its descriptors, nor with the process, since others may share the address space (clone(2), CLONE_VM).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from typing import Protocol

import trio

from daxfault import native
from daxfault.fsd.threads import cache_fd
from daxfault.native import Engine, Guest, GuestFlag, SyncErrors
from daxfault.native import program_wire as wire
from daxfault.native.uffd import enable as enable_features
from daxfault.native.uffd import is_userfaultfd
from daxfault.native.wire import Message, ProtocolError, reply
from daxfault.vmm.designs import DESIGNS, Design
from daxfault.vmm.host.peer import Peer
from daxfault.vmm.host.process import Process
from daxfault.vmm.host.session import HELLO_SECONDS
from daxfault.vmm.host.uffd_features import bits
from daxfault.vmm.names import DesignName
from daxfault.vmm.programs.descriptors import Descriptors
from daxfault.vmm.programs.files import Files, Held

log = logging.getLogger(__name__)

_LEAVE_SECONDS = 0.05  # from a munmap() to the write-back
_LOOK_SECONDS = 0.5  # between two checks of an address space
_FORK = bits("EVENT_FORK")
# as far as the kernel has them
_FEATURES = bits(
    "PAGEFAULT_FLAG_WP",
    "EVENT_REMAP",
    "EVENT_REMOVE",
    "MISSING_SHMEM",
    "EVENT_UNMAP",
    "THREAD_ID",
    "MINOR_SHMEM",
    "EXACT_ADDRESS",
    "WP_HUGETLBFS_SHMEM",
    "WP_UNPOPULATED",
)


class Observer(Protocol):
    """Records events of programs."""

    async def sigbus(self, pid: int, message: wire.Sigbus) -> None: ...


def tracer_of(pid: int) -> int:
    """The process that traces `pid`; 0 when it is not traced, or gone."""
    with contextlib.suppress(OSError, ValueError), open(f"/proc/{pid}/status") as lines:
        for line in lines:
            if line.startswith("TracerPid:"):
                return int(line.split()[1])
    return 0


def enable(uffd: int) -> tuple[int, bool]:
    """UFFDIO_API on a program's userfaultfd; -> its features, and whether forked children are served:
    EVENT_FORK requires CAP_SYS_PTRACE of the host (fs/userfaultfd.c)."""
    if not is_userfaultfd(uffd):
        raise ProtocolError("the descriptor in its second message is not a userfaultfd")
    features = _FEATURES & native.uffd_probe()
    try:
        enable_features(uffd, features | _FORK)
    except OSError:
        enable_features(uffd, features)
        return features, False
    return features | _FORK, True


class ProgramSession:
    """A program from its attachment to the end of its address space."""

    def __init__(
        self, sock: socket.socket, pid: int, engine: Engine, files: Files, observer: Observer
    ) -> None:
        self.pid = pid
        self.guest: Guest | None = None
        self.design: Design = DESIGNS[DesignName.POISON]
        self._peer = Peer(sock, pid)
        self._descriptors: Descriptors | None = None  # of the peer: the program, or its tracer
        self._process: Process | None = None
        self._deaf = trio.Event()  # no more requests can come
        self._engine = engine
        self._files = files
        self._observer = observer
        self._held: dict[int, Held] = {}
        self._sync_errors: dict[int, SyncErrors] = {}  # by file id: those that the program knows
        self._mapping: Held | None = None  # an mmap() whose address has not been reported yet
        self._closed = False
        # protects the guest: held by a thread that uses it, and to close it
        self._leaving: set[int] = set()  # files whose last mapping may have gone a moment ago
        self._looking = trio.Lock()
        # per program: a locked address space must not delay other programs
        self._threads = trio.CapacityLimiter(2)

    async def greet(self, seconds: float = HELLO_SECONDS) -> Guest:
        """Attach the program; -> the engine's guest.

        Raises ProtocolError, OSError, or trio.TooSlowError when that takes longer than `seconds`.
        """
        with trio.fail_after(seconds):
            message, _ = await self._first(0)
            if not isinstance(message, wire.Attach):
                raise ProtocolError("an attachment comes first")
            if not self.pid:
                raise ProtocolError("a process of another pid namespace: its memory cannot be identified")
            if message.pid != self.pid and tracer_of(message.pid) != self.pid:
                raise ProtocolError(f"says it is process {message.pid}, the kernel says {self.pid}")
            self.pid = message.pid
            async with self._refusing(message):
                self._descriptors = Descriptors(*self._peer.credentials())
                self._process = Process(self.pid)
                device = self._device()
                await self._offer(message, device)
            message, fds = await self._first(1)
        if isinstance(message, wire.Sigbus):
            # a forked child that has mapped nothing itself
            await self._observer.sigbus(self.pid, message)
            await self._peer.send(reply(message))
            raise OSError(errno.EFAULT, "the program died of a mapping")
        if not isinstance(message, wire.Serve):
            self._peer.close_fds(fds)
            raise ProtocolError("a userfaultfd comes second")
        (uffd,) = fds
        async with self._refusing(message):
            try:
                features, children = enable(uffd)
            except BaseException:
                self._peer.close_fds(fds)
                raise
            self.guest = self._engine.guest(uffd, features, self.pid, flags=GuestFlag.PROGRAM)
        await self._peer.send(wire.serve_reply(message, children=children))
        return self.guest

    @contextlib.asynccontextmanager
    async def _refusing(self, message: Message) -> AsyncIterator[None]:
        """Report an OSError of the body to the program, as the answer to `message`."""
        try:
            yield
        except OSError as e:
            with contextlib.suppress(OSError):
                await self._peer.send(reply(message, e.errno or errno.EIO))
            raise

    async def _first(self, fds_max: int) -> tuple[Message, list[int]]:
        received = await self._peer.receive(wire.parse, fds_max)
        if received is None:
            raise ProtocolError("the program closed its connection before it was served")
        return received

    def _device(self) -> int:
        """An open /dev/userfaultfd, so that the program needs no privileges; or -1."""
        try:
            return os.open("/dev/userfaultfd", os.O_RDWR | os.O_CLOEXEC)
        except OSError as e:
            if e.errno in (errno.EMFILE, errno.ENFILE):
                raise
            log.info("program %d: /dev/userfaultfd: %s; it uses the system call", self.pid, e.strerror)
            return -1

    async def _offer(self, message: wire.Attach, device: int) -> None:
        """Send `device` to the program, and close it here."""
        try:
            await self._peer.send(wire.attach_reply(message), device)
        finally:
            if device >= 0:
                os.close(device)

    async def serve(self) -> None:
        """Answer requests until cancelled; gone() returns when none can come any more."""
        try:
            while (received := await self._peer.receive(wire.parse, 0)) is not None:
                await self._answer(received[0])
        except (ProtocolError, OSError) as e:
            log.warning("program %d: %s; its connection is closed, its mappings stay served", self.pid, e)
        self._peer.close()
        await self._mapped_nowhere()  # its result can no longer be reported
        self._deaf.set()
        await trio.sleep_forever()

    async def gone(self) -> None:
        """Return when the address space is gone, or maps no page cache and cannot send requests."""
        assert self.guest is not None
        assert self._process is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._until, self._deaf.wait, nursery.cancel_scope)
            nursery.start_soon(self._until, self._process.ended, nursery.cancel_scope)
        # neither an exec(2) nor the end of the last process of several is reported
        while self.guest.alive and not (self._deaf.is_set() and self._shows_nothing()):
            await trio.sleep(_LOOK_SECONDS)
            # an earlier check may have found mappings of another connection of the same process
            for file in [file for file in self._held if not self._maps(file)]:
                await self.unmapped(file)

    @staticmethod
    async def _until(event: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
        await event()
        scope.cancel()

    def _shows_nothing(self) -> bool:
        return not self._held and self.guest is not None and not self.guest.files()

    async def close(self) -> None:
        """End the service, and poison absent pages.  release() releases the files."""
        self._peer.close()
        if self._descriptors is not None:
            self._descriptors.close()
        if self._process is not None:
            self._process.close()
        self._closed = True
        async with self._looking:
            if self.guest is not None:
                await trio.to_thread.run_sync(self.guest.close, limiter=self._threads)

    async def orphans_gone(self) -> None:
        """Return at once: Files.reap() keeps files that forked children map."""

    async def release(self) -> None:
        """Release the files, after close()."""
        await self._mapped_nowhere()
        while self._held:
            await self._let_go(next(iter(self._held)))

    async def _mapped_nowhere(self) -> None:
        """Drop the pending mmap(), if any: it has failed."""
        held, self._mapping = self._mapping, None
        if held is not None:
            await self._files.let_go(held)

    def name_of(self, file: int) -> str:
        """The program's path for the file with this native id, or the id."""
        held = self._files.find(file)
        return held.name if held else f"file {file}" if file else "-"

    async def unmapped(self, file: int) -> None:
        """The program may have unmapped a file: release it if so.

        mremap() can make mappings that are not reported until they are touched (in place, with length 0,
        with MREMAP_DONTUNMAP).  So the mappings are read from the kernel, after a delay, because a
        program that unmaps a file often maps it again.
        """
        if file in self._leaving:
            return
        self._leaving.add(file)
        await trio.sleep(_LEAVE_SECONDS)
        self._leaving.discard(file)
        async with self._looking:
            if self._closed or file not in self._held or self._maps(file):
                return
            # Do not register it here: another connection of the same process may do it next.
            try:
                if file in await self._files_in(0, wire.ADDRESSES):
                    return
            except OSError as e:
                # it may be mapped: keep it until the address space is gone
                if e.errno not in (errno.ESRCH, errno.ENOENT):
                    log.warning("program %d: its mappings cannot be read: %s", self.pid, e.strerror)
                    return
        await self._let_go(file)

    def _maps(self, file: int) -> bool:
        if self._mapping is not None and self._mapping.file.id == file:
            return True
        return self.guest is not None and file in self.guest.files()

    async def _let_go(self, file: int) -> None:
        # an mmap() may have come meanwhile
        held = self._held.pop(file, None) if self._closed or not self._maps(file) else None
        if held is not None:
            self._sync_errors.pop(file, None)
        if held is not None:
            await self._files.let_go(held)

    # ---- requests

    async def _answer(self, message: Message) -> None:
        try:
            if isinstance(message, wire.Mmap):
                await self._mmap(message)
            elif isinstance(message, wire.Mapped):
                await self._mapped(message)
            elif isinstance(message, wire.Msync):
                await self._msync(message)
            elif isinstance(message, wire.Sigbus):
                await self._observer.sigbus(self.pid, message)
                await self._peer.send(reply(message))
            else:
                raise ProtocolError(f"{type(message).__name__} comes once")
        except OSError as e:
            log.info("program %d: %s refused: %s", self.pid, type(message).__name__, e)
            await self._peer.send(reply(message, e.errno or errno.EIO))

    async def _mmap(self, message: wire.Mmap) -> None:
        if self._mapping is not None:
            raise ProtocolError("an mmap() while another is pending")
        assert self._descriptors is not None
        path, flags = self._descriptors.open(message.tid, message.fd)
        try:
            if flags & os.O_PATH:
                raise OSError(errno.EBADF, "opened with O_PATH")
            writable = flags & os.O_ACCMODE == os.O_RDWR
            # as the kernel (mm/mmap.c, do_mmap())
            if flags & os.O_ACCMODE == os.O_WRONLY or (message.shared and message.write and not writable):
                raise OSError(errno.EACCES, "the file is not open for that")
            # d_path() sends no request to the file system
            held = await self._files.hold(path, lambda: os.readlink(f"/proc/self/fd/{path}"))
        finally:
            os.close(path)
        try:
            stores = message.shared and writable
            async with held.lock:
                cache = await cache_fd(held.file, writable=stores, sized=True)
            try:
                await self._peer.send(wire.mmap_reply(message, private=not stores), cache)
            finally:
                os.close(cache)
        except BaseException:
            await self._files.let_go(held)
            raise
        self._mapping = held

    async def _mapped(self, message: wire.Mapped) -> None:
        assert self.guest is not None
        held, self._mapping = self._mapping, None
        try:
            found = await self._adopt(message) if message.len else 0
            if held is not None and message.len and not found:
                raise OSError(errno.EINVAL, f"no page cache is mapped at {message.start:#x}")
        finally:
            await self._keep(held)
        await self._peer.send(reply(message))

    async def _adopt(self, message: wire.Mapped) -> int:
        """In a thread: a task that waits for this mount may hold the lock of the address space."""
        assert self.guest is not None
        adopt = functools.partial(self.guest.adopt, self.pid, message.start, message.len)
        return await trio.to_thread.run_sync(adopt, limiter=self._threads)

    async def _files_in(self, start: int, length: int) -> Collection[int]:
        """The files that the process maps in the range.  In a thread, as _adopt()."""
        look = functools.partial(native.process_files, self.pid, start, length)
        return await trio.to_thread.run_sync(look, limiter=self._threads)

    async def _keep(self, new: Held | None) -> None:
        """Hold each file that the program maps once: `new`, and the files that a forked child inherits."""
        assert self.guest is not None
        for id in self.guest.files() - self._held.keys():
            held = new if new is not None and new.file.id == id else self._files.find(id)
            if held is None:
                continue  # its last user has just released it; the pages stay while they are mapped
            self._held[id] = held
            self._sync_errors[id] = held.file.sync_errors()
            if held is new:
                new = None
            else:
                held.users += 1
        if new is not None:
            await self._files.let_go(new)

    async def _msync(self, message: wire.Msync) -> None:
        assert self.guest is not None
        # In a thread, as _adopt().  Of the process, not of its guest: a forked child that is served as its
        # parent's, or a move that is not acted upon yet, must not pass for nothing to be done.
        ids = await self._files_in(message.start, message.len)
        for id in ids:
            if (held := self._files.find(id)) is not None:
                await self._files.sync(held, self._sync_errors.setdefault(id, held.file.sync_errors()))
        await self._peer.send(reply(message))
