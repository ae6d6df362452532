# SPDX-License-Identifier: Apache-2.0
"""Messages on a connection to the host: bytes in, checked values out (abi.h, guest <-> host).

Owns the parts that all messages have: header, length, descriptors, reply.  guest_wire has the
messages of guests, program_wire those of programs.  No I/O, no policy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from daxfault.native._daxfault import ffi, lib

MESSAGE_MAX: int = ffi.sizeof("struct df_removemapping")
FDS_MAX = 2

_HEADER: int = ffi.sizeof("struct df_header")


class ProtocolError(Exception):
    """The peer broke the protocol; its connection must be closed.  `str()` says how."""


@dataclasses.dataclass(frozen=True, slots=True)
class Message:
    """A request; its reply repeats `seq`.  A subclass defines its type, its struct, and the number of
    its descriptors.  Its fields are the struct's, unless it overrides from_struct()."""

    TYPE: ClassVar[int]
    STRUCT: ClassVar[str]
    FDS: ClassVar[int] = 0
    VARIABLE: ClassVar[bool] = False  # variable length: check() must check it

    seq: int

    @classmethod
    def check(cls, m: Any) -> None:
        """Raise ProtocolError when the fields of the struct `m` are invalid."""

    @classmethod
    def from_struct(cls, m: Any) -> Self:
        names = [field.name for field in dataclasses.fields(cls) if field.name != "seq"]
        return cls(m.h.seq, *(getattr(m, name) for name in names))


def parse(kinds: Mapping[int, type[Message]], data: bytes, fds: int) -> Message:
    """One packet and the number of descriptors it carried -> a message of one of `kinds`, by type."""
    if len(data) < _HEADER:
        raise ProtocolError(f"a message of {len(data)} bytes is shorter than its header ({_HEADER})")
    header = ffi.from_buffer("struct df_header *", data)
    kind = kinds.get(header.type)
    if kind is None:
        raise ProtocolError(f"unknown message type {header.type}")
    name, size = kind.STRUCT, ffi.sizeof(kind.STRUCT)
    if header.len != len(data):
        raise ProtocolError(f"{name}: says {header.len} bytes, has {len(data)}")
    if len(data) != size and not kind.VARIABLE:
        raise ProtocolError(f"{name}: {len(data)} bytes, not {size}")
    if fds != kind.FDS:
        raise ProtocolError(f"{name}: carries {fds} descriptors, not {kind.FDS}")
    # pad a short message, so that the pointer covers the whole struct
    whole = data.ljust(size, b"\0")
    m = ffi.from_buffer(f"{name} *", whole)
    kind.check(m)
    return kind.from_struct(m)


def check_version(m: Any) -> None:
    if m.version != lib.DF_WIRE_VERSION:
        raise ProtocolError(f"version {m.version}; this host speaks {lib.DF_WIRE_VERSION}")


def reply(message: Message, error: int = 0) -> bytes:
    """The header alone: success without a result, or a refusal with `error`."""
    m = ffi.new("struct df_header *")
    _fill_header(m, message, ffi.sizeof(m[0]), error)
    return bytes(ffi.buffer(m))


def refusal(data: bytes, error: int) -> bytes:
    """The refusal of a packet that cannot be parsed.  ProtocolError if it is shorter than a header."""
    if len(data) < _HEADER:
        raise ProtocolError(f"a message of {len(data)} bytes is shorter than its header ({_HEADER})")
    m = ffi.new("struct df_header *")
    m[0] = ffi.from_buffer("struct df_header *", data)[0]
    m.type, m.len, m.error = (m.type + lib.DF_REPLY) & 0xFFFFFFFF, _HEADER, error
    return bytes(ffi.buffer(m))


def result(message: Message, **fields: int) -> bytes:
    """Success: the message's own struct, with `fields`."""
    m = ffi.new(f"{message.STRUCT} *", fields)
    _fill_header(m.h, message, ffi.sizeof(m[0]), 0)
    return bytes(ffi.buffer(m))


def _fill_header(header: Any, message: Message, length: int, error: int) -> None:
    header.type = message.TYPE + lib.DF_REPLY
    header.len = length
    header.seq = message.seq
    header.error = error
