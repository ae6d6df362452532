# SPDX-License-Identifier: Apache-2.0
"""Guests of a guest: bytes, errors and deaths of every level, at the innermost task.

The host in this process is L0, its stand-in L1 is the host of the stand-in L2.
"""

import contextlib
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from lines import Lines, killable_host
from nests import DATA, fnv1a, gone, nesting
from stage import PAGE, PATIENCE, RANGE, Stage, call, eventually, stage
from trio.testing import trio_test

from daxfault.native import Abi
from daxfault.vmm.designs import DESIGNS
from daxfault.vmm.designs.report import Report
from daxfault.vmm.study.compare import nested
from daxfault.vmm.study.standin import StandInError
from daxfault.vmm.study.standin import nested as guest_of

CUT = 33 * PAGE


async def truncated(s: Stage, size: int = CUT) -> None:
    await call(os.truncate, s.mount / "file", size)


# ---- bytes


@trio_test
async def test_nested_guest_reads_the_bytes_of_the_bottom(tmp_path: Path) -> None:
    async with nesting(tmp_path) as (_, n):
        got = await n.l2.access(0, f"sum 0 {len(DATA)}")
        assert (got.outcome, got.value) == ("ok", fnv1a(DATA))
        # a page at a time, and none that nobody asked for
        assert (await n.l1.hosted())["fetched"] == len(DATA) // PAGE


