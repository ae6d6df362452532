# SPDX-License-Identifier: Apache-2.0
"""A program that may say anything to the host of a mount: the wire by hand, no library in between.

Owns packing the messages of abi.h, "programs", and sending them with any descriptors.  The
host is another process, so what is mapped here may be touched.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import mmap
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Self

from patience import PATIENCE
from raw_guest import HEADER, message, uffd

from daxfault.native import lib

GONE = -1  # instead of a reply: the host hung up

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def attach(*, version: int = lib.DF_WIRE_VERSION, pid: int | None = None, seq: int = 1) -> bytes:
    return message(lib.DF_ATTACH, struct.pack("=Ii", version, os.getpid() if pid is None else pid), seq=seq)


def serve(*, seq: int = 2) -> bytes:
    return message(lib.DF_SERVE, struct.pack("=II", 0, 0), seq=seq)


def mmapping(
    offset: int = 0,
    length: int = mmap.PAGESIZE,
    *,
    prot: int = mmap.PROT_READ | mmap.PROT_WRITE,
    flags: int = mmap.MAP_SHARED,
    seq: int = 3,
) -> bytes:
    return message(lib.DF_MMAP, struct.pack("=QQIIII", offset, length, prot, flags, 0, 0), seq=seq)


def mapped(start: int, length: int, *, seq: int = 4) -> bytes:
    return message(lib.DF_MAPPED, struct.pack("=QQ", start, length), seq=seq)


def msync(start: int, length: int, *, seq: int = 5) -> bytes:
    return message(lib.DF_MSYNC, struct.pack("=QQ", start, length), seq=seq)


def sigbus(
    address: int,
    *,
    tid: int = 0,
    code: int = 2,
    frames: Sequence[int] = (),
    nframes: int | None = None,
    seq: int = 6,
) -> bytes:
    room = [*frames, *[0] * (lib.DF_SIGBUS_FRAMES - len(frames))]
    count = len(frames) if nframes is None else nframes
    return message(
        lib.DF_SIGBUS, struct.pack(f"=QiiII{len(room)}Q", address, tid, code, count, 0, *room), seq=seq
    )


@dataclasses.dataclass(frozen=True)
class Reply:
    """`error` is GONE when there is none; `fds` are the caller's to close."""

    error: int
    data: bytes = b""
    fds: tuple[int, ...] = ()


class RawProgram:
    """A connection to the host that listens at `path`, on which nothing has been said."""

    def __init__(self, path: str) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock.connect(path)  # it waits for room among those not let in yet, when it may wait for ever
        self._sock.settimeout(PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._sock.close()

    def send(self, data: bytes, *fds: int) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))] if fds else []
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # reply() says so
            self._sock.sendmsg([data], rights, socket.MSG_NOSIGNAL)

    def reply(self) -> Reply:
        try:
            data, ancillary, _, _ = self._sock.recvmsg(4096, socket.CMSG_SPACE(64), socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            return Reply(GONE)
        fds = [fd for _, _, payload in ancillary for (fd,) in struct.iter_unpack("i", payload)]
        return Reply(HEADER.unpack_from(data)[3], data, tuple(fds)) if data else Reply(GONE)

    def ask(self, data: bytes, *fds: int) -> int:
        """Send, and -> the errno of the reply, whose descriptors are dropped: 0, or GONE."""
        self.send(data, *fds)
        reply = self.reply()
        for fd in reply.fds:
            os.close(fd)
        return reply.error

    def attach(self) -> None:
        assert self.ask(attach()) == 0

    def serve(self) -> None:
        """Attach, and be served through a userfaultfd of this process."""
        self.attach()
        fd = uffd(None)
        try:
            assert self.ask(serve(), fd) == 0
        finally:
            os.close(fd)

    def cache(self, file: int) -> int:
        """Begin the mmap() of a file; -> its page cache, the caller's to close."""
        self.send(mmapping(), file)
        reply = self.reply()
        assert reply.error == 0
        (fd,) = reply.fds
        return fd

    @contextlib.contextmanager
    def mapping(self, cache: int, pages: int = 1) -> Iterator[int]:
        """End it, with the first pages of the page cache mapped while the body runs; -> where."""
        length = pages * mmap.PAGESIZE
        start = libc.mmap(None, length, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, cache, 0)
        assert start not in (None, ctypes.c_void_p(-1).value)
        try:
            assert self.ask(mapped(start, length)) == 0
            yield start
        finally:
            libc.munmap(start, length)
