# SPDX-License-Identifier: Apache-2.0
"""Guests that break their own memory, their event area, or die: nobody else notices (witness.py)."""

import os
import signal
from pathlib import Path

import pytest
import trio
import trio.testing
from guest_process import Died
from messages import READ, WRITE
from patience import until
from serving import PAGE, RANGE, call, eventually
from trio.testing import trio_test
from witness import OTHER, child, fails, opened, witnessed

from daxfault import native
from daxfault.vmm.designs import Design, Verdict

# ---- memory


@trio_test
async def test_guest_that_registers_memory_the_host_never_mapped_gets_an_error(tmp_path: Path) -> None:
    async with witnessed(tmp_path) as s, child(s) as guest:
        await guest.do("anonymous", 0, RANGE)
        await fails(guest, 5)
        reasons = {r.failure.reason for r in s.host.records if r.pid == guest.process.pid}
        assert reasons == {native.Reason.NOREGION}


@pytest.mark.parametrize("how", ["private", "shared"])
@pytest.mark.parametrize("flags", [READ, READ | WRITE])
@trio_test
async def test_guest_that_maps_other_memory_than_the_file_gets_an_error(
    tmp_path: Path, how: str, flags: int
) -> None:
    async with witnessed(tmp_path) as s, child(s, track=True) as guest:
        fh = await opened(s, guest)
        await guest.do("setup", fh, 0, RANGE, 0, flags, how)
        await fails(guest, 3 * PAGE)


@trio_test
async def test_guest_that_maps_other_memory_loses_nobody_elses_stores(tmp_path: Path) -> None:
    """Its faults find no page in its own memory; that says nothing about the file's."""

    async with witnessed(tmp_path) as s, child(s) as guest, s.guest() as writer:
        await writer.open("f", s.mount / "victim", "rw")
        await writer.map("f", 0, RANGE, 0, "w")
        assert (await writer.access(0, "write 0 " + b"stored".hex())).outcome == "ok"
        fh = await opened(s, guest, os.O_RDONLY)
        await guest.do("setup", fh, 0, RANGE, 0, READ, "shared")
        await fails(guest, 0)
        got = await writer.access(0, "read 0 6")
        assert bytes.fromhex(got.value) == b"stored"
        assert await call(lambda: (s.mount / "victim").read_bytes()[:6]) == b"stored"


@trio_test
async def test_guest_that_punches_its_cache_descriptor_leaves_others_right_bytes(tmp_path: Path) -> None:
    async with witnessed(tmp_path) as s, child(s) as guest, s.guest() as reader:
        await reader.open("f", s.mount / "victim")
        await reader.map("f", 0, RANGE, 0, "r")
        assert (await reader.access(0, "touch 0")).value == OTHER[0]
        cache = await guest.do("setup", await opened(s, guest), 0, RANGE, 0, READ | WRITE, "file")
        await guest.do("punch", cache, 0, len(OTHER))
        for page in (0, 1, 63):
            got = await reader.access(0, f"read {page * PAGE} {PAGE}")
            assert bytes.fromhex(got.value) == OTHER[page * PAGE :][:PAGE]


@trio_test
async def test_guest_that_touches_holes_of_the_cache_unregistered_leaves_others_right_bytes(
    tmp_path: Path,
) -> None:
    async with witnessed(tmp_path) as s, child(s) as guest, s.guest() as reader:
        await guest.do("setup", await opened(s, guest), 0, RANGE, 0, READ | WRITE, "unregistered")
        for page in (0, 7, 63):  # it deceives itself: now the page cache has pages of zeros
            assert await guest.do("peek", page * PAGE, 8) == "00" * 8
        await reader.open("f", s.mount / "victim")
        await reader.map("f", 0, RANGE, 0, "r")
        for page in (0, 1, 7, 63):
            got = await reader.access(0, f"read {page * PAGE} {PAGE}")
            assert bytes.fromhex(got.value) == OTHER[page * PAGE :][:PAGE]
        assert await call((s.mount / "victim").read_bytes) == OTHER


@trio_test
async def test_guest_cannot_resize_the_page_cache_nor_write_one_it_may_only_read(tmp_path: Path) -> None:
    async with witnessed(tmp_path) as s, child(s) as guest:
        fh = await opened(s, guest)
        both = await guest.do("setup", fh, 0, RANGE, 0, READ | WRITE, "nothing")
        only = await guest.do("setup", fh, 0, RANGE, RANGE, READ, "nothing")
        for cache in (both, only):
            for size in (0, 1 << 40):
                with pytest.raises(OSError, match=r"not permitted|Invalid argument"):
                    await guest.do("cache_truncate", cache, size)
        with pytest.raises(OSError, match="Bad file descriptor"):
            await guest.do("cache_write", only, 0, "00")
        with pytest.raises(OSError, match="Bad file descriptor"):
            await guest.do("punch", only, 0, PAGE)


@trio_test
async def test_guest_that_makes_its_userfaultfd_blocking_holds_up_nobody(tmp_path: Path) -> None:
    """The open file is shared: a reader that relied on O_NONBLOCK would sleep in read(2) for ever, and
    the end of the guest, and of the host, would wait for it."""

    engine = native.Engine(spin_microseconds=500_000)
    async with witnessed(tmp_path, engine) as s, child(s) as guest:
        await guest.do("setup", await opened(s, guest), 0, RANGE, 0, READ, "file")
        assert await guest.do("peek", 0, 8) == OTHER[:8].hex()  # the reader spins from here on
        await guest.do("blocking")
        guest.process.kill()
        await guest.died()
        await eventually(lambda: len(s.host._sessions) == 1, "the guest's end")


