# SPDX-License-Identifier: Apache-2.0
"""A guest that may do anything: the wire by hand, in the test's own process.

Owns packing messages and sending them with any descriptors.  Its userfaultfd is a
real one, of this very process, so nothing may ever be touched through it: a guest
that touches memory is a process of its own (guest_process.py).
"""

import contextlib
import fcntl
import os
import socket
import struct
from collections.abc import AsyncIterator

import trio

from daxfault import native
from daxfault.vmm.host.uffd_features import bits

HEADER = struct.Struct("=IIQiI")  # type, len, seq, error, pad
HELLO = struct.Struct("=IIQiIIiQQII")  # and version, pid, window, window_len, abi, cpuid
HELLO_TYPE, OPEN_TYPE, RELEASE_TYPE, SETUP_TYPE, REMOVE_TYPE, REPLY = 1, 2, 3, 48, 49, 1000
VERSION = 2
AREA: int = native.lib.DF_AREA_SIZE
WRITE, READ = 1, 2
RANGE = native.RANGE_SIZE
WINDOW = 1 << 40
WINDOW_LEN = 8 * RANGE
# ioctl_userfaultfd(2): EVENT_FORK is left out, it needs more privilege than the rest
THREAD_ID, EXACT_ADDRESS = bits("THREAD_ID"), bits("EXACT_ADDRESS")
FEATURES = bits("THREAD_ID", "EXACT_ADDRESS", "MISSING_SHMEM", "MINOR_SHMEM")


def message(kind: int, fields: bytes = b"", *, seq: int = 1, length: int | None = None) -> bytes:
    total = HEADER.size + len(fields)
    return HEADER.pack(kind, total if length is None else length, seq, 0, 0) + fields


def hello(
    *,
    version: int = VERSION,
    pid: int | None = None,
    window: int = WINDOW,
    window_len: int = WINDOW_LEN,
    abi: int = native.Abi.REPORT,
    cpuid: int = native.Cpuid.ERROR,
    seq: int = 1,
) -> bytes:
    fields = struct.pack(
        "=IiQQII", version, os.getpid() if pid is None else pid, window, window_len, abi, cpuid
    )
    return message(HELLO_TYPE, fields, seq=seq)


def opening(*, seq: int = 1) -> bytes:
    return message(OPEN_TYPE, struct.pack("=QQ", 0, 0), seq=seq)


def release(fh: int, *, seq: int = 1) -> bytes:
    return message(RELEASE_TYPE, struct.pack("=Q", fh), seq=seq)


def setup(fh: int, foffset: int, length: int, moffset: int, flags: int = READ, *, seq: int = 1) -> bytes:
    return message(SETUP_TYPE, struct.pack("=QQQQQ", fh, foffset, length, flags, moffset), seq=seq)


def remove(*ranges: tuple[int, int], count: int | None = None, seq: int = 1) -> bytes:
    fields = struct.pack("=II", len(ranges) if count is None else count, 0)
    return message(REMOVE_TYPE, fields + b"".join(struct.pack("=QQ", *one) for one in ranges), seq=seq)


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

    async def send(self, data: bytes, fds: list[int] | tuple[int, ...] = ()) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))] if fds else []
        await self._sock.sendmsg([data], rights, socket.MSG_NOSIGNAL)

    async def reply(self) -> tuple[int, bytes]:
        """(errno, message) of the next reply, (-1, b"") at the end; descriptors in it are dropped."""
        try:
            data, ancillary, _, _ = await self._sock.recvmsg(4096, socket.CMSG_SPACE(64))
        except ConnectionResetError:
            return -1, b""
        for _, _, payload in ancillary:
            for (fd,) in struct.iter_unpack("i", payload):
                os.close(fd)
        return (HEADER.unpack_from(data)[3], data) if data else (-1, b"")

    async def ask(self, data: bytes, fds: list[int] | tuple[int, ...] = ()) -> int:
        """Send, and -> the errno of the reply: 0, or -1 when the host hung up."""
        await self.send(data, fds)
        return (await self.reply())[0]

    async def greet(self) -> int:
        """A proper hello."""
        async with closing(uffd(), area()) as fds:
            return await self.ask(hello(), fds)

    async def open(self, path: str | os.PathLike[str], flags: int = os.O_RDONLY) -> tuple[int, int]:
        """-> (errno, fh)."""
        fd = await trio.to_thread.run_sync(os.open, path, flags | os.O_CLOEXEC)
        async with closing(fd) as fds:
            await self.send(opening(), fds)
            error, data = await self.reply()
        return error, 0 if error else struct.unpack_from("=Q", data, HEADER.size)[0]

    def close(self) -> None:
        self._sock.close()
