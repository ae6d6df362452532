# SPDX-License-Identifier: Apache-2.0
"""daxfault.native.guest_wire against anything a peer may send: a sane message, or ProtocolError."""

import dataclasses
import os
import struct

import messages
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from daxfault.native import RANGE_SIZE, lib
from daxfault.native import guest_wire as wire
from daxfault.native.wire import MESSAGE_MAX, Message, ProtocolError, reply

NUMBERS = st.integers(0, 2**64 - 1)
ALIGNED = st.integers(0, 2**41 - 1).map(lambda n: n * RANGE_SIZE)
LENGTHS = st.integers(1, 2**41 - 1).map(lambda n: n * RANGE_SIZE)
WINDOWS = st.tuples(st.integers(0, 2**34), st.integers(1, 2**25 - 1)).filter(
    lambda w: w[0] * lib.DF_PAGE_SIZE + w[1] * RANGE_SIZE < 1 << 47
)


@st.composite
def valid_messages(draw: st.DrawFn) -> tuple[Message, bytes, int]:
    """A valid message: its value, its bytes, and how many descriptors come with it."""
    seq = draw(NUMBERS)
    kind = draw(st.sampled_from(["hello", "open", "release", "setup", "remove"]))
    if kind == "hello":
        page, ranges = draw(WINDOWS)
        m = wire.Hello(
            seq,
            draw(st.integers(0, 2**31 - 1)),
            page * lib.DF_PAGE_SIZE,
            ranges * RANGE_SIZE,
            draw(st.integers(0, lib.DF_ABI_COUNT - 1)),
            draw(st.integers(0, 2**32 - 1)),
        )
        data = messages.hello(
            pid=m.pid, window=m.window, window_len=m.window_len, abi=m.abi, cpuid=m.cpuid, seq=seq
        )
        return m, data, 2
    if kind == "open":
        return wire.Open(seq), messages.opening(seq=seq), 1
    if kind == "release":
        fh = draw(NUMBERS)
        return wire.Release(seq, fh), messages.release(fh, seq=seq), 0
    if kind == "setup":
        flags = draw(st.integers(1, 3))
        s = wire.SetupMapping(
            seq,
            draw(NUMBERS),
            draw(ALIGNED),
            draw(LENGTHS),
            draw(ALIGNED),
            bool(flags & messages.READ),
            bool(flags & messages.WRITE),
        )
        return s, messages.setup(s.fh, s.foffset, s.len, s.moffset, flags, seq=seq), 0
    some = draw(st.lists(st.tuples(ALIGNED, ALIGNED), min_size=1, max_size=lib.DF_REMOVE_MAX))
    return wire.RemoveMapping(seq, tuple(some)), messages.remove(*some, seq=seq), 0


def parsed(data: bytes, fds: int) -> Message | None:
    """What parse() makes of it, checked; None when it refuses."""
    try:
        m = wire.parse(data, fds)
    except ProtocolError:
        return None
    assert all(type(v) in (int, bool, tuple) for v in (getattr(m, f.name) for f in dataclasses.fields(m)))
    assert 0 <= m.seq < 2**64
    if isinstance(m, wire.Hello):
        assert fds == 2
        assert m.window % lib.DF_PAGE_SIZE == 0
        assert m.window_len % RANGE_SIZE == 0
        assert 0 < m.window_len <= m.window + m.window_len < 1 << 47
    elif isinstance(m, wire.SetupMapping):
        assert fds == 0
        assert m.read or m.write
        assert m.len > 0
        for value in (m.foffset, m.len, m.moffset):
            assert value % RANGE_SIZE == 0
            assert 0 <= value < 2**62
    elif isinstance(m, wire.RemoveMapping):
        assert fds == 0
        assert 1 <= len(m.ranges) <= lib.DF_REMOVE_MAX
        for value in (value for pair in m.ranges for value in pair):
            assert value % RANGE_SIZE == 0
            assert 0 <= value < 2**62
    else:
        assert fds == (1 if isinstance(m, wire.Open) else 0)
    return m


@given(st.binary(max_size=2 * MESSAGE_MAX), st.integers(0, 8))
@example(b"", 0)
@example(bytes(messages.HEADER.size), 0)
def test_parse_of_arbitrary_bytes_gives_sane_message_or_protocol_error(data: bytes, fds: int) -> None:
    parsed(data, fds)


