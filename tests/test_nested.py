# SPDX-License-Identifier: Apache-2.0
"""Guests of a guest: bytes, errors and deaths of every level, at the innermost task.

The host in this process is L0, its stand-in L1 is the host of the stand-in L2.
"""

import contextlib
import errno
import os
import random
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import raw_guest
import trio
from lines import Lines, killable_host
from raw_guest import RawGuest, closing
from stage import PAGE, RANGE, Stage, call, eventually, stage
from trio.testing import trio_test

from native import Cpuid
from vmm.compare import nested
from vmm.compare.nested import Nest, nest
from vmm.designs import DESIGNS
from vmm.standin import StandIn, StandInError
from vmm.standin import nested as guest_of

DATA = random.Random(7).randbytes(64 * PAGE)
CUT = 33 * PAGE


def fnv1a(data: bytes) -> str:
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 2**64 - 1
    return f"{value:016x}"


@contextlib.asynccontextmanager
async def nesting(top: Path, design: str = "report") -> AsyncIterator[tuple[Stage, Nest]]:
    async with stage(top, loop_seconds=60) as s:
        path = s.make("file", DATA)
        async with nest(s.host, s.nursery, DESIGNS[design], path) as n:
            yield s, n


async def truncated(s: Stage, size: int = CUT) -> None:
    await call(os.truncate, s.mount / "file", size)


# ---- bytes


def test_nested_guest_reads_the_bytes_of_the_bottom(tmp_path: Path) -> None:
    @trio_test
    async def body() -> None:
        async with nesting(tmp_path) as (_, n):
            got = await n.l2.access(0, f"sum 0 {len(DATA)}")
            assert (got.outcome, got.value) == ("ok", fnv1a(DATA))
            # a page at a time, and none that nobody asked for
            assert (await n.l1.hosted())["fetched"] == len(DATA) // PAGE

    body()


