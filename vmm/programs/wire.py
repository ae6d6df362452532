# SPDX-License-Identifier: Apache-2.0
"""The messages of programs (abi.h, "programs"): bytes in, checked values out.

No I/O, no policy.  A message that breaks the protocol raises daxfault.vmm.host.wire.ProtocolError.
"""

from __future__ import annotations

import dataclasses
import os

from daxfault.native import PAGE_SIZE, ffi, lib
from daxfault.vmm.host.wire import ProtocolError, checked, packed

ADDRESSES = 1 << 47  # of user space, 4-level paging; a program must ask for more (mm/mmap.c)


@dataclasses.dataclass(frozen=True, slots=True)
class Attach:
    """A program presents itself."""

    seq: int
    pid: int


@dataclasses.dataclass(frozen=True, slots=True)
class Serve:
    """Its userfaultfd."""

    seq: int


@dataclasses.dataclass(frozen=True, slots=True)
class Mmap:
    """mmap(2), with the program's own descriptor; `shared` and `write` are what the errno depends on."""

    seq: int
    offset: int
    len: int
    shared: bool
    write: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Mapped:
    """Where it was mapped, whole pages; `len` 0: nowhere."""

    seq: int
    start: int
    len: int


@dataclasses.dataclass(frozen=True, slots=True)
class Msync:
    """MS_SYNC of a range."""

    seq: int
    start: int
    len: int


@dataclasses.dataclass(frozen=True, slots=True)
class Sigbus:
    """A SIGBUS it had no handler for, and its stack, innermost first."""

    seq: int
    address: int
    tid: int
    code: int
    frames: tuple[int, ...]


Message = Attach | Serve | Mmap | Mapped | Msync | Sigbus

# type -> (struct, descriptors that come with it)
_KINDS = {
    lib.DF_ATTACH: ("struct df_attach", 0),
    lib.DF_SERVE: ("struct df_serve", 1),
    lib.DF_MMAP: ("struct df_mmap", 1),
    lib.DF_MAPPED: ("struct df_mapped", 0),
    lib.DF_MSYNC: ("struct df_msync", 0),
    lib.DF_SIGBUS: ("struct df_sigbus", 0),
}
_TYPES: dict[type, int] = {
    Attach: lib.DF_ATTACH,
    Serve: lib.DF_SERVE,
    Mmap: lib.DF_MMAP,
    Mapped: lib.DF_MAPPED,
    Msync: lib.DF_MSYNC,
    Sigbus: lib.DF_SIGBUS,
}
_PROT_WRITE = 2
_MAP_TYPE = 0xF
_MAP_PRIVATE = 2


def parse(data: bytes, fds: int) -> Message:
    """One packet and the number of descriptors it carried -> a message."""
    header, name = checked(data, fds, _KINDS)
    m = ffi.from_buffer(name + " *", data)
    seq = header.seq
    if header.type == lib.DF_ATTACH:
        if m.version != lib.DF_WIRE_VERSION:
            raise ProtocolError(f"version {m.version}; this host speaks {lib.DF_WIRE_VERSION}")
        return Attach(seq, m.pid)
    if header.type == lib.DF_SERVE:
        return Serve(seq)
    if header.type == lib.DF_MMAP:
        # no more than the errno depends on: the rest is for the kernel to judge
        shared = m.flags & _MAP_TYPE != _MAP_PRIVATE
        return Mmap(seq, m.offset, m.len, shared, bool(m.prot & _PROT_WRITE))
    if header.type == lib.DF_SIGBUS:
        if m.nframes > lib.DF_SIGBUS_FRAMES:
            raise ProtocolError(f"{name}: {m.nframes} frames")
        return Sigbus(seq, m.address, m.tid, m.code, tuple(m.frames[0 : m.nframes]))
    if m.start % PAGE_SIZE or m.start + m.len > ADDRESSES:
        raise ProtocolError(f"{name}: {m.start:#x} + {m.len:#x} is not in user address space")
    if header.type == lib.DF_MSYNC:
        return Msync(seq, m.start, m.len)
    if m.len % PAGE_SIZE:
        raise ProtocolError(f"{name}: len {m.len:#x} is not in whole pages")
    return Mapped(seq, m.start, m.len)


def reply(message: Message, error: int = 0) -> bytes:
    """Success without more to tell, or a refusal: the header alone."""
    return packed("struct df_header", _TYPES[type(message)], message.seq, error)


def attach_reply(message: Attach) -> bytes:
    return packed(
        "struct df_attach", lib.DF_ATTACH, message.seq, version=lib.DF_WIRE_VERSION, pid=os.getpid()
    )


def serve_reply(message: Serve, *, children: bool) -> bytes:
    flags = lib.DF_SERVE_CHILDREN if children else 0
    return packed("struct df_serve", lib.DF_SERVE, message.seq, flags=flags)


def mmap_reply(message: Mmap, *, private: bool) -> bytes:
    return packed(
        "struct df_mmap", lib.DF_MMAP, message.seq, offset=message.offset, len=message.len, private=private
    )
