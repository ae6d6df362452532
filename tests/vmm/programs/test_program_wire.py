# SPDX-License-Identifier: Apache-2.0
"""daxfault.native.program_wire against anything a program may send: a sane message, or ProtocolError."""

import dataclasses
import mmap
import random
import struct

import pytest
import raw_program
from hypothesis import example, given
from hypothesis import strategies as st
from raw_guest import HEADER, message

from daxfault.native import PAGE_SIZE, ffi, lib
from daxfault.native import program_wire as wire
from daxfault.native.wire import MESSAGE_MAX, Message, ProtocolError

KINDS = [lib.DF_ATTACH, lib.DF_SERVE, lib.DF_MMAP, lib.DF_MAPPED, lib.DF_MSYNC, lib.DF_SIGBUS]
NUMBERS = st.integers(0, 2**64 - 1)
INTS = st.integers(-(2**31), 2**31 - 1)
WORDS = st.integers(0, 2**32 - 1)
PAGES = wire.ADDRESSES // PAGE_SIZE


@st.composite
def messages(draw: st.DrawFn) -> tuple[Message, bytes, int]:
    """A valid message: its value, its bytes, and how many descriptors come with it."""
    seq, kind = draw(NUMBERS), draw(st.sampled_from(KINDS))
    if kind == lib.DF_ATTACH:
        pid = draw(INTS)
        return wire.Attach(seq, pid), raw_program.attach(pid=pid, seq=seq), 0
    if kind == lib.DF_SERVE:
        return wire.Serve(seq), raw_program.serve(seq=seq), 1
    if kind == lib.DF_MMAP:
        offset, length, prot, flags = draw(NUMBERS), draw(NUMBERS), draw(WORDS), draw(WORDS)
        shared, write = flags & 0xF != mmap.MAP_PRIVATE, bool(prot & mmap.PROT_WRITE)
        data = raw_program.mmapping(offset, length, prot=prot, flags=flags, seq=seq)
        return wire.Mmap(seq, offset, length, shared, write), data, 1
    if kind == lib.DF_SIGBUS:
        frames = draw(st.lists(NUMBERS, max_size=lib.DF_SIGBUS_FRAMES))
        s = wire.Sigbus(seq, draw(NUMBERS), draw(INTS), draw(INTS), tuple(frames))
        return s, raw_program.sigbus(s.address, tid=s.tid, code=s.code, frames=frames, seq=seq), 0
    first = draw(st.integers(0, PAGES))
    start, room = first * PAGE_SIZE, PAGES - first
    if kind == lib.DF_MSYNC:
        length = draw(st.integers(0, room * PAGE_SIZE))
        return wire.Msync(seq, start, length), raw_program.msync(start, length, seq=seq), 0
    length = draw(st.integers(0, room)) * PAGE_SIZE
    return wire.Mapped(seq, start, length), raw_program.mapped(start, length, seq=seq), 0


def parsed(data: bytes, fds: int) -> Message | None:
    """What parse() makes of it, checked; None when it refuses."""
    try:
        m = wire.parse(data, fds)
    except ProtocolError:
        return None
    assert all(type(v) in (int, bool, tuple) for v in (getattr(m, f.name) for f in dataclasses.fields(m)))
    assert 0 <= m.seq < 2**64
    assert fds == (1 if isinstance(m, wire.Serve | wire.Mmap) else 0)
    if isinstance(m, wire.Mapped | wire.Msync):
        assert m.start % PAGE_SIZE == 0
        assert 0 <= m.start <= m.start + m.len <= wire.ADDRESSES
    if isinstance(m, wire.Mapped):
        assert m.len % PAGE_SIZE == 0
    if isinstance(m, wire.Sigbus):
        assert len(m.frames) <= lib.DF_SIGBUS_FRAMES
    return m


