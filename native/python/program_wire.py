# SPDX-License-Identifier: Apache-2.0
"""The messages of programs (abi.h, programs).

Owns their fields and the checks of values.  No I/O, no policy.
"""

from __future__ import annotations

import dataclasses
import mmap
import os
from typing import Any, Self

from daxfault.native import wire
from daxfault.native._daxfault import lib
from daxfault.native.wire import ProtocolError

ADDRESSES = 1 << 47  # of user space, 4-level paging; mmap() goes beyond it only with a hint above it
_MAP_TYPE = 0xF


@dataclasses.dataclass(frozen=True, slots=True)
class Attach(wire.Message):
    """The first message of a program."""

    TYPE = lib.DF_ATTACH
    STRUCT = "struct df_attach"

    pid: int

    @classmethod
    def check(cls, m: Any) -> None:
        wire.check_version(m)


@dataclasses.dataclass(frozen=True, slots=True)
class Serve(wire.Message):
    """Its userfaultfd."""

    TYPE = lib.DF_SERVE
    STRUCT = "struct df_serve"
    FDS = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Mmap(wire.Message):
    """mmap(2) of descriptor `fd` of thread `tid`; the errno depends on `shared` and `write`."""

    TYPE = lib.DF_MMAP
    STRUCT = "struct df_mmap"

    offset: int
    len: int
    shared: bool
    write: bool
    fd: int
    tid: int

    @classmethod
    def from_struct(cls, m: Any) -> Self:
        # the kernel checks everything else
        shared, write = m.flags & _MAP_TYPE != mmap.MAP_PRIVATE, bool(m.prot & mmap.PROT_WRITE)
        return cls(m.h.seq, m.offset, m.len, shared, write, m.fd, m.tid)


@dataclasses.dataclass(frozen=True, slots=True)
class Msync(wire.Message):
    """MS_SYNC of a range."""

    TYPE = lib.DF_MSYNC
    STRUCT = "struct df_msync"

    start: int
    len: int

    @classmethod
    def check(cls, m: Any) -> None:
        _check_range(cls, m)


@dataclasses.dataclass(frozen=True, slots=True)
class Mapped(wire.Message):
    """The address range that was mapped, whole pages; `len` 0: the mmap() failed."""

    TYPE = lib.DF_MAPPED
    STRUCT = "struct df_mapped"

    start: int
    len: int

    @classmethod
    def check(cls, m: Any) -> None:
        _check_range(cls, m)
        if m.len % lib.DF_PAGE_SIZE:
            raise ProtocolError(f"{cls.STRUCT}: len {m.len:#x} is not in whole pages")


@dataclasses.dataclass(frozen=True, slots=True)
class Sigbus(wire.Message):
    """A SIGBUS without a handler, and the stack, innermost frame first."""

    TYPE = lib.DF_SIGBUS
    STRUCT = "struct df_sigbus"

    address: int
    tid: int
    code: int
    frames: tuple[int, ...]

    @classmethod
    def check(cls, m: Any) -> None:
        if m.nframes > lib.DF_SIGBUS_FRAMES:
            raise ProtocolError(f"{cls.STRUCT}: {m.nframes} frames")

    @classmethod
    def from_struct(cls, m: Any) -> Self:
        return cls(m.h.seq, m.address, m.tid, m.code, tuple(m.frames[0 : m.nframes]))


KINDS: dict[int, type[wire.Message]] = {
    kind.TYPE: kind for kind in (Attach, Serve, Mmap, Mapped, Msync, Sigbus)
}


def parse(data: bytes, fds: int) -> wire.Message:
    """One packet and the number of descriptors it carried -> a message.  Raises ProtocolError."""
    return wire.parse(KINDS, data, fds)


def attach_reply(message: Attach) -> bytes:
    return wire.result(message, version=lib.DF_WIRE_VERSION, pid=os.getpid())


def serve_reply(message: Serve, *, children: bool) -> bytes:
    return wire.result(message, flags=lib.DF_SERVE_CHILDREN if children else 0)


def mmap_reply(message: Mmap, *, private: bool) -> bytes:
    return wire.result(message, offset=message.offset, len=message.len, private=private)


def _check_range(kind: type[wire.Message], m: Any) -> None:
    if m.start % lib.DF_PAGE_SIZE or m.start + m.len > ADDRESSES:
        raise ProtocolError(f"{kind.STRUCT}: {m.start:#x} + {m.len:#x} is not in user address space")