@given(
    st.sampled_from([1, 2, 3, 48, 49, 50, 1001, 2**32 - 1]),
    st.binary(max_size=MESSAGE_MAX),
    st.integers(0, 3),
)
def test_parse_of_arbitrary_fields_gives_sane_message_or_protocol_error(
    kind: int, fields: bytes, fds: int
) -> None:
    parsed(messages.message(kind, fields), fds)


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


@given(valid_messages())
def test_parse_of_valid_message_with_other_number_of_descriptors_is_refused(
    valid: tuple[Message, bytes, int],
) -> None:
    _, data, fds = valid
    for n in range(16):
        if n != fds:
            assert parsed(data, n) is None


SAMPLES = {
    "hello": (messages.hello(), 2),
    "open": (messages.opening(), 1),
    "release": (messages.release(1), 0),
    "setup": (messages.setup(1, 0, RANGE_SIZE, 0), 0),
    "remove one": (messages.remove((0, RANGE_SIZE)), 0),
    "remove most": (messages.remove(*[(0, RANGE_SIZE)] * lib.DF_REMOVE_MAX), 0),
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
    ("data", "fds", "why"),
    [
        (messages.hello(version=4), 2, "version 4"),
        (messages.hello(version=0), 2, "version 0"),
        (messages.hello(window=1), 2, "user address space"),
        (messages.hello(window_len=0), 2, "user address space"),
        (messages.hello(window_len=RANGE_SIZE + 4096), 2, "multiple"),
        (messages.hello(window=2**64 - 4096, window_len=RANGE_SIZE), 2, "user address space"),
        (messages.hello(window=(1 << 47) - RANGE_SIZE, window_len=RANGE_SIZE), 2, "user address space"),
        (messages.hello(window_len=1 << 63), 2, "multiple"),
        (messages.setup(1, 0, RANGE_SIZE, 0, flags=0), 0, "flags"),
        (messages.setup(1, 0, RANGE_SIZE, 0, flags=4), 0, "flags"),
        (messages.setup(1, 0, RANGE_SIZE, 0, flags=2**64 - 1), 0, "flags"),
        (messages.setup(1, 0, 0, 0), 0, "len is 0"),
        (messages.setup(1, 4096, RANGE_SIZE, 0), 0, "foffset"),
        (messages.setup(1, 0, 4096, 0), 0, "len"),
        (messages.setup(1, 0, RANGE_SIZE, 4096), 0, "moffset"),
        (messages.setup(1, 2**64 - RANGE_SIZE, RANGE_SIZE, 0), 0, "foffset"),
        (messages.setup(1, 0, 1 << 62, 0), 0, "len"),
        (messages.remove(), 0, "0 entries"),
        (messages.remove((0, RANGE_SIZE), count=2), 0, "2 entries"),
        (messages.remove((0, RANGE_SIZE), (0, 0), count=1), 0, "1 entries"),
        (messages.remove(*[(0, RANGE_SIZE)] * 64, count=65), 0, "65 entries"),
        (messages.remove((0, 1)), 0, "len"),
        (messages.message(1002), 0, "unknown"),
        (messages.message(0), 0, "unknown"),
    ],
)
def test_parse_of_message_that_makes_no_sense_says_why(data: bytes, fds: int, why: str) -> None:
    with pytest.raises(ProtocolError, match=why):
        wire.parse(data, fds)


@given(NUMBERS, NUMBERS, st.integers(0, 2**63 - 1))
def test_replies_have_the_requests_type_and_number(seq: int, fh: int, size: int) -> None:
    def header(data: bytes) -> tuple[int, ...]:
        return messages.HEADER.unpack_from(data)

    data = wire.open_reply(wire.Open(seq), fh, size)
    assert header(data) == (1002, len(data), seq, 0, 0)
    assert struct.unpack_from("=QQ", data, messages.HEADER.size) == (fh, size)
    assert header(reply(wire.Release(seq, fh), 9)) == (1003, messages.HEADER.size, seq, 9, 0)
    greeting = wire.hello_reply(wire.Hello(seq, 1, 0, RANGE_SIZE, 5, 3), 1)
    assert messages.HELLO.unpack(greeting)[:7] == (1001, len(greeting), seq, 0, 0, 3, os.getpid())
    assert messages.HELLO.unpack(greeting)[7:] == (0, RANGE_SIZE, 5, 1)
