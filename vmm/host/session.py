# SPDX-License-Identifier: Apache-2.0
"""One guest's connection: its files, its window, its end.

Limits a guest to files that it has opened itself, in the ranges that it requested.  A peer that breaks
the protocol loses its connection; other guests are not affected.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import functools
import logging
import os
import socket
from typing import Protocol

import trio

from daxfault.fsd.threads import cache_fd
from daxfault.native import Abi, Engine, File, Guest
from daxfault.native import guest_wire as wire
from daxfault.native.uffd import is_userfaultfd
from daxfault.native.wire import Message, ProtocolError, reply
from daxfault.vmm.designs import Design
from daxfault.vmm.host.peer import Peer
from daxfault.vmm.host.process import Process
from daxfault.vmm.host.uffd_features import bits

log = logging.getLogger(__name__)

OPEN_MAX = 1024
HELLO_SECONDS = 10.0
_ORPHANS_SECONDS = 0.5
# the thread to notify, and the address to report
_NEEDED = bits("THREAD_ID", "EXACT_ADDRESS")


class Pinned(Protocol):
    """A file kept alive for a guest; fsd.Pinned is one."""

    file: File
    inode: int

    def release(self) -> None: ...


class FileServer(Protocol):
    """The source of guests' files; fsd.Filesystem is one."""

    async def pin(self, fd: int) -> Pinned: ...

    def mapping_changed(self, inode: int) -> None: ...


@dataclasses.dataclass(slots=True)
class Opened:
    """A file handle of a guest."""

    pinned: Pinned
    name: str
    writable: bool


@dataclasses.dataclass(slots=True)
class Mapping:
    """A range of the window; `moffset` and `len` in bytes."""

    moffset: int
    len: int
    opened: Opened


def check_uffd(fd: int) -> int:
    """Raise ProtocolError unless `fd` is a userfaultfd that reports thread and address; -> its features."""
    with contextlib.suppress(OSError):
        if is_userfaultfd(fd):
            with open(f"/proc/self/fdinfo/{fd}") as lines:
                api = next((line for line in lines if line.startswith("API:")), "")
            # fs/userfaultfd.c, userfaultfd_show_fdinfo()
            features = int(api.split(":")[2], 16) if api.count(":") >= 3 else 0
            if features & _NEEDED != _NEEDED:
                raise ProtocolError(
                    f"its userfaultfd has features {features:#x}; THREAD_ID and EXACT_ADDRESS are needed"
                )
            return features
    raise ProtocolError("the descriptor in its hello is not a userfaultfd")


