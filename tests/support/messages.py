# SPDX-License-Identifier: Apache-2.0
"""The messages of both wires (abi.h), packed by hand: valid ones, and what no peer should send.

Owns layouts, so that the C header is checked against a second opinion, and one packet with its
descriptors.  Must not know what a message is for.
"""

import dataclasses
import mmap
import os
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence

from daxfault import native
from daxfault.native import lib
from daxfault.native.wire import MESSAGE_MAX

HEADER = struct.Struct("=IIQiI")  # type, len, seq, error, pad
HELLO = struct.Struct("=IIQiIIiQQII")  # and version, pid, window, window_len, abi, cpuid
VERSION = 3
WRITE, READ = 1, 2
RANGE = native.RANGE_SIZE
WINDOW = 1 << 40
WINDOW_LEN = 8 * RANGE
GONE = -1  # instead of an errno: the other end has closed the connection
MOST = 4096  # bytes of a message


@dataclasses.dataclass(frozen=True)
class Reply:
    """`error` is GONE when there is none; `fds` are the caller's to close."""

    error: int
    data: bytes = b""
    fds: tuple[int, ...] = ()

    def without_fds(self) -> "Reply":
        """The same, its descriptors closed."""
        for fd in self.fds:
            os.close(fd)
        return dataclasses.replace(self, fds=())

    def word(self) -> int:
        """The first field after the header."""
        return int(struct.unpack_from("=Q", self.data, HEADER.size)[0])


def received(data: bytes, ancillary: Sequence[tuple[int, int, bytes]]) -> Reply:
    """What recvmsg(2) gave, as a reply."""
    fds = [fd for _, _, payload in ancillary for (fd,) in struct.iter_unpack("i", payload)]
    return Reply(HEADER.unpack_from(data)[3], data, tuple(fds)) if data else Reply(GONE)


def rights(fds: Sequence[int]) -> list[tuple[int, int, bytes]]:
    """The ancillary data of sendmsg(2) that sends descriptors."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))] if fds else []


def answer(request: bytes, fields: bytes | None = None, *, error: int = 0) -> bytes:
    """The reply to a request: its own fields, or others."""
    kind, _, seq, _, _ = HEADER.unpack_from(request)
    fields = request[HEADER.size :] if fields is None else fields
    return HEADER.pack(kind + lib.DF_REPLY, HEADER.size + len(fields), seq, error, 0) + fields


def message(kind: int, fields: bytes = b"", *, seq: int = 1, length: int | None = None) -> bytes:
    total = HEADER.size + len(fields)
    return HEADER.pack(kind, total if length is None else length, seq, 0, 0) + fields


# ---- broken ones


def with_changed_bytes(good: bytes, number: Callable[[int, int], int]) -> bytes:
    """Up to 8 bytes changed; `number(least, most)` chooses which, and to what."""
    changed = bytearray(good)
    for _ in range(number(1, 8)):
        changed[number(0, len(changed) - 1)] = number(0, 255)
    return bytes(changed)


def of_other_lengths(good: bytes, *, honest: bool) -> Iterator[bytes]:
    """The message cut or extended to every other length; `honest`: its header says so."""
    noise = random.Random(1).randbytes(2 * MESSAGE_MAX)
    for length in range(len(good) + 2 * MESSAGE_MAX):
        if length == len(good):
            continue
        other = bytearray((good + noise)[:length])
        if honest and length >= 8:
            struct.pack_into("=I", other, 4, length)
        yield bytes(other)


# ---- guests


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
    return message(lib.DF_HELLO, fields, seq=seq)


def opening(*, seq: int = 1) -> bytes:
    return message(lib.DF_OPEN, struct.pack("=QQ", 0, 0), seq=seq)


def release(fh: int, *, seq: int = 1) -> bytes:
    return message(lib.DF_RELEASE, struct.pack("=Q", fh), seq=seq)


def setup(fh: int, foffset: int, length: int, moffset: int, flags: int = READ, *, seq: int = 1) -> bytes:
    return message(lib.DF_SETUPMAPPING, struct.pack("=QQQQQ", fh, foffset, length, flags, moffset), seq=seq)


def remove(*ranges: tuple[int, int], count: int | None = None, seq: int = 1) -> bytes:
    fields = struct.pack("=II", len(ranges) if count is None else count, 0)
    return message(
        lib.DF_REMOVEMAPPING, fields + b"".join(struct.pack("=QQ", *one) for one in ranges), seq=seq
    )


# ---- programs


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
    fd: int = -1,
    tid: int | None = None,
    seq: int = 3,
) -> bytes:
    thread = threading.get_native_id() if tid is None else tid
    fields = struct.pack("=QQIIIiiI", offset, length, prot, flags, 0, fd, thread, 0)
    return message(lib.DF_MMAP, fields, seq=seq)


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