@trio_test
async def test_nested_guest_with_many_vcpus_reads_each_page_once(tmp_path: Path) -> None:
    async with nesting(tmp_path) as (_, n):

        async def read(vcpu: int) -> None:
            for page in random.Random(vcpu).sample(range(len(DATA) // PAGE), 64):
                got = await n.l2.access(vcpu, f"read {page * PAGE + 7} 16")
                assert got.value == DATA[page * PAGE + 7 :][:16].hex()

        async with trio.open_nursery() as nursery:
            for vcpu in range(8):
                nursery.start_soon(read, vcpu)
        assert (await n.l1.hosted())["fetched"] == len(DATA) // PAGE


@trio_test
async def test_nested_guest_that_had_a_page_keeps_it_when_the_bottom_changes(tmp_path: Path) -> None:
    """A limit of nesting, not a promise: nobody tells L1 that L0's file is another."""

    async with nesting(tmp_path) as (s, n):
        await n.l2.access(0, f"touch {40 * PAGE}")
        await truncated(s)
        got = await n.l2.access(0, f"read {40 * PAGE} 16")
        assert (got.outcome, got.value) == ("ok", DATA[40 * PAGE :][:16].hex())


# ---- errors


@pytest.mark.parametrize("design", ["report", "poison"])
@trio_test
async def test_nested_error_of_a_truncated_file_is_sigbus_at_the_exact_address(
    tmp_path: Path, design: str
) -> None:
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


@trio_test
async def test_nested_error_that_was_reported_heals_when_the_file_grows_again(tmp_path: Path) -> None:
    async with nesting(tmp_path) as (s, n):
        await truncated(s)
        assert (await n.l2.access(0, f"touch {40 * PAGE}")).outcome == "sigbus"
        await truncated(s, len(DATA))
        got = await n.l2.access(0, f"read {40 * PAGE} 16")
        assert (got.outcome, got.value) == ("ok", "00" * 16)


@trio_test
async def test_nested_error_that_was_poisoned_heals_by_itself(tmp_path: Path) -> None:
    async with nesting(tmp_path, "poison") as (s, n):
        await truncated(s)
        assert (await n.l2.access(0, f"touch {40 * PAGE}")).outcome == "sigbus"
        await truncated(s, len(DATA))
        with trio.fail_after(PATIENCE):
            # L1 asks again now and then: nobody tells it that the page is back
            while (got := await n.l2.access(0, f"read {40 * PAGE} 16")).outcome == "sigbus":  # noqa: ASYNC110
                await trio.sleep(0.02)
        assert (got.outcome, got.value) == ("ok", "00" * 16)


# What became of the innermost task under each design; docs/nested.md says why.
CARRIED = {
    "mainline": ("loop", None),
    "rfc-v1": ("sigbus", True),
    "june-2020": ("loop", None),
    "exit-to-user": ("stopped", None),
    "gone-in-wakeup": ("sigbus", False),
    "inject-on-retry": ("sigbus", True),
    "poison": ("sigbus", True),
    "report": ("sigbus", True),
}


@pytest.mark.parametrize("design", DESIGNS)
@trio_test
async def test_nested_comparison_of_a_design_finds_its_end(tmp_path: Path, design: str) -> None:
    async with stage(tmp_path, loop_seconds=60) as s:
        chosen = DESIGNS[design]
        got = await nested.observe(s.host, s.nursery, chosen, s.backing / "file", s.mount / "file")
        assert (got["outcome"], got["address_exact"]) == CARRIED[design], got["detail"]


@trio_test
async def test_nested_loop_at_the_bottom_holds_up_no_other_page(tmp_path: Path) -> None:
    async with nesting(tmp_path, "mainline") as (s, n):
        await truncated(s)
        await n.l2.start(0, f"touch {40 * PAGE}")
        await eventually(lambda: s.host.records.total > 100, "a loop")
        got = await n.l2.access(1, f"read {3 * PAGE} 16")
        assert (got.outcome, got.value) == ("ok", DATA[3 * PAGE :][:16].hex())


# ---- deaths


@trio_test
async def test_nested_guest_whose_host_dies_gets_poison_and_never_zeros(tmp_path: Path) -> None:
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


@trio_test
async def test_nested_guest_that_dies_makes_room_for_another(tmp_path: Path) -> None:
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


@contextlib.contextmanager
def bottomless(top: Path, answers: str) -> Iterator[tuple[Lines, Lines]]:
    """L1 and L2 whose bottom has just died; L2 has page 0."""
    with killable_host(top) as bottom, contextlib.ExitStack() as stack:
        (top / "backing" / "file").write_bytes(DATA)
        l1 = stack.enter_context(contextlib.closing(Lines(top / "socket")))
        l1.do(f"open f {top}/mount/file rw", "open")
        l1.do(f"map f 0 {RANGE} 0 w", "map")
        l1.do(f"host {top}/l1 0 {RANGE} {Abi.REPORT} {int(Report.cpuid)} 0 {answers}", "host")
        l2 = stack.enter_context(contextlib.closing(Lines(top / "l1")))
        l2.do("open f /dev/null ro", "open")
        l2.do(f"map f 0 {RANGE} 0 r", "map")
        assert l2.do("vcpu 0 touch 0")["value"] == DATA[0]
        bottom.send_signal(signal.SIGKILL)
        bottom.wait()
        yield l1, l2


def test_nested_guest_at_the_death_of_the_bottom_gets_errors_and_never_zeros(tmp_path: Path) -> None:
    with bottomless(tmp_path, "report,report,report") as (_, l2):
        # L1 answers its own faults with poison by now or soon; before, they only wait.  Pages
        # near the first one it may have: the bottom installs 16 at once
        for page in (30, 40, 63):
            got = l2.do(f"vcpu 0 touch {page * PAGE + 3}")
            assert (got["outcome"], int(got["address"], 16)) == ("sigbus", l2.window + page * PAGE + 3)
        assert l2.do("vcpu 0 touch 0")["value"] == DATA[0]


def test_nested_guest_that_is_told_ready_at_the_death_of_the_bottom_loops_at_l1(tmp_path: Path) -> None:
    with bottomless(tmp_path, "wake,wake,wake") as (l1, l2):
        l2.send(f"vcpu 0 touch {40 * PAGE}")
        deadline = time.monotonic() + PATIENCE
        while (failed := l1.do("hosted", "hosted")["failed"]) < 1000:
            assert time.monotonic() < deadline, f"{failed} failures"
        # and its end is poison
        l1.close()
        assert l2.read("done")["outcome"] == "sigbus"