# ---- the event area and its signal


@pytest.mark.parametrize("keep", [True, False], ids=["slots enabled", "everything"])
@trio_test
async def test_guest_that_scribbles_over_its_event_area_gets_its_errors(tmp_path: Path, keep: bool) -> None:
    engine = native.Engine(answer_seconds=0.1)
    async with witnessed(tmp_path, engine) as s, child(s) as guest:
        await guest.do("setup", await opened(s, guest), 0, RANGE, 0, READ, "file")
        await guest.do("signal", "handle")
        await guest.do("slot")
        await guest.do("scribble", 1, keep)
        for page in range(64, 128):
            with pytest.raises(OSError, match="Bad address"):
                await guest.do("peek", page * PAGE, 8)
        with pytest.raises(Died) as death:
            await guest.do("load", 128 * PAGE)
        assert death.value.code == -signal.SIGBUS


@pytest.mark.parametrize("what", ["block", "ignore"])
@trio_test
async def test_guest_that_does_not_hear_the_event_signal_is_poisoned(tmp_path: Path, what: str) -> None:
    engine = native.Engine(answer_seconds=0.1)
    async with witnessed(tmp_path, engine) as s, child(s) as guest:
        await guest.do("setup", await opened(s, guest), 0, RANGE, 0, READ, "file")
        await guest.do("signal", what)
        await guest.do("slot")
        with pytest.raises(Died) as death:
            await guest.do("load", len(OTHER))
        assert death.value.code == -signal.SIGBUS
        (record,) = [r for r in s.host.records if r.pid == guest.process.pid]
        expected = native.Delivery.POISON if what == "block" else native.Delivery.EVENT
        assert record.delivery == expected
        late = s.host.engine.counters().late
        assert late == (what == "ignore")


@trio_test
async def test_guest_cannot_shrink_its_event_area_and_may_punch_it(tmp_path: Path) -> None:
    async with witnessed(tmp_path) as s, child(s) as guest:
        await guest.do("setup", await opened(s, guest), 0, RANGE, 0, READ, "file")
        await guest.do("slot")
        with pytest.raises(OSError, match="not permitted"):
            await guest.do("area_truncate", 0)
        await guest.do("area_punch")
        await fails(guest, len(OTHER))


@trio_test
async def test_stopped_guest_is_poisoned_at_the_deadline_of_its_event(tmp_path: Path) -> None:
    engine = native.Engine(answer_seconds=0.2)
    async with witnessed(tmp_path, engine) as s, s.guest() as guest:
        await guest.open("f", s.mount / "victim")
        await guest.map("f", 0, RANGE, 0, "r")
        told = trio.Event()
        token = trio.lowlevel.current_trio_token()
        pid = guest.process.pid

        class Stopping(Design):
            name = "report"
            summary = "stops the guest, then reports"

            def decide(self, failure: native.Failure) -> Verdict:
                os.kill(pid, signal.SIGSTOP)
                # every thread of it
                until(lambda: os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG), "the guest stopped")
                token.run_sync_soon(told.set)
                return Verdict(native.Answer.REPORT)

        guest.session.design = Stopping()
        wait = await guest.start(0, f"touch {len(OTHER)}")
        await told.wait()
        late = s.host.engine.counters().late
        await eventually(lambda: s.host.engine.counters().late == late + 1, "poisoned at its deadline")
        os.kill(pid, signal.SIGCONT)
        got = await wait()
        # the signal found nothing to take; the poison did the rest
        assert (got.outcome, got.address) == ("sigbus", guest.window + len(OTHER))
        assert got.raw["events"] == 0


# ---- death


STEPS = ["connected", "greeted", "opened", "mapped", "installed", "failing", "registered"]


@pytest.mark.parametrize("step", STEPS)
@trio_test
async def test_guest_killed_at_any_step_is_forgotten(tmp_path: Path, step: str) -> None:
    async with witnessed(tmp_path) as s:
        async with child(s, hello=False) as guest:
            at = STEPS.index(step)
            if at >= 1:
                await guest.do("hello")
            if at >= 2:
                fh = await opened(s, guest)
            if at >= 3:
                await guest.do("setup", fh, 0, RANGE, 0, READ | WRITE, "file")
            if at >= 4:
                await guest.do("poke", 0, "0102")
            if at >= 5:
                await guest.begin("load", len(OTHER))
            if at >= 6:
                with pytest.raises(Died):
                    await guest.answer()
            guest.process.kill()
            assert await guest.died() in (-signal.SIGKILL, -signal.SIGBUS)
        await eventually(lambda: len(s.host._sessions) == 1, "the guest's end")
        file = await call((s.mount / "victim").read_bytes)
        assert file == (b"\1\2" if at >= 4 else OTHER[:2]) + OTHER[2:]


@trio_test
async def test_guest_that_hangs_up_and_lives_on_gets_errors_never_zeros(tmp_path: Path) -> None:
    async with witnessed(tmp_path) as s, child(s) as guest:
        await guest.do("setup", await opened(s, guest), 0, RANGE, 0, READ, "file")
        assert await guest.do("peek", 0, 8) == OTHER[:8].hex()
        await guest.do("hang_up")
        await eventually(lambda: len(s.host._sessions) == 1, "the guest's end")
        assert await guest.do("peek", 0, 8) == OTHER[:8].hex()  # this page it has
        await fails(guest, 400 * PAGE)
