# SPDX-License-Identifier: Apache-2.0
"""Guests that fork, move, unmap and drop what they have mapped: the bytes and the errors go along."""

import os
import random
import signal
import socket
from pathlib import Path

import pytest
import trio
from guest_process import guest_process
from messages import READ, WRITE
from needs import require
from raw_guest import uffd
from serving import PAGE, RANGE, Serving, call, eventually, noticed, serving
from trio.testing import trio_test

from daxfault.vmm.designs import DESIGNS
from daxfault.vmm.study.standin import Done, StandIn

DATA = random.Random(1).randbytes(64 * PAGE)
EVENT_FORK = 1 << 1


async def reads(guest: StandIn, moffset: int, expected: bytes, vcpu: int = 0) -> None:
    for at in range(0, len(expected), PAGE):
        got = await guest.access(vcpu, f"read {moffset + at} {min(PAGE, len(expected) - at)}")
        assert bytes.fromhex(got.value) == expected[at : at + PAGE]


async def bus(guest: StandIn, text: str, at: int) -> Done:
    got = await guest.access(0, text)
    assert (got.outcome, got.address) == ("sigbus", guest.window + at)
    return got


async def truncate(s: Serving, guest: StandIn, name: str, size: int, via: str) -> None:
    if via == "mount":
        await call(os.truncate, s.mount / name, size)
    else:
        os.truncate(s.backing / name, size)
        await noticed(guest, name, size)


# ---- fork


def require_forks() -> None:
    try:
        os.close(uffd(EVENT_FORK))
    except OSError as e:
        require(False, f"UFFD_FEATURE_EVENT_FORK: {e}")


@pytest.mark.parametrize("present", [False, True])
@trio_test
async def test_forked_child_reads_right_bytes(tmp_path: Path, present: bool) -> None:
    require_forks()

    async with serving(tmp_path) as s, s.mapped("file", DATA) as guest:
        for page in (0, 5, 63):
            if present:
                await guest.access(0, f"touch {page * PAGE + 1}")
            got = await guest.access(0, f"fork {page * PAGE + 1}")
            assert (got.outcome, got.value) == ("ok", DATA[page * PAGE + 1])


@pytest.mark.parametrize("via", ["mount", "behind"])
@trio_test
async def test_forked_child_gets_sigbus_past_eof_and_after_truncation(tmp_path: Path, via: str) -> None:
    require_forks()

    async with serving(tmp_path) as s, s.mapped("file", DATA) as guest:
        assert (await bus(guest, f"fork {len(DATA) + 7}", len(DATA) + 7)).raw["signal"] == signal.SIGBUS
        await guest.access(0, f"sum 0 {len(DATA)}")
        await truncate(s, guest, "file", PAGE, via)
        await bus(guest, f"fork {PAGE + 9}", PAGE + 9)
        assert (await guest.access(0, "fork 3")).value == DATA[3]
        await truncate(s, guest, "file", len(DATA), via)
        assert (await guest.access(0, f"fork {PAGE + 9}")).value == 0


@trio_test
async def test_many_forked_children_are_served_and_let_go(tmp_path: Path) -> None:
    require_forks()

    async with serving(tmp_path) as s, s.mapped("file", DATA, "r") as guest:

        async def fork_often(vcpu: int) -> None:
            for n in range(12):
                at = (vcpu * 12 + n) * 997 % len(DATA)
                got = await guest.access(vcpu, f"fork {at}")
                assert (got.outcome, got.value) == ("ok", DATA[at])

        descriptors = len(os.listdir("/proc/self/fd"))
        async with trio.open_nursery() as nursery:
            for vcpu in range(4):
                nursery.start_soon(fork_often, vcpu)
        file = guest.session.file("file")
        await eventually(lambda: file.state().mappings == 1, "the children's mappings gone")
        await eventually(
            lambda: len(os.listdir("/proc/self/fd")) <= descriptors, "the children's userfaultfds closed"
        )
        assert s.host.engine.counters().events_fork == 48