def test_nested_guest_with_many_vcpus_reads_each_page_once(tmp_path: Path) -> None:
    @trio_test
    async def body() -> None:
        async with nesting(tmp_path) as (_, n):

            async def read(vcpu: int) -> None:
                for page in random.Random(vcpu).sample(range(len(DATA) // PAGE), 64):
                    got = await n.l2.access(vcpu, f"read {page * PAGE + 7} 16")
                    assert got.value == DATA[page * PAGE + 7 :][:16].hex()

            async with trio.open_nursery() as nursery:
                for vcpu in range(8):
                    nursery.start_soon(read, vcpu)
            assert (await n.l1.hosted())["fetched"] == len(DATA) // PAGE

    body()


def test_nested_guest_that_had_a_page_keeps_it_when_the_bottom_changes(tmp_path: Path) -> None:
    """A limit of nesting, not a promise: nobody tells L1 that L0's file is another."""

    @trio_test
    async def body() -> None:
        async with nesting(tmp_path) as (s, n):
            await n.l2.access(0, f"touch {40 * PAGE}")
            await truncated(s)
            got = await n.l2.access(0, f"read {40 * PAGE} 16")
            assert (got.outcome, got.value) == ("ok", DATA[40 * PAGE :][:16].hex())

    body()


# ---- errors


@pytest.mark.parametrize("design", ["report", "poison"])
def test_nested_error_of_a_truncated_file_is_sigbus_at_the_exact_address(tmp_path: Path, design: str) -> None:
    @trio_test
    async def body() -> None:
        async with nesting(tmp_path, design) as (s, n):
            await truncated(s)
            got = await n.l2.access(0, f"touch {40 * PAGE + 5}")
            assert (got.outcome, got.address) == ("sigbus", n.base + 40 * PAGE + 5)
            got = await n.l2.access(1, f"kcopy {CUT - 16} 64")
            assert (got.outcome, got.done, got.address) == ("efault", 16, n.base + CUT)
            got = await n.l2.access(2, f"sys_write {50 * PAGE} 64")
            assert got.outcome == "efault"
            # what is there still is not disturbed
            got = await n.l2.access(3, f"read {CUT - 16} 16")
            assert got.value == DATA[CUT - 16 : CUT].hex()

    body()


def test_nested_error_that_was_reported_heals_when_the_file_grows_again(tmp_path: Path) -> None:
    @trio_test
    async def body() -> None:
        async with nesting(tmp_path) as (s, n):
            await truncated(s)
            assert (await n.l2.access(0, f"touch {40 * PAGE}")).outcome == "sigbus"
            await truncated(s, len(DATA))
            got = await n.l2.access(0, f"read {40 * PAGE} 16")
            assert (got.outcome, got.value) == ("ok", "00" * 16)

    body()


# What became of the innermost task under each design; docs/nested.md says why.
CARRIED = {
    "mainline": ("loop", None),
    "poison": ("sigbus", True),
    "report": ("sigbus", True),
}


@pytest.mark.parametrize("design", CARRIED)
def test_nested_comparison_of_a_design_finds_its_end(tmp_path: Path, design: str) -> None:
    @trio_test
    async def body() -> None:
        async with stage(tmp_path, loop_seconds=60) as s:
            chosen = DESIGNS[design]
            got = await nested.observe(s.host, s.nursery, chosen, s.backing / "file", s.mount / "file")
            assert (got["outcome"], got["address_exact"]) == CARRIED[design], got["detail"]

    body()


def test_nested_loop_at_the_bottom_holds_up_no_other_page(tmp_path: Path) -> None:
    @trio_test
    async def body() -> None:
        async with nesting(tmp_path, "mainline") as (s, n):
            await truncated(s)
            await n.l2.start(0, f"touch {40 * PAGE}")
            await eventually(lambda: s.host.records.total > 100, "a loop")
            got = await n.l2.access(1, f"read {3 * PAGE} 16")
            assert (got.outcome, got.value) == ("ok", DATA[3 * PAGE :][:16].hex())

    body()


# ---- deaths


def test_nested_guest_whose_host_dies_gets_poison_and_never_zeros(tmp_path: Path) -> None:
    @trio_test
    async def body() -> None:
        async with nesting(tmp_path, "mainline") as (s, n):
            assert (await n.l2.access(0, "touch 0")).value == DATA[0]
            await truncated(s)
            waiting = await n.l2.start(1, f"touch {40 * PAGE}")
            await eventually(lambda: s.host.records.total > 100, "a fault under way")
            n.l1.process.send_signal(signal.SIGKILL)
            got = await waiting()
            assert (got.outcome, got.address) == ("sigbus", n.base + 40 * PAGE)
            got = await n.l2.access(0, f"touch {3 * PAGE}")
            assert (got.outcome, got.address) == ("sigbus", n.base + 3 * PAGE)
            assert (await n.l2.access(0, f"kcopy {4 * PAGE} 8")).outcome == "efault"
            # what it has it keeps
            assert (await n.l2.access(0, "read 0 16")).value == DATA[:16].hex()

    body()


def gone(l1: StandIn) -> list[str | None]:
    """Why L1 let its guests go, oldest first."""
    return [event.get("message") for event in l1.unsolicited if event["event"] == "guest_gone"]


def test_nested_guest_that_dies_makes_room_for_another(tmp_path: Path) -> None:
    @trio_test
    async def body() -> None:
        async with stage(tmp_path, loop_seconds=60) as s, s.mapped("file", DATA) as l1:
            socket_path = tmp_path / "l1"
            await l1.host(socket_path, 0, RANGE, DESIGNS["report"])
            for n in range(2):
                async with guest_of(socket_path, DESIGNS["report"]) as l2:
                    await l2.open("f", os.devnull)
                    await l2.map("f", 0, RANGE, 0)
                    got = await l2.access(0, f"read {n * PAGE} 16")
                    assert got.value == DATA[n * PAGE :][:16].hex()
                    begun = [await l2.start(vcpu, f"scan 0 {len(DATA)} {PAGE}") for vcpu in range(4)]
                    l2.process.kill()
                    for wait in begun:
                        with contextlib.suppress(StandInError):
                            await wait()
                await eventually(lambda n=n: gone(l1) == [None] * (n + 1), "L1 lets its guest go")
            # L1 itself is none the worse
            assert (await l1.access(0, f"sum 0 {len(DATA)}")).value == fnv1a(DATA)

    body()


def test_nested_guest_at_the_death_of_the_bottom_gets_errors_and_never_zeros(tmp_path: Path) -> None:
    with killable_host(tmp_path) as bottom:
        (tmp_path / "backing" / "file").write_bytes(DATA)
        l1 = Lines(tmp_path / "socket")
        l2 = None
        try:
            l1.do(f"open f {tmp_path}/mount/file rw", "open")
            l1.do(f"map f 0 {RANGE} 0 w", "map")
            l1.do(f"host {tmp_path}/l1 0 {RANGE} 5 {int(Cpuid.ERROR)} 0 report,report,report", "host")
            l2 = Lines(tmp_path / "l1")
            l2.do("open f /dev/null ro", "open")
            l2.do(f"map f 0 {RANGE} 0 r", "map")
            assert l2.do("vcpu 0 touch 0")["value"] == DATA[0]
            bottom.send_signal(signal.SIGKILL)
            bottom.wait()
            # L1 answers its own faults with poison by now or soon; before, they only wait.  Pages
            # near the first one it may have: the bottom installs 16 at once
            for page in (30, 40, 63):
                got = l2.do(f"vcpu 0 touch {page * PAGE + 3}")
                assert (got["outcome"], int(got["address"], 16)) == ("sigbus", l2.window + page * PAGE + 3)
            assert l2.do("vcpu 0 touch 0")["value"] == DATA[0]
        finally:
            l1.close()
            if l2 is not None:
                l2.close()


# ---- the command and the wire


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("0 2M 5 0 0", "wrong number of arguments"),
        ("x 2M 5 0 0 wake,wake,wake", "not a number"),
        ("0 0 5 0 0 wake,wake,wake", "a range needs a length"),
        ("0 1G 5 0 0 wake,wake,wake", "beyond the window"),
        ("1 4096 5 0 0 wake,wake,wake", "not a multiple of the page size"),
        ("0 2M 6 0 0 wake,wake,wake", "no such ABI"),
        ("0 2M 5 0 4 wake,wake,wake", "unknown bits"),
        ("0 2M 5 0x100000000 0 wake,wake,wake", "unknown bits"),
        ("0 2M 5 0 0 wake,wake", "not three answers"),
        ("0 2M 5 0 0 wake,wake,wake,wake", "not three answers"),
        ("0 2M 5 0 0 wake,wake,sleep", "not three answers"),
        ("0 2M 5 0 0 wake,wake,report/", "not three answers"),
    ],
)
def test_host_command_that_makes_no_sense_is_refused(tmp_path: Path, words: str, message: str) -> None:
    @trio_test
    async def body() -> None:
        async with stage(tmp_path) as s, s.guest(window=2 * RANGE) as l1:
            with pytest.raises(StandInError, match=message):
                await l1._ask(f"host {tmp_path}/l1 {words}")
            # and it changed nothing
            await l1.host(tmp_path / "l1", 0, RANGE, DESIGNS["report"])
            with pytest.raises(StandInError, match="a host already"):
                await l1.host(tmp_path / "l1", 0, RANGE, DESIGNS["report"])

    body()


