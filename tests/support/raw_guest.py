# SPDX-License-Identifier: Apache-2.0
"""A guest that may send anything: its end of the guest wire, in the test's own process.

Owns sending messages with any descriptors.  Its userfaultfd is a real one, of this very process,
so nothing may ever be touched through it: a guest that touches memory is a process of its own
(guest_process.py).
"""

import contextlib
import fcntl
import os
import socket
from collections.abc import AsyncIterator, Sequence

import messages
import trio
from messages import Reply

from daxfault import native

AREA: int = native.lib.DF_AREA_SIZE
# ioctl_userfaultfd(2): EVENT_FORK is left out, it needs more privilege than the rest
THREAD_ID, EXACT_ADDRESS = 1 << 8, 1 << 11
FEATURES = THREAD_ID | EXACT_ADDRESS | 1 << 5 | 1 << 10  # and MISSING_SHMEM, MINOR_SHMEM


def uffd(features: int | None = FEATURES) -> int:
    """A userfaultfd of this process; None leaves UFFDIO_API out."""
    fd = int(native.lib.df_uffd_open(0))
    if fd < 0:
        raise OSError(-fd, os.strerror(-fd))
    if features is not None:
        error = int(native.lib.df_uffd_api(fd, features))
        if error:
            os.close(fd)
            raise OSError(-error, os.strerror(-error))
    return fd


def area(size: int = AREA, seals: int = fcntl.F_SEAL_SHRINK) -> int:
    """A shared area: a sealed memfd."""
    fd = os.memfd_create("events", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


@contextlib.asynccontextmanager
async def closing(*fds: int) -> AsyncIterator[list[int]]:
    """The descriptors, closed at the end: in a thread, since they may be of a mount that the trio loop
    answers for."""
    try:
        yield list(fds)
    finally:
        with trio.CancelScope(shield=True):
            for fd in fds:
                await trio.to_thread.run_sync(os.close, fd)


class RawGuest:
    """One end of a guest's connection."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = trio.socket.from_stdlib_socket(sock)

    async def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        await self._sock.sendmsg([data], messages.rights(fds), socket.MSG_NOSIGNAL)

    async def reply(self) -> Reply:
        """The next reply, without its descriptors."""
        try:
            data, ancillary, _, _ = await self._sock.recvmsg(messages.MOST, socket.CMSG_SPACE(64))
        except ConnectionResetError:
            return Reply(messages.GONE)
        return messages.received(data, ancillary).without_fds()

    async def ask(self, data: bytes, fds: Sequence[int] = ()) -> int:
        """Send, and -> the errno of the reply: 0, or GONE."""
        await self.send(data, fds)
        return (await self.reply()).error

    async def greet(self) -> int:
        """A proper hello."""
        async with closing(uffd(), area()) as fds:
            return await self.ask(messages.hello(), fds)

    async def open(self, path: str | os.PathLike[str], flags: int = os.O_RDONLY) -> tuple[int, int]:
        """-> (errno, fh)."""
        fd = await trio.to_thread.run_sync(os.open, path, flags | os.O_CLOEXEC)
        async with closing(fd) as fds:
            await self.send(messages.opening(), fds)
            reply = await self.reply()
        return reply.error, 0 if reply.error else reply.word()

    def close(self) -> None:
        self._sock.close()
