# SPDX-License-Identifier: Apache-2.0
"""A program that may send anything to the host of a mount: its end of the program wire, without the library.

Owns sending messages with any descriptors.  The host is another process, so what is mapped here may
be touched.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import socket
from collections.abc import Iterator
from typing import Self

import messages
from messages import GONE, Reply
from patience import PATIENCE
from raw_guest import uffd

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


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
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # reply() says so
            self._sock.sendmsg([data], messages.rights(fds), socket.MSG_NOSIGNAL)

    def reply(self) -> Reply:
        try:
            data, ancillary, _, _ = self._sock.recvmsg(
                messages.MOST, socket.CMSG_SPACE(64), socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError:
            return Reply(GONE)
        return messages.received(data, ancillary)

    def ask(self, data: bytes, *fds: int) -> int:
        """Send, and -> the errno of the reply, whose descriptors are dropped: 0, or GONE."""
        self.send(data, *fds)
        return self.reply().without_fds().error

    def attach(self) -> None:
        assert self.ask(messages.attach()) == 0

    def serve(self) -> None:
        """Attach, and be served through a userfaultfd of this process."""
        self.attach()
        fd = uffd(None)
        try:
            assert self.ask(messages.serve(), fd) == 0
        finally:
            os.close(fd)

    def cache(self, file: int) -> int:
        """Begin the mmap() of a file; -> its page cache, the caller's to close."""
        self.send(messages.mmapping(fd=file))
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
            assert self.ask(messages.mapped(start, length)) == 0
            yield start
        finally:
            libc.munmap(start, length)