@pytest.mark.parametrize("via", ["mount", "behind"])
@pytest.mark.parametrize("releases", [False, True])
@trio_test
async def test_child_that_outlives_its_parent_keeps_right_bytes_and_errors(
    tmp_path: Path, via: str, releases: bool
) -> None:
    require_forks()

    async with serving(tmp_path) as s:
        path = s.make("file", DATA)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        async with guest_process(theirs) as guest:
            s.nursery.start_soon(s.host.guest, ours, guest.process.pid, DESIGNS["report"])
            await guest.do("hello", True, True)
            fh = await guest.do("open", os.fspath(path), os.O_RDWR)
            await guest.do("setup", fh, 0, RANGE, 0, READ | WRITE, "file")
            assert await guest.do("peek", 0, 8) == DATA[:8].hex()
            child = await guest.do("fork", fh if releases else 0)
            assert await guest.died() == 0
            await eventually(lambda: not s.host._sessions, "the parent's end")
            for page in (0, 40):
                assert await guest.do("peek", page * PAGE, 8) == DATA[page * PAGE :][:8].hex()
            assert await guest.do("poke", 9, b"stored".hex()) == 6
            # pages that it has: nobody asks for them again
            at = s.mount if via == "mount" else s.backing
            await call(os.truncate, at / "file", PAGE)

            async def gone() -> bool:
                try:
                    await guest.do("peek", 40 * PAGE, 8)
                except OSError:
                    return True
                return False

            if via == "mount":
                assert await gone()
            for _ in range(10_000):
                if await gone():
                    break
                await trio.sleep(0.001)  # inotify has no acknowledgement to wait for
            assert await gone()
            assert await guest.do("peek", 0, 8) == DATA[:8].hex()
            os.kill(child, signal.SIGKILL)
        expected = DATA[:9] + b"stored" + DATA[15:PAGE]
        await eventually(lambda: (s.backing / "file").read_bytes() == expected, "its stores written back")


# ---- moving, unmapping, dropping


@pytest.mark.parametrize("via", ["mount", "behind"])
@trio_test
async def test_moved_mapping_keeps_its_bytes_and_gets_errors_at_its_new_place(
    tmp_path: Path, via: str
) -> None:
    async with serving(tmp_path) as s, s.mapped("file", DATA) as guest:
        await guest.access(0, f"touch {20 * PAGE}")
        await guest.access(0, f"write {21 * PAGE} " + b"stored".hex())
        to = 2 * RANGE
        # pages 16 to 48 of the file: a region becomes three
        assert (await guest.access(0, f"remap {16 * PAGE} {32 * PAGE} {to}")).outcome == "ok"
        expected = bytearray(DATA)
        expected[21 * PAGE : 21 * PAGE + 6] = b"stored"
        await reads(guest, 0, expected[: 16 * PAGE])
        await reads(guest, to, expected[16 * PAGE : 48 * PAGE])
        await reads(guest, 48 * PAGE, expected[48 * PAGE :])
        assert (await guest.access(0, f"touch {20 * PAGE}")).outcome == "sigsegv"
        await guest.access(0, f"write {to} " + b"moved".hex())
        expected[16 * PAGE : 16 * PAGE + 5] = b"moved"

        await truncate(s, guest, "file", 20 * PAGE, via)
        await reads(guest, to, expected[16 * PAGE : 20 * PAGE])
        await bus(guest, f"touch {to + 4 * PAGE + 3}", to + 4 * PAGE + 3)
        await bus(guest, f"touch {50 * PAGE}", 50 * PAGE)
        await guest.unmap(0, 4 * RANGE)
        assert (s.backing / "file").read_bytes() == expected[: 20 * PAGE]


@trio_test
async def test_poison_that_was_moved_is_mended_at_its_new_place(tmp_path: Path) -> None:
    async with serving(tmp_path) as s, s.mapped("file", DATA[: 4 * PAGE]) as guest:
        assert (await guest.access(0, f"sys_write {6 * PAGE} 8")).outcome == "efault"
        await guest.access(0, f"remap 0 {16 * PAGE} {RANGE}")
        await bus(guest, f"touch {RANGE + 6 * PAGE}", RANGE + 6 * PAGE)
        await call(os.truncate, s.mount / "file", len(DATA))
        await reads(guest, RANGE + 6 * PAGE, bytes(PAGE))


