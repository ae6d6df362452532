# SPDX-License-Identifier: Apache-2.0
"""The messages of guests (abi.h, guest <-> host).

Owns their fields and the checks of values.  No I/O, no policy.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any, Self

from daxfault.native import wire
from daxfault.native._daxfault import ffi, lib
from daxfault.native.wire import ProtocolError


@dataclasses.dataclass(frozen=True, slots=True)
class Hello(wire.Message):
    """The first message of a guest, with its userfaultfd and its shared area."""

    TYPE = lib.DF_HELLO
    STRUCT = "struct df_hello"
    FDS = 2

    pid: int
    window: int
    window_len: int
    abi: int
    cpuid: int

    @classmethod
    def check(cls, m: Any) -> None:
        wire.check_version(m)
        _check_aligned(cls, window_len=m.window_len)
        if m.window % lib.DF_PAGE_SIZE or m.window + m.window_len >= 1 << 47 or not m.window_len:
            raise ProtocolError(f"window {m.window:#x} + {m.window_len:#x} is not in user address space")
        if m.abi >= lib.DF_ABI_COUNT:
            raise ProtocolError(f"{cls.STRUCT}: abi {m.abi}")


@dataclasses.dataclass(frozen=True, slots=True)
class Open(wire.Message):
    """A file that the guest has opened."""

    TYPE = lib.DF_OPEN
    STRUCT = "struct df_open"
    FDS = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Release(wire.Message):
    TYPE = lib.DF_RELEASE
    STRUCT = "struct df_release"

    fh: int


@dataclasses.dataclass(frozen=True, slots=True)
class SetupMapping(wire.Message):
    """FUSE_SETUPMAPPING: bytes [foffset, foffset + len) of fh at window + moffset."""

    TYPE = lib.DF_SETUPMAPPING
    STRUCT = "struct df_setupmapping"

    fh: int
    foffset: int
    len: int
    moffset: int
    read: bool
    write: bool

    @classmethod
    def check(cls, m: Any) -> None:
        known = lib.DF_SETUPMAPPING_WRITE | lib.DF_SETUPMAPPING_READ
        if not m.flags or m.flags & ~known:
            raise ProtocolError(f"{cls.STRUCT}: flags {m.flags:#x}")
        _check_aligned(cls, foffset=m.foffset, len=m.len, moffset=m.moffset)
        if not m.len:
            raise ProtocolError(f"{cls.STRUCT}: len is 0")

    @classmethod
    def from_struct(cls, m: Any) -> Self:
        read, write = m.flags & lib.DF_SETUPMAPPING_READ, m.flags & lib.DF_SETUPMAPPING_WRITE
        return cls(m.h.seq, m.fh, m.foffset, m.len, m.moffset, bool(read), bool(write))


@dataclasses.dataclass(frozen=True, slots=True)
class RemoveMapping(wire.Message):
    """FUSE_REMOVEMAPPING: (moffset, len) pairs."""

    TYPE = lib.DF_REMOVEMAPPING
    STRUCT = "struct df_removemapping"
    VARIABLE = True

    ranges: tuple[tuple[int, int], ...]

    @classmethod
    def check(cls, m: Any) -> None:
        length = ffi.offsetof(cls.STRUCT, "one") + m.count * ffi.sizeof("struct df_removemapping_one")
        if not 1 <= m.count <= lib.DF_REMOVE_MAX or m.h.len != length:
            raise ProtocolError(f"{cls.STRUCT}: {m.count} entries in {m.h.len} bytes")
        for one in m.one[0 : m.count]:
            _check_aligned(cls, moffset=one.moffset, len=one.len)

    @classmethod
    def from_struct(cls, m: Any) -> Self:
        return cls(m.h.seq, tuple((one.moffset, one.len) for one in m.one[0 : m.count]))


KINDS: dict[int, type[wire.Message]] = {
    kind.TYPE: kind for kind in (Hello, Open, Release, SetupMapping, RemoveMapping)
}


def parse(data: bytes, fds: int) -> wire.Message:
    """One packet and the number of descriptors it carried -> a message.  Raises ProtocolError."""
    return wire.parse(KINDS, data, fds)


def hello_reply(hello: Hello, cpuid: int) -> bytes:
    """`cpuid`: the granted bits."""
    return wire.result(
        hello,
        version=lib.DF_WIRE_VERSION,
        pid=os.getpid(),
        window=hello.window,
        window_len=hello.window_len,
        abi=hello.abi,
        cpuid=cpuid,
    )


def open_reply(message: Open, fh: int, size: int) -> bytes:
    return wire.result(message, fh=fh, size=size)


def _check_aligned(kind: type[wire.Message], **values: int) -> None:
    unit: int = lib.DF_RANGE_SIZE
    for field, value in values.items():
        if value % unit or value >= 1 << 62:
            why = f"{field} {value:#x} is not a multiple of {unit:#x} below 2^62"
            raise ProtocolError(f"{kind.STRUCT}: {why}")
