# SPDX-License-Identifier: Apache-2.0
"""daxfault.native.program_wire against anything a program may send: a sane message, or ProtocolError."""

import dataclasses
import mmap

import messages
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from messages import HEADER, message

from daxfault.native import PAGE_SIZE, ffi, lib
from daxfault.native import program_wire as wire
from daxfault.native.wire import MESSAGE_MAX, Message, ProtocolError

KINDS = [lib.DF_ATTACH, lib.DF_SERVE, lib.DF_MMAP, lib.DF_MAPPED, lib.DF_MSYNC, lib.DF_SIGBUS]
NUMBERS = st.integers(0, 2**64 - 1)
INTS = st.integers(-(2**31), 2**31 - 1)
WORDS = st.integers(0, 2**32 - 1)
PAGES = wire.ADDRESSES // PAGE_SIZE


@st.composite
def valid_messages(draw: st.DrawFn) -> tuple[Message, bytes, int]:
    """A valid message: its value, its bytes, and how many descriptors come with it."""
    seq, kind = draw(NUMBERS), draw(st.sampled_from(KINDS))
    if kind == lib.DF_ATTACH:
        pid = draw(INTS)
        return wire.Attach(seq, pid), messages.attach(pid=pid, seq=seq), 0
    if kind == lib.DF_SERVE:
        return wire.Serve(seq), messages.serve(seq=seq), 1
    if kind == lib.DF_MMAP:
        offset, length, prot, flags = draw(NUMBERS), draw(NUMBERS), draw(WORDS), draw(WORDS)
        shared, write = flags & 0xF != mmap.MAP_PRIVATE, bool(prot & mmap.PROT_WRITE)
        fd, tid = draw(INTS), draw(INTS)
        data = messages.mmapping(offset, length, prot=prot, flags=flags, fd=fd, tid=tid, seq=seq)
        return wire.Mmap(seq, offset, length, shared, write, fd, tid), data, 0
    if kind == lib.DF_SIGBUS:
        frames = draw(st.lists(NUMBERS, max_size=lib.DF_SIGBUS_FRAMES))
        s = wire.Sigbus(seq, draw(NUMBERS), draw(INTS), draw(INTS), tuple(frames))
        return s, messages.sigbus(s.address, tid=s.tid, code=s.code, frames=frames, seq=seq), 0
    first = draw(st.integers(0, PAGES))
    start, room = first * PAGE_SIZE, PAGES - first
    if kind == lib.DF_MSYNC:
        length = draw(st.integers(0, room * PAGE_SIZE))
        return wire.Msync(seq, start, length), messages.msync(start, length, seq=seq), 0
    length = draw(st.integers(0, room)) * PAGE_SIZE
    return wire.Mapped(seq, start, length), messages.mapped(start, length, seq=seq), 0


def parsed(data: bytes, fds: int) -> Message | None:
    """What parse() makes of it, checked; None when it refuses."""
    try:
        m = wire.parse(data, fds)
    except ProtocolError:
        return None
    assert all(type(v) in (int, bool, tuple) for v in (getattr(m, f.name) for f in dataclasses.fields(m)))
    assert 0 <= m.seq < 2**64
    assert fds == isinstance(m, wire.Serve)
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


@given(valid_messages(), st.data())
def test_parse_of_valid_message_with_changed_bytes_gives_sane_message_or_protocol_error(
    valid: tuple[Message, bytes, int], data: st.DataObject
) -> None:
    _, good, fds = valid
    parsed(messages.with_changed_bytes(good, lambda a, b: data.draw(st.integers(a, b))), fds)


@given(valid_messages())
def test_parse_of_valid_message_gives_its_fields_back(valid: tuple[Message, bytes, int]) -> None:
    m, data, fds = valid
    assert wire.parse(data, fds) == m
    for n in range(8):
        if n != fds:
            assert parsed(data, n) is None


SAMPLES = {
    "attach": (messages.attach(), 0),
    "serve": (messages.serve(), 1),
    "mmap": (messages.mmapping(), 0),
    "mapped": (messages.mapped(PAGE_SIZE, PAGE_SIZE), 0),
    "msync": (messages.msync(PAGE_SIZE, 1), 0),
    "sigbus": (messages.sigbus(1, frames=[1, 2]), 0),
}


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("honest", [True, False], ids=["own length", "first length"])
def test_parse_of_valid_message_cut_or_extended_by_any_length_is_refused(name: str, honest: bool) -> None:
    """`honest`: the header says the length that the message has now."""
    good, fds = SAMPLES[name]
    assert parsed(good, fds) is not None
    for other in messages.of_other_lengths(good, honest=honest):
        assert parsed(other, fds) is None


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (messages.attach(version=lib.DF_WIRE_VERSION + 1), f"version {lib.DF_WIRE_VERSION + 1}"),
        (messages.mapped(1, PAGE_SIZE), "not in user address space"),
        (messages.mapped(PAGE_SIZE, 1), "not in whole pages"),
        (messages.mapped(PAGE_SIZE, 2**64 - PAGE_SIZE), "not in user address space"),
        (messages.mapped(wire.ADDRESSES, PAGE_SIZE), "not in user address space"),
        (messages.mapped(2**64 - PAGE_SIZE, PAGE_SIZE), "not in user address space"),
        (messages.msync(5, 1), "not in user address space"),
        (messages.msync(0, wire.ADDRESSES + 1), "not in user address space"),
        (messages.sigbus(0, nframes=lib.DF_SIGBUS_FRAMES + 1), "33 frames"),
        (messages.sigbus(0, nframes=2**32 - 1), "4294967295 frames"),
        (message(lib.DF_ATTACH + lib.DF_REPLY), "unknown message type 1016"),
    ],
)
def test_parse_of_message_that_makes_no_sense_says_why(data: bytes, why: str) -> None:
    with pytest.raises(ProtocolError, match=why):
        wire.parse(data, 0)


def test_messages_of_tests_are_as_long_as_the_contract_has_them() -> None:
    for name, (data, _) in SAMPLES.items():
        assert len(data) == ffi.sizeof(f"struct df_{name}")