class Session:
    """A guest from hello to its end."""

    def __init__(
        self, sock: socket.socket, pid: int, engine: Engine, files: FileServer, design: Design
    ) -> None:
        self._peer = Peer(sock, pid)
        self.pid = pid
        self._engine = engine
        self._files = files
        self.design = design
        self.guest: Guest | None = None
        self._hello: wire.Hello | None = None
        self._opened: dict[int, Opened] = {}
        self._lingering: dict[int, Opened] = {}  # by inode: released while a child mapped it
        self._orphans = False
        self._mappings: list[Mapping] = []
        self._next_fh = 1
        self._process: Process | None = None

    async def greet(self, seconds: float = HELLO_SECONDS) -> Guest:
        """Receive the hello and start to serve; -> the engine's guest.

        Raises ProtocolError, OSError, or trio.TooSlowError when it has not arrived after `seconds`.
        """
        self._process = Process(self.pid)
        with trio.fail_after(seconds):
            received = await self._receive()
        if received is None:
            raise ProtocolError("the guest closed its connection before its hello")
        message, (uffd, area) = received
        assert isinstance(message, wire.Hello)
        if message.pid != self.pid:
            self._peer.close_fds([uffd, area])
            raise ProtocolError(f"says it is process {message.pid}, the kernel says {self.pid}")
        try:
            features = check_uffd(uffd)
        except ProtocolError:
            self._peer.close_fds([uffd, area])
            raise
        # in a thread: an invalid event area is closed (closing.py)
        granted = self.design.grants(Abi(message.abi), message.cpuid)
        begin = functools.partial(
            self._engine.guest,
            abi=Abi(message.abi),
            cpuid=granted,
            flags=self.design.flags,
            posted=self.design.posted,
        )
        with trio.CancelScope(shield=True):
            guest = await trio.to_thread.run_sync(begin, uffd, features, self.pid, area)
        self.guest = guest
        self._hello = message
        doorbell = guest.doorbell()
        try:
            await self._peer.send(wire.hello_reply(message, granted), doorbell)
        finally:
            os.close(doorbell)
        return guest

    async def serve(self) -> None:
        """Answer requests until the guest closes the connection.  Raises as greet()."""
        while (received := await self._receive()) is not None:
            message, fds = received
            try:
                await self._answer(message, fds)
            finally:
                self._peer.close_fds(fds)

    async def gone(self) -> None:
        """Return when the guest's process has ended.  After greet()."""
        assert self._process is not None
        await self._process.ended()

    async def close(self) -> None:
        """End the service: poison pages and write stores back.  release() releases the files."""
        self._peer.close()
        if self._process is not None:
            self._process.close()
        if self.guest is not None:
            await trio.to_thread.run_sync(self.guest.close)
        mapped = [mapping.opened for mapping in self._mappings]
        self._mappings.clear()
        await self._write_back(mapped)

    async def orphans_gone(self) -> None:
        """Return when no forked child maps a file this guest had open.

        Children have no connection and may outlive their parent.  Their files stay in use: otherwise
        truncations would not reach them, and their stores would not be written back.
        """
        while any(opened.pinned.file.mapped_by_children for opened in self._in_use()):
            self._orphans = True
            await trio.sleep(_ORPHANS_SECONDS)  # the engine checks for their end at the same interval

    async def release(self) -> None:
        """Release the files.  After close()."""
        in_use = self._in_use()
        self._opened.clear()
        self._lingering.clear()
        if self._orphans:
            await self._write_back(in_use)
        for opened in in_use:
            opened.pinned.release()

    def _in_use(self) -> list[Opened]:
        return [*self._opened.values(), *self._lingering.values()]

    def name_of(self, file: int) -> str:
        """The name by which this guest opened the file with this native id, or its id."""
        for opened in list(self._opened.values()):  # called in any thread while files open and close
            if opened.pinned.file.id == file:
                return opened.name
        return f"file {file}" if file else "-"

    def file(self, name: str) -> File:
        """The file this guest opened with this last name.  KeyError when it has none."""
        for opened in self._opened.values():
            if os.path.basename(opened.name) == name:
                return opened.pinned.file
        raise KeyError(name)

    # ---- the wire

    async def _receive(self) -> tuple[Message, list[int]] | None:
        return await self._peer.receive(self._expected)

    def _expected(self, data: bytes, fds: int) -> Message:
        message = wire.parse(data, fds)
        if isinstance(message, wire.Hello) != (self._hello is None):
            raise ProtocolError("a hello must be the first message, and the only one")
        return message

    # ---- requests

    async def _answer(self, message: Message, fds: list[int]) -> None:
        try:
            if isinstance(message, wire.Open):
                await self._open(message, fds[0])
            elif isinstance(message, wire.SetupMapping):
                await self._setup(message)
            elif isinstance(message, wire.RemoveMapping):
                await self._remove(message)
            elif isinstance(message, wire.Release):
                await self._release(message)
        except OSError as e:
            log.info("guest %d: %s refused: %s", self.pid, type(message).__name__, e)
            await self._peer.send(reply(message, e.errno or errno.EIO))

    async def _open(self, message: wire.Open, fd: int) -> None:
        if len(self._opened) >= OPEN_MAX:
            raise OSError(errno.EMFILE, f"a guest has at most {OPEN_MAX} files open")
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        if flags & os.O_PATH:
            raise OSError(errno.EBADF, "opened with O_PATH, which gives no access to the file's data")
        access = flags & os.O_ACCMODE
        if access == os.O_WRONLY:
            raise OSError(errno.EACCES, "a file must be open for reading to be mapped")
        name = await trio.to_thread.run_sync(os.readlink, f"/proc/self/fd/{fd}")
        pinned = await self._files.pin(fd)
        fh, self._next_fh = self._next_fh, self._next_fh + 1
        self._opened[fh] = Opened(pinned, name, access == os.O_RDWR)
        await self._peer.send(wire.open_reply(message, fh, pinned.file.size))

    async def _setup(self, message: wire.SetupMapping) -> None:
        assert self._hello is not None
        assert self.guest is not None
        opened = self._opened.get(message.fh)
        if opened is None:
            raise OSError(errno.EBADF, f"no file handle {message.fh}")
        if message.write and not opened.writable:
            raise OSError(errno.EACCES, f"{opened.name} was opened read-only")
        if message.moffset + message.len > self._hello.window_len:
            raise OSError(errno.EINVAL, f"{message.moffset:#x} + {message.len:#x} is outside the window")
        file = opened.pinned.file
        start = self._hello.window + message.moffset
        self.guest.map(start, message.len, file, message.foffset, writable=message.write)
        try:
            cache = await cache_fd(file, writable=message.write)
        except OSError:
            self.guest.unmap(start, message.len)
            raise
        self._mappings.append(Mapping(message.moffset, message.len, opened))
        if message.write:
            self._files.mapping_changed(opened.pinned.inode)
        try:
            await self._peer.send(reply(message), cache)
        finally:
            os.close(cache)

    async def _remove(self, message: wire.RemoveMapping) -> None:
        assert self._hello is not None
        assert self.guest is not None
        for moffset, length in message.ranges:
            if moffset + length > self._hello.window_len:
                raise OSError(errno.EINVAL, f"{moffset:#x} + {length:#x} is outside the window")
        touched: list[Opened] = []
        for moffset, length in message.ranges:
            self.guest.unmap(self._hello.window + moffset, length)
            touched += self._cut(moffset, moffset + length)
        await self._write_back(touched)
        await self._peer.send(reply(message))

    def _cut(self, start: int, end: int) -> list[Opened]:
        """Remove the mappings in [start, end) of the window; -> their files."""
        kept: list[Mapping] = []
        touched: list[Opened] = []
        for m in self._mappings:
            if m.moffset + m.len <= start or m.moffset >= end:
                kept.append(m)
                continue
            touched.append(m.opened)
            if m.moffset < start:
                kept.append(Mapping(m.moffset, start - m.moffset, m.opened))
            if m.moffset + m.len > end:
                kept.append(Mapping(end, m.moffset + m.len - end, m.opened))
        self._mappings = kept
        return touched

    async def _release(self, message: wire.Release) -> None:
        opened = self._opened.get(message.fh)
        if opened is None:
            raise OSError(errno.EBADF, f"no file handle {message.fh}")
        if any(mapping.opened is opened for mapping in self._mappings):
            raise OSError(errno.EBUSY, f"{opened.name} is still mapped")
        del self._opened[message.fh]
        spare: Opened | None = opened
        if opened.pinned.file.mapped_by_children:
            spare = self._lingering.get(opened.pinned.inode)
            if spare is None or opened.writable:
                self._lingering[opened.pinned.inode] = opened
            else:
                spare = opened
        if spare is not None:
            spare.pinned.release()
        await self._peer.send(reply(message))

    async def _write_back(self, touched: list[Opened]) -> None:
        for pinned in {id(o.pinned): o.pinned for o in touched if o.writable}.values():
            try:
                await trio.to_thread.run_sync(pinned.file.write_back)
            except OSError as e:
                log.error("guest %d: its stores were not written back: %s", self.pid, e)
            self._files.mapping_changed(pinned.inode)
