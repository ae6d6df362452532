# SPDX-License-Identifier: Apache-2.0
"""The messages between guest and host: bytes in, checked values out.

Owns the protocol of abi.h's first half and nothing else: no I/O, no policy.  A
message that breaks it raises ProtocolError, which costs the peer its connection.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping

from daxfault.native import RANGE_SIZE, ffi, lib

MESSAGE_MAX: int = ffi.sizeof("struct df_removemapping")
FDS_MAX = 2

_HEADER: int = ffi.sizeof("struct df_header")
_ONE: int = ffi.sizeof("struct df_removemapping_one")


class ProtocolError(Exception):
    """The peer broke the protocol: `str()` says how."""


@dataclasses.dataclass(frozen=True, slots=True)
class Hello:
    """A guest presents itself; carries its userfaultfd and its event area."""

    seq: int
    pid: int
    window: int
    window_len: int
    abi: int
    cpuid: int


@dataclasses.dataclass(frozen=True, slots=True)
class Open:
    """A guest's open file, passed along."""

    seq: int


@dataclasses.dataclass(frozen=True, slots=True)
class Release:
    seq: int
    fh: int


@dataclasses.dataclass(frozen=True, slots=True)
class SetupMapping:
    """FUSE_SETUPMAPPING: bytes [foffset, foffset + len) of fh at window + moffset."""

    seq: int
    fh: int
    foffset: int
    len: int
    moffset: int
    read: bool
    write: bool


@dataclasses.dataclass(frozen=True, slots=True)
class RemoveMapping:
    """FUSE_REMOVEMAPPING: (moffset, len) pairs."""

    seq: int
    ranges: tuple[tuple[int, int], ...]


Message = Hello | Open | Release | SetupMapping | RemoveMapping

# type -> (struct, descriptors that come with it)
_KINDS = {
    lib.DF_HELLO: ("struct df_hello", 2),
    lib.DF_OPEN: ("struct df_open", 1),
    lib.DF_RELEASE: ("struct df_release", 0),
    lib.DF_SETUPMAPPING: ("struct df_setupmapping", 0),
    lib.DF_REMOVEMAPPING: ("struct df_removemapping", 0),
}
_TYPES: dict[type, int] = {
    Hello: lib.DF_HELLO,
    Open: lib.DF_OPEN,
    Release: lib.DF_RELEASE,
    SetupMapping: lib.DF_SETUPMAPPING,
    RemoveMapping: lib.DF_REMOVEMAPPING,
}


def _aligned(name: str, **values: int) -> None:
    for field, value in values.items():
        if value % RANGE_SIZE or value >= 1 << 62:
            raise ProtocolError(f"{name}: {field} {value:#x} is not a multiple of {RANGE_SIZE:#x} below 2^62")


def checked(data: bytes, fds: int, kinds: Mapping[int, tuple[str, int]]) -> tuple[ffi.CData, str]:
    """The header of a packet and the name of its struct, when it is one of `kinds` (type -> struct,
    descriptors that come with it) and as long as it should be."""
    if len(data) < _HEADER:
        raise ProtocolError(f"a message of {len(data)} bytes is shorter than its header ({_HEADER})")
    header = ffi.from_buffer("struct df_header *", data)
    kind = kinds.get(header.type)
    if kind is None:
        raise ProtocolError(f"unknown message type {header.type}")
    name, wanted = kind
    if header.len != len(data):
        raise ProtocolError(f"{name}: says {header.len} bytes, has {len(data)}")
    if header.type != lib.DF_REMOVEMAPPING and len(data) != ffi.sizeof(name):
        raise ProtocolError(f"{name}: {len(data)} bytes, not {ffi.sizeof(name)}")
    if fds != wanted:
        raise ProtocolError(f"{name}: carries {fds} descriptors, not {wanted}")
    return header, name


def parse(data: bytes, fds: int) -> Message:
    """One packet and the number of descriptors it carried -> a message, all its fields sane."""
    header, name = checked(data, fds, _KINDS)
    if header.type == lib.DF_REMOVEMAPPING:
        return _removemapping(data)
    m = ffi.from_buffer(name + " *", data)
    if header.type == lib.DF_HELLO:
        return _hello(m)
    if header.type == lib.DF_OPEN:
        return Open(seq=m.h.seq)
    if header.type == lib.DF_RELEASE:
        return Release(seq=m.h.seq, fh=m.fh)
    return _setupmapping(m)


