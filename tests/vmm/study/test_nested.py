# SPDX-License-Identifier: Apache-2.0
"""Guests of a guest: bytes, errors and deaths of every level, at the innermost task.

The host in this process is L0; its stand-in L1 has a host of its own, of which the stand-in L2 is a guest.
"""

import contextlib
import errno
import os
import random
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from killable_host import killable_host
from nesting import DATA, fnv1a, nesting
from patience import PATIENCE
from serving import PAGE, RANGE, Serving, call, eventually, serving
from trio.testing import trio_test

from daxfault.vmm.designs import DESIGNS
from daxfault.vmm.study.compare import nested
from daxfault.vmm.study.compare.nested import Nest, guest_of
from daxfault.vmm.study.level1 import level1
from daxfault.vmm.study.standin import StandInError, connected

CUT = 33 * PAGE


async def truncated(s: Serving, size: int = CUT) -> None:
    await call(os.truncate, s.mount / "file", size)


# ---- bytes


@trio_test
async def test_nested_guest_reads_the_bytes_of_the_bottom(tmp_path: Path) -> None:
    async with nesting(tmp_path) as (_, n):
        got = await n.l2.access(0, f"sum 0 {len(DATA)}")
        assert (got.outcome, got.value) == ("ok", fnv1a(DATA))
        # a page at a time, and none that nobody asked for
        assert n.level.file.fetched == len(DATA) // PAGE


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
        assert n.level.file.fetched == len(DATA) // PAGE


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


@trio_test
async def test_nested_guest_whose_page_source_is_broken_gets_an_error(tmp_path: Path) -> None:
    def broken(offset: int, length: int) -> None:
        raise ValueError(f"{length} bytes at {offset}")

    async with nesting(tmp_path) as (_, n):
        n.level.file.file.fetch_by(broken)
        assert (await n.l2.access(0, "touch 0")).outcome == "sigbus"
        # the guest is answered first
        await eventually(lambda: n.level.host.records.total, "a record of the failure at L1")
        assert [record.failure.error for record in n.level.host.records] == [errno.EIO]


@trio_test
async def test_nested_guest_is_refused_a_writable_mapping(tmp_path: Path) -> None:
    """Nobody would carry the stores further down."""

    async with nesting(tmp_path) as (_, n):
        await n.l2.open("other", os.devnull, "rw")
        with pytest.raises(StandInError, match="Permission denied"):
            await n.l2.map("other", 0, RANGE, RANGE, "w")


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
    async with serving(tmp_path, loop_seconds=60) as s:
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
    async with (
        serving(tmp_path, loop_seconds=60) as s,
        s.mapped("file", DATA) as l1,
        level1(l1, 0, RANGE) as level,
    ):
        for n in range(2):
            async with guest_of(level, DESIGNS["report"]) as l2:
                guest = l2.session.guest
                assert guest is not None
                await l2.map("file", 0, RANGE, 0)
                got = await l2.access(0, f"read {n * PAGE} 16")
                assert got.value == DATA[n * PAGE :][:16].hex()
                begun = [await l2.start(vcpu, f"scan 0 {len(DATA)} {PAGE}") for vcpu in range(4)]
                l2.process.kill()
                for wait in begun:
                    with contextlib.suppress(StandInError):
                        await wait()
                await eventually(lambda id=guest.id: level.host.session(id) is None, "L1 lets its guest go")
        # L1 itself is none the worse
        assert (await l1.access(0, f"sum 0 {len(DATA)}")).value == fnv1a(DATA)


@contextlib.asynccontextmanager
async def bottomless(top: Path, design: str) -> AsyncIterator[Nest]:
    """L1 and L2 whose bottom has just died; L2 has page 0."""
    chosen = DESIGNS[design]
    with killable_host(top) as bottom:
        (top / "backing" / "file").write_bytes(DATA)
        async with connected(top / "socket", DESIGNS["report"]) as l1:
            await l1.open("file", top / "mount" / "file", "rw")
            await l1.map("file", 0, RANGE, 0, "w")
            async with level1(l1, 0, RANGE) as level, guest_of(level, chosen) as l2:
                base = await l2.map("file", 0, RANGE, 0)
                assert (await l2.access(0, "touch 0")).value == DATA[0]
                bottom.send_signal(signal.SIGKILL)
                await call(bottom.wait)
                yield Nest(l1, level, l2, base)


@trio_test
async def test_nested_guest_at_the_death_of_the_bottom_gets_errors_and_never_zeros(tmp_path: Path) -> None:
    async with bottomless(tmp_path, "report") as n:
        # L1 answers its own faults with poison by now or soon; before, they only wait.  Pages
        # near the first one it may have: the bottom installs 16 at once
        for page in (30, 40, 63):
            got = await n.l2.access(0, f"touch {page * PAGE + 3}")
            assert (got.outcome, got.address) == ("sigbus", n.base + page * PAGE + 3)
        assert (await n.l2.access(0, "touch 0")).value == DATA[0]


@trio_test
async def test_nested_guest_that_is_told_ready_at_the_death_of_the_bottom_loops_at_l1(tmp_path: Path) -> None:
    async with bottomless(tmp_path, "mainline") as n:
        waiting = await n.l2.start(0, f"touch {40 * PAGE}")
        await eventually(lambda: n.level.host.records.total >= 1000, "1000 failures at L1")
        # and its end is poison
        n.l1.process.kill()
        assert (await waiting()).outcome == "sigbus"