@given(st.binary(max_size=2 * MESSAGE_MAX), st.integers(0, 8))
@example(b"", 0)
@example(bytes(HEADER.size), 0)
def test_parse_of_arbitrary_bytes_gives_sane_message_or_protocol_error(data: bytes, fds: int) -> None:
    parsed(data, fds)


@given(st.sampled_from([*KINDS, 1, 48, 1016, 2**32 - 1]), st.data(), st.integers(0, 2))
def test_parse_of_arbitrary_fields_gives_sane_message_or_protocol_error(
    kind: int, data: st.DataObject, fds: int
) -> None:
    sizes = [len(valid) - HEADER.size for valid, _ in SAMPLES.values()]
    size = data.draw(st.sampled_from(sizes))
    parsed(message(kind, data.draw(st.binary(min_size=size, max_size=size))), fds)


@given(messages(), st.data())
def test_parse_of_valid_message_with_changed_bytes_gives_sane_message_or_protocol_error(
    valid: tuple[Message, bytes, int], data: st.DataObject
) -> None:
    _, good, fds = valid
    changed = bytearray(good)
    for _ in range(data.draw(st.integers(1, 8))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    parsed(bytes(changed), fds)


@given(messages())
def test_parse_of_valid_message_gives_its_fields_back(valid: tuple[Message, bytes, int]) -> None:
    m, data, fds = valid
    assert wire.parse(data, fds) == m
    for n in range(8):
        if n != fds:
            assert parsed(data, n) is None


SAMPLES = {
    "attach": (raw_program.attach(), 0),
    "serve": (raw_program.serve(), 1),
    "mmap": (raw_program.mmapping(), 1),
    "mapped": (raw_program.mapped(PAGE_SIZE, PAGE_SIZE), 0),
    "msync": (raw_program.msync(PAGE_SIZE, 1), 0),
    "sigbus": (raw_program.sigbus(1, frames=[1, 2]), 0),
}


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("honest", [True, False], ids=["own length", "first length"])
def test_parse_of_valid_message_cut_or_extended_by_any_length_is_refused(name: str, honest: bool) -> None:
    """`honest`: the header says the length that the message has now."""
    good, fds = SAMPLES[name]
    assert parsed(good, fds) is not None
    noise = random.Random(1).randbytes(2 * MESSAGE_MAX)
    for length in range(len(good) + MESSAGE_MAX):
        other = bytearray((good + noise)[:length])
        if honest and length >= 8:
            struct.pack_into("=I", other, 4, length)
        assert length == len(good) or parsed(bytes(other), fds) is None


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (raw_program.attach(version=lib.DF_WIRE_VERSION + 1), "version 3"),
        (raw_program.mapped(1, PAGE_SIZE), "not in user address space"),
        (raw_program.mapped(PAGE_SIZE, 1), "not in whole pages"),
        (raw_program.mapped(PAGE_SIZE, 2**64 - PAGE_SIZE), "not in user address space"),
        (raw_program.mapped(wire.ADDRESSES, PAGE_SIZE), "not in user address space"),
        (raw_program.mapped(2**64 - PAGE_SIZE, PAGE_SIZE), "not in user address space"),
        (raw_program.msync(5, 1), "not in user address space"),
        (raw_program.msync(0, wire.ADDRESSES + 1), "not in user address space"),
        (raw_program.sigbus(0, nframes=lib.DF_SIGBUS_FRAMES + 1), "33 frames"),
        (raw_program.sigbus(0, nframes=2**32 - 1), "4294967295 frames"),
        (message(lib.DF_ATTACH + lib.DF_REPLY), "unknown message type 1016"),
    ],
)
def test_parse_of_message_that_makes_no_sense_says_why(data: bytes, why: str) -> None:
    with pytest.raises(ProtocolError, match=why):
        wire.parse(data, 0)


def test_messages_of_tests_are_as_long_as_the_contract_has_them() -> None:
    for name, (data, _) in SAMPLES.items():
        assert len(data) == ffi.sizeof(f"struct df_{name}")
