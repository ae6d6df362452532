# SPDX-License-Identifier: Apache-2.0
"""The other end of a connection: packets and the descriptors that come with them.

Owns receiving and sending.  Must not know the meaning of a message.  A message that breaks the protocol
raises wire.ProtocolError, and its descriptors are closed.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Callable
from typing import TypeVar

import trio

from daxfault import native
from daxfault.native import wire
from daxfault.vmm.host.closing import Closing

T = TypeVar("T")


class Peer:
    """A guest's unix socket, SOCK_SEQPACKET; takes over `sock`."""

    def __init__(self, sock: socket.socket, pid: int) -> None:
        self._sock = trio.socket.from_stdlib_socket(sock)
        native.keep_socket(sock.fileno())
        self._closing = Closing(pid)

    async def receive(
        self, parse: Callable[[bytes, int], T], fds_max: int = wire.FDS_MAX
    ) -> tuple[T, list[int]] | None:
        """The result of `parse(packet, number of descriptors)` for the next message, and the message's
        descriptors, which the caller passes to close_fds(); None at the end of the connection.

        More than `fds_max` descriptors break the protocol: the kernel drops them without close(2).  If
        this process has no room for the descriptors, it refuses the message with EMFILE and waits for
        the next one.
        """
        room = socket.CMSG_LEN(fds_max * 4) if fds_max else 0  # CMSG_SPACE would be room for one more
        while True:
            received = await self._packet(room)
            if received is None:
                return None
            data, fds, flags = received
            try:
                if flags & socket.MSG_CTRUNC and not flags & socket.MSG_TRUNC and len(fds) < fds_max:
                    self.close_fds(fds)
                    await self.send(wire.refusal(data, errno.EMFILE))
                    continue
                if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                    raise wire.ProtocolError("a message too long, or with too many descriptors, for any type")
                return parse(data, len(fds)), fds
            except wire.ProtocolError:
                self.close_fds(fds)
                raise

    async def refuse(self, error: int) -> None:
        """Refuse the next message, of any type, with this errno."""
        received = await self._packet(0)
        if received is not None:
            with contextlib.suppress(wire.ProtocolError):
                await self.send(wire.refusal(received[0], error))

    async def _packet(self, room: int) -> tuple[bytes, list[int], int] | None:
        """The next packet, its descriptors, and the flags of recvmsg(2); None at the end."""
        await self._closing.room()
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
        if not data and not fds and not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            return None
        return data, fds, flags

    def credentials(self) -> tuple[int, int]:
        """The process id and user id of the peer when it connected (SO_PEERCRED, unix(7))."""
        found = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid, uid, _ = struct.unpack("3i", found)
        return pid, uid

    def close_fds(self, fds: list[int]) -> None:
        """Close descriptors of a message, without waiting."""
        self._closing.close(fds)

    async def send(self, data: bytes, fd: int = -1) -> None:
        """Send a packet, with a descriptor if `fd` is not -1; the caller still owns it."""
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", fd))] if fd >= 0 else []
        await self._sock.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)

    def close(self) -> None:
        """Close the socket.  Safe to call twice."""
        if self._sock.fileno() >= 0:
            native.keep_no_socket(self._sock.fileno())
            self._sock.close()