def _hello(m: ffi.CData) -> Hello:
    if m.version != lib.DF_WIRE_VERSION:
        raise ProtocolError(f"version {m.version}; this host speaks {lib.DF_WIRE_VERSION}")
    _aligned("struct df_hello", window_len=m.window_len)
    if m.window % lib.DF_PAGE_SIZE or m.window + m.window_len >= 1 << 47 or not m.window_len:
        raise ProtocolError(f"window {m.window:#x} + {m.window_len:#x} is not in user address space")
    if m.abi >= lib.DF_ABI_COUNT:
        raise ProtocolError(f"struct df_hello: abi {m.abi}")
    return Hello(m.h.seq, m.pid, m.window, m.window_len, m.abi, m.cpuid)


def _setupmapping(m: ffi.CData) -> SetupMapping:
    known = lib.DF_SETUPMAPPING_WRITE | lib.DF_SETUPMAPPING_READ
    if not m.flags or m.flags & ~known:
        raise ProtocolError(f"struct df_setupmapping: flags {m.flags:#x}")
    _aligned("struct df_setupmapping", foffset=m.foffset, len=m.len, moffset=m.moffset)
    if not m.len:
        raise ProtocolError("struct df_setupmapping: len is 0")
    return SetupMapping(
        seq=m.h.seq,
        fh=m.fh,
        foffset=m.foffset,
        len=m.len,
        moffset=m.moffset,
        read=bool(m.flags & lib.DF_SETUPMAPPING_READ),
        write=bool(m.flags & lib.DF_SETUPMAPPING_WRITE),
    )


def _removemapping(data: bytes) -> RemoveMapping:
    fixed = ffi.offsetof("struct df_removemapping", "one")
    if len(data) < fixed:
        raise ProtocolError(f"struct df_removemapping: {len(data)} bytes")
    # the array is only as long as the message: no pointer to the whole struct
    padded = data.ljust(MESSAGE_MAX, b"\0")
    m = ffi.from_buffer("struct df_removemapping *", padded)
    if not 1 <= m.count <= lib.DF_REMOVE_MAX or len(data) != fixed + m.count * _ONE:
        raise ProtocolError(f"struct df_removemapping: {m.count} entries in {len(data)} bytes")
    ranges = []
    for i in range(m.count):
        _aligned("struct df_removemapping", moffset=m.one[i].moffset, len=m.one[i].len)
        ranges.append((int(m.one[i].moffset), int(m.one[i].len)))
    return RemoveMapping(seq=m.h.seq, ranges=tuple(ranges))


def packed(name: str, kind: int, seq: int, error: int = 0, **fields: int) -> bytes:
    """The reply to a message of type `kind`: struct `name`, with `fields` filled in."""
    m = ffi.new(name + " *")
    header = m if name == "struct df_header" else m.h
    header.type = kind + lib.DF_REPLY
    header.len = ffi.sizeof(name)
    header.seq = seq
    header.error = error
    for field, value in fields.items():
        setattr(m, field, value)
    return bytes(ffi.buffer(m))


def _bytes(name: str, message: Message, error: int = 0, **fields: int) -> bytes:
    return packed(name, _TYPES[type(message)], message.seq, error, **fields)


def hello_reply(hello: Hello, cpuid: int) -> bytes:
    return _bytes(
        "struct df_hello",
        hello,
        version=lib.DF_WIRE_VERSION,
        pid=os.getpid(),
        window=hello.window,
        window_len=hello.window_len,
        abi=hello.abi,
        cpuid=cpuid,
    )


def open_reply(message: Open, fh: int, size: int) -> bytes:
    return _bytes("struct df_open", message, fh=fh, size=size)


def reply(message: Message, error: int = 0) -> bytes:
    """Success without more to tell, or a refusal: the header alone."""
    return _bytes("struct df_header", message, error)
