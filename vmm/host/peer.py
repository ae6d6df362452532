# SPDX-License-Identifier: Apache-2.0
"""The other end of a connection: packets and the descriptors that come with them.

Owns receiving and sending.  Must not know what a message means; what breaks the
protocol raises wire.ProtocolError, with every descriptor it carried closed.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from typing import TypeVar

import trio

from daxfault.native import wire

T = TypeVar("T")


async def close_all(fds: list[int]) -> None:
    """Close descriptors that came from a guest, in a thread: close(2) of a file on our own mount
    sends FUSE_FLUSH and waits for this very process to answer (fs/fuse/file.c, fuse_flush)."""
    with trio.CancelScope(shield=True):
        for fd in fds:
            await trio.to_thread.run_sync(os.close, fd)


class Peer:
    """A guest's unix socket, SOCK_SEQPACKET; `sock` is taken over."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = trio.socket.from_stdlib_socket(sock)

    async def receive(self, parse: Callable[[bytes, int], T]) -> tuple[T, list[int]] | None:
        """The next message, as `parse(packet, number of descriptors)` has it, and its descriptors; None at
        the end of the connection."""
        room = socket.CMSG_SPACE(wire.FDS_MAX * 4)
        try:
            data, ancillary, flags, _ = await self._sock.recvmsg(
                wire.MESSAGE_MAX + 1, room, socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError:
            return None
        fds: list[int] = []
        for level, kind, payload in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds += struct.unpack(f"{len(payload) // 4}i", payload[: len(payload) // 4 * 4])
        try:
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise wire.ProtocolError("a message, or its descriptors, too long for any there is")
            if not data and not fds:
                return None
            return parse(data, len(fds)), fds
        except wire.ProtocolError:
            await close_all(fds)
            raise

    async def send(self, data: bytes, fd: int = -1) -> None:
        """A packet, with a descriptor that stays the caller's."""
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", fd))] if fd >= 0 else []
        await self._sock.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)

    def close(self) -> None:
        self._sock.close()