def test_host_command_for_a_path_that_cannot_be_bound_says_why(tmp_path: Path) -> None:
    @trio_test
    async def body() -> None:
        async with stage(tmp_path) as s, s.guest(window=2 * RANGE) as l1:
            with pytest.raises(StandInError, match="not a host"):
                await l1.hosted()
            with pytest.raises(StandInError, match=f"{tmp_path}/no/l1: No such file or directory"):
                await l1.host(tmp_path / "no" / "l1", 0, RANGE, DESIGNS["report"])

    body()


@contextlib.asynccontextmanager
async def raw(tmp_path: Path, l1: StandIn) -> AsyncIterator[RawGuest]:
    """A guest of L1 that may say anything; L1 must serve a good one after it."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.connect(os.fspath(tmp_path / "l1"))
    guest = RawGuest(sock)
    try:
        yield guest
    finally:
        guest.close()
    async with guest_of(tmp_path / "l1", DESIGNS["report"]) as l2:
        await l2.open("f", os.devnull)
        await l2.map("f", 0, RANGE, 0)
        assert (await l2.access(0, "read 0 16")).value == DATA[:16].hex()


@contextlib.asynccontextmanager
async def l1_at(tmp_path: Path) -> AsyncIterator[StandIn]:
    async with stage(tmp_path) as s, s.mapped("file", DATA) as l1:
        await l1.host(tmp_path / "l1", 0, RANGE, DESIGNS["report"])
        yield l1


GARBAGE = {
    "one byte": b"\1",
    "noise": random.Random(3).randbytes(56),
    "longer than any": random.Random(3).randbytes(8192),
    "an open": raw_guest.opening(),
    "a hello cut short": raw_guest.hello()[:-8],
    "a hello without descriptors": raw_guest.hello(),
    "a reply": raw_guest.message(1001, bytes(40)),
    "a length that lies": raw_guest.message(2, bytes(16), length=64),
    "a mapping of half a page": raw_guest.setup(0, 2048, RANGE, 0),
    "a mapping of nothing": raw_guest.setup(0, 0, 0, 0),
    "a mapping for nothing": raw_guest.setup(0, 0, RANGE, 0, 0),
    "a removal of nothing": raw_guest.remove(),
    "a removal of more than it says": raw_guest.remove((0, RANGE), count=2),
    "a removal without end": raw_guest.remove((0, RANGE), count=2**32 - 1),
}


@pytest.mark.parametrize("greets", [False, True], ids=["first", "after its hello"])
@pytest.mark.parametrize("what", GARBAGE)
def test_nested_guest_that_sends_garbage_is_hung_up_on(tmp_path: Path, what: str, greets: bool) -> None:
    @trio_test
    async def body() -> None:
        async with l1_at(tmp_path) as l1, raw(tmp_path, l1) as guest:
            if greets:
                assert await guest.greet() == 0
            assert await guest.ask(GARBAGE[what]) == -1
            await eventually(lambda: gone(l1) and gone(l1)[0], "L1 says why")

    body()


BAD_HELLOS = {
    "another version": raw_guest.hello(version=raw_guest.VERSION + 1),
    "another process": raw_guest.hello(pid=1),
    "an unaligned window": raw_guest.hello(window=raw_guest.WINDOW + 1),
    "a window in the kernel": raw_guest.hello(window=2**63),
    "a window up to the end": raw_guest.hello(window=2**47 - PAGE),
    "no window": raw_guest.hello(window_len=0),
    "a window of everything": raw_guest.hello(window_len=2**46),
    "an unknown ABI": raw_guest.hello(abi=6),
}


@pytest.mark.parametrize("what", BAD_HELLOS)
def test_nested_guest_with_a_hello_that_is_wrong_is_hung_up_on(tmp_path: Path, what: str) -> None:
    @trio_test
    async def body() -> None:
        fds = [raw_guest.uffd(), raw_guest.area()]
        async with closing(*fds), l1_at(tmp_path) as l1, raw(tmp_path, l1) as guest:
            assert await guest.ask(BAD_HELLOS[what], fds) == -1

    body()


@pytest.mark.parametrize("what", ["no userfaultfd", "no features", "too many descriptors", "a small area"])
def test_nested_guest_with_descriptors_that_are_wrong_is_hung_up_on(tmp_path: Path, what: str) -> None:
    @trio_test
    async def body() -> None:
        uffds = {
            "no userfaultfd": raw_guest.area,
            "no features": lambda: raw_guest.uffd(raw_guest.THREAD_ID),
        }
        area = raw_guest.area(PAGE) if what == "a small area" else raw_guest.area()
        fds = [uffds.get(what, raw_guest.uffd)(), area]
        fds += [os.dup(area) for _ in range(20 if what == "too many descriptors" else 0)]
        async with closing(*fds), l1_at(tmp_path) as l1, raw(tmp_path, l1) as guest:
            assert await guest.ask(raw_guest.hello(), fds) == -1

    body()


def test_nested_guest_is_refused_what_it_may_not_have(tmp_path: Path) -> None:
    @trio_test
    async def body() -> None:
        async with l1_at(tmp_path) as l1, raw(tmp_path, l1) as guest:
            assert await guest.greet() == 0
            error, fh = await guest.open(os.devnull)
            assert error == 0
            refused = {
                raw_guest.setup(fh + 1, 0, RANGE, 0): errno.EBADF,
                raw_guest.setup(2**64 - 1, 0, RANGE, 0): errno.EBADF,
                raw_guest.setup(fh, 0, RANGE, 0, raw_guest.WRITE | raw_guest.READ): errno.EACCES,
                raw_guest.setup(fh, 0, RANGE, raw_guest.WINDOW_LEN): errno.EINVAL,
                raw_guest.setup(fh, 0, raw_guest.WINDOW_LEN, RANGE): errno.EINVAL,
                raw_guest.remove((raw_guest.WINDOW_LEN, RANGE)): errno.EINVAL,
                raw_guest.release(fh + 1): errno.EBADF,
                raw_guest.release(2**64 - 1): errno.EBADF,
            }
            for message, wanted in refused.items():
                assert await guest.ask(message) == wanted
            # and all of it is there to be had
            assert await guest.ask(raw_guest.setup(fh, 0, RANGE, 0)) == 0
            assert await guest.ask(raw_guest.release(fh)) == errno.EBUSY
            assert await guest.ask(raw_guest.remove((0, RANGE))) == 0
            assert await guest.ask(raw_guest.release(fh)) == 0
            handles = [await guest.open(os.devnull) for _ in range(65)]
            assert [error for error, _ in handles] == [0] * 64 + [errno.EMFILE]

    body()