@trio_test
async def test_part_of_a_mapping_unmapped_leaves_the_others_and_can_be_mapped_anew(tmp_path: Path) -> None:
    data = random.Random(2).randbytes(3 * RANGE)
    async with serving(tmp_path) as s, s.mapped("file", data) as guest:
        for at in (0, RANGE, 2 * RANGE):
            await guest.access(0, f"write {at} " + b"stored".hex())
        await guest.unmap(RANGE, RANGE)
        got = await guest.access(0, f"touch {RANGE + 5}")
        assert (got.outcome, got.address) == ("sigsegv", guest.window + RANGE + 5)
        with (s.backing / "file").open("rb") as file:  # what was unmapped is in the file
            file.seek(RANGE)
            assert file.read(6) == b"stored"
        await reads(guest, 5 * PAGE, data[5 * PAGE : 6 * PAGE])
        await reads(guest, 2 * RANGE, b"stored" + data[2 * RANGE + 6 :][: PAGE - 6])
        await guest.map("f", 2 * RANGE, RANGE, RANGE, "r")
        await reads(guest, RANGE, b"stored" + data[2 * RANGE + 6 :][: PAGE - 6])
        await call(os.truncate, s.mount / "file", 2 * RANGE + PAGE)
        for at in (RANGE + PAGE, 2 * RANGE + PAGE):
            await bus(guest, f"touch {at}", at)


@pytest.mark.parametrize("mode", ["r", "w"])
@trio_test
async def test_dropped_pages_come_back_with_their_bytes_stores_and_errors(tmp_path: Path, mode: str) -> None:
    async with serving(tmp_path) as s, s.mapped("file", DATA, mode) as guest:
        expected = bytearray(DATA)
        await guest.access(0, f"sum 0 {len(DATA)}")
        if mode == "w":
            await guest.access(0, f"write {PAGE} " + b"stored".hex())
            expected[PAGE : PAGE + 6] = b"stored"
        await bus(guest, f"touch {len(DATA)}", len(DATA))
        assert (await guest.access(0, f"sys_write {len(DATA)} 8")).outcome == "efault"
        for _ in range(3):
            assert (await guest.access(0, f"dontneed 0 {RANGE}")).outcome == "ok"
            await reads(guest, 0, expected)
            await bus(guest, f"touch {len(DATA)}", len(DATA))
            assert (await guest.access(0, f"sys_write {len(DATA)} 8")).outcome == "efault"
        assert await call((s.mount / "file").read_bytes) == expected


@trio_test
async def test_file_mapped_twice_in_one_window_is_one_file(tmp_path: Path) -> None:
    data = random.Random(3).randbytes(RANGE + 64 * PAGE)
    async with serving(tmp_path) as s, s.mapped("file", data) as guest:
        await guest.map("f", RANGE, RANGE, 4 * RANGE, "w")  # the second range, again
        await guest.map("f", 0, RANGE, 6 * RANGE, "r")  # the first, read-only
        await guest.access(0, f"write {RANGE + 7} " + b"one".hex())
        await guest.access(1, f"write {4 * RANGE + 10} " + b"two".hex())
        await guest.access(1, "write 3 " + b"three".hex())
        await reads(guest, RANGE, data[RANGE:][:7] + b"onetwo" + data[RANGE + 13 :][: PAGE - 13])
        await reads(guest, 4 * RANGE, data[RANGE:][:7] + b"onetwo" + data[RANGE + 13 :][: PAGE - 13])
        await reads(guest, 6 * RANGE, data[:3] + b"three" + data[8:PAGE])
        await call(os.truncate, s.mount / "file", RANGE + PAGE)
        for at in (RANGE + PAGE, 4 * RANGE + PAGE):
            await bus(guest, f"touch {at}", at)
        await guest.unmap(RANGE, RANGE)
        await reads(guest, 4 * RANGE, data[RANGE:][:7] + b"onetwo" + data[RANGE + 13 :][: PAGE - 13])
