# SPDX-License-Identifier: Apache-2.0
"""A fault that waits for its page source, and what may happen meanwhile.

The source is held at a gate, half-way through its read, so the order of events is
forced.  A held source answers only when a test says so: an access that ends before
did not wait for it.
"""

import contextlib
import errno
import os
import signal
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from gated_source import Gated, gated
from serving import PAGE, RANGE, Serving, call, eventually, recorded, serving
from trio.testing import trio_test

from daxfault.native import Answer, Delivery, Engine, Failure, Reason
from daxfault.vmm.designs import DESIGNS, Design, Verdict
from daxfault.vmm.study.standin import StandIn, standin

PAGES = 8
DATA = bytes(i * 7 % 251 for i in range(PAGES * PAGE))


@contextlib.asynccontextmanager
async def gated_serving(top: Path, engine: Engine | None = None) -> AsyncIterator[tuple[Gated, Serving]]:
    """A mount over a gated source that has `file` and `other`."""
    async with gated(top) as source:
        for name in ("file", "other"):
            (source.source / name).write_bytes(DATA)
        async with serving(top, backing=source.path, engine=engine) as s:
            yield source, s


@contextlib.asynccontextmanager
async def guest_with(s: Serving, name: str = "file", design: str = "report") -> AsyncIterator[StandIn]:
    async with s.guest(design) as guest:
        await guest.open("f", s.mount / name, "rw")
        await guest.map("f", 0, RANGE, 0, "w")
        yield guest


def page(number: int) -> bytes:
    return DATA[number * PAGE : (number + 1) * PAGE]


async def waiting(guest: StandIn, faults: int) -> None:
    """Wait until this many faults are parked: the kernel and the engine have no event for it."""
    await eventually(lambda: guest.session.file("file").state().waiting == faults, f"{faults} parked")


async def write(path: Path, offset: int, data: bytes) -> None:
    def body() -> None:
        fd = os.open(path, os.O_WRONLY)
        try:
            assert os.pwrite(fd, data, offset) == len(data)
        finally:
            os.close(fd)

    await call(body)


@pytest.mark.parametrize("via", ["mount", "behind"])
@trio_test
async def test_parked_fault_on_page_cut_off_by_truncation_ends_in_sigbus_at_once(
    tmp_path: Path, via: str
) -> None:
    async with gated_serving(tmp_path) as (source, s), guest_with(s) as guest:
        await source.hold("file")
        access = await guest.start(0, f"touch {3 * PAGE + 5}")
        await source.arrived("file")
        await waiting(guest, 1)
        await call(os.truncate, (s.mount if via == "mount" else s.backing) / "file", PAGE)
        got = await access()
        assert (got.outcome, got.address, got.error) == ("sigbus", guest.window + 3 * PAGE + 5, 14)
        (record,) = await recorded(s, 1)
        assert (record.failure.reason, record.failure.offset) == (Reason.EOF, 3 * PAGE)
        await source.release("file")
        kept = await guest.access(0, f"read 0 {PAGE}")
        assert bytes.fromhex(kept.value) == page(0)


@trio_test
async def test_parked_fault_on_page_kept_by_truncation_gets_its_bytes(tmp_path: Path) -> None:
    async with gated_serving(tmp_path) as (source, s), guest_with(s) as guest:
        await source.hold("file")
        access = await guest.start(0, f"read {2 * PAGE} {PAGE}")
        await source.arrived("file")
        await waiting(guest, 1)
        await call(os.truncate, s.mount / "file", 4 * PAGE)
        await source.release("file")
        got = await access()
        assert bytes.fromhex(got.value) == page(2)
        gone = await guest.access(0, f"touch {4 * PAGE}")
        assert (gone.outcome, gone.address) == ("sigbus", guest.window + 4 * PAGE)


@trio_test
async def test_parked_fault_on_page_written_meanwhile_gets_the_new_bytes(tmp_path: Path) -> None:
    async with gated_serving(tmp_path) as (source, s), guest_with(s) as guest:
        await source.hold("file")
        access = await guest.start(0, f"read {2 * PAGE} {PAGE}")
        await source.arrived("file")
        await waiting(guest, 1)
        await write(s.mount / "file", 2 * PAGE + 10, b"new")
        await source.release("file")
        got = await access()
        assert bytes.fromhex(got.value) == page(2)[:10] + b"new" + page(2)[13:]
        assert [o + n >= 2 * PAGE for o, n in await source.reads("file")].count(True) >= 2


@pytest.mark.parametrize("via", ["mount", "behind"])
@trio_test
async def test_parked_fault_on_page_truncated_and_grown_meanwhile_gets_zeros(
    tmp_path: Path, via: str
) -> None:
    async with gated_serving(tmp_path) as (source, s), guest_with(s) as guest:
        path = (s.mount if via == "mount" else s.backing) / "file"
        await source.hold("file")
        # the page that holds the new end of file, for a moment, is never cut off itself
        access = await guest.start(0, f"read {2 * PAGE} {PAGE}")
        await source.arrived("file")
        await waiting(guest, 1)
        await call(os.truncate, path, 2 * PAGE + 10)
        await call(os.truncate, path, len(DATA))
        await source.release("file")
        got = await access()
        assert bytes.fromhex(got.value) == page(2)[:10] + bytes(PAGE - 10)
        after = await guest.access(0, f"read {3 * PAGE} {PAGE}")
        assert bytes.fromhex(after.value) == bytes(PAGE)


@trio_test
async def test_parked_faults_on_one_page_share_one_read(tmp_path: Path) -> None:
    async with gated_serving(tmp_path) as (source, s), guest_with(s) as one, guest_with(s) as two:
        await source.hold("file")
        accesses = [await g.start(v, f"read {PAGE} 16") for g in (one, two) for v in (0, 1, 2)]
        await source.arrived("file")
        await waiting(one, 6)
        await source.release("file")
        for access in accesses:
            assert bytes.fromhex((await access()).value) == page(1)[:16]
        assert await source.reads("file") == [[0, len(DATA)]]
        assert s.host.engine.counters().failed == 0


@trio_test
async def test_parked_faults_of_killed_guest_leave_the_others_theirs(tmp_path: Path) -> None:
    async with gated_serving(tmp_path) as (source, s), guest_with(s) as doomed, guest_with(s) as other:
        await source.hold("file")
        await doomed.start(0, f"touch {PAGE}")
        access = await other.start(0, f"read {PAGE} 16")
        await source.arrived("file")
        await waiting(other, 2)
        doomed.process.send_signal(signal.SIGKILL)
        await doomed.process.wait()
        file = other.session.file("file")
        await eventually(lambda: file.state().mappings == 1, "the killed guest's end")
        await source.release("file")
        assert bytes.fromhex((await access()).value) == page(1)[:16]
        assert (await other.access(0, f"touch {5 * PAGE}")).outcome == "ok"


@trio_test
async def test_parked_fault_on_unmapped_range_ends_at_once(tmp_path: Path) -> None:
    async with gated_serving(tmp_path) as (source, s), guest_with(s) as guest:
        await source.hold("file")
        access = await guest.start(0, f"touch {PAGE + 5}")
        await source.arrived("file")
        await waiting(guest, 1)
        await guest.unmap(0, RANGE)
        got = await access()
        # by the host's word, or, when the mapping went first, by the kernel's
        assert got.outcome in ("sigbus", "sigsegv")
        assert got.address == guest.window + PAGE + 5
        await source.release("file")
        await guest.map("f", 0, RANGE, 0, "w")
        assert (await guest.access(0, f"read {PAGE} 4")).outcome == "ok"


@trio_test
async def test_source_that_never_answers_is_etimedout(tmp_path: Path) -> None:
    engine = Engine(source_seconds=0.3)
    async with gated_serving(tmp_path, engine) as (source, s), guest_with(s) as guest:
        await source.hold("file")
        got = await guest.access(0, f"touch {PAGE + 5}")
        assert (got.outcome, got.address) == ("sigbus", guest.window + PAGE + 5)
        assert got.error == errno.ETIMEDOUT
        (record,) = await recorded(s, 1)
        assert record.failure.reason is Reason.TIMEOUT
        assert record.failure.error == errno.ETIMEDOUT
        assert 0.3e9 <= record.failure.wait_ns < 5e9
        # its bytes come too late for that access, and are as good as any for the next
        await source.release("file")
        file = guest.session.file("file")
        await eventually(lambda: file.state().fills == 0, "the late read's end")
        assert bytes.fromhex((await guest.access(0, f"read {PAGE} 16")).value) == page(1)[:16]


@trio_test
async def test_source_that_never_answers_one_of_many_files_is_etimedout(tmp_path: Path) -> None:
    many = 70
    engine = Engine(source_seconds=0.2)
    async with gated_serving(tmp_path, engine) as (source, s), s.guest() as guest:
        for i in range(many):
            (source.source / f"file{i}").write_bytes(DATA)
            await guest.open(f"f{i}", s.mount / f"file{i}", "rw")
            await guest.map(f"f{i}", 0, RANGE, i * RANGE, "w")
        last = f"file{many - 1}"
        await source.hold(last)
        got = await guest.access(0, f"touch {(many - 1) * RANGE}")
        assert (got.outcome, got.error) == ("sigbus", errno.ETIMEDOUT)
        await source.release(last)


@trio_test
async def test_write_storm_on_page_of_slow_source_holds_up_nobody(tmp_path: Path) -> None:
    engine = Engine(source_seconds=1.0)
    async with gated_serving(tmp_path, engine) as (source, s), guest_with(s) as guest:
        await source.hold("file")
        access = await guest.start(0, f"read {PAGE} 8")
        # every read is overtaken by a write before it is let through
        for i in range(5):
            await source.arrived("file")
            await write(s.mount / "file", PAGE, b"write %d" % i)
            await source.release_one("file")
        await source.arrived("file")
        # the file's lock is free: nobody reads the source under it
        with trio.fail_after(5):
            await call(os.truncate, s.mount / "file", len(DATA) - PAGE)
            await call(os.stat, s.mount / "file")
        await source.release("file")
        assert bytes.fromhex((await access()).value) == b"write 4."[:7] + page(1)[7:8]


@trio_test
async def test_parked_fault_delays_no_other_file_guest_or_client(tmp_path: Path) -> None:
    async with (
        gated_serving(tmp_path) as (source, s),
        guest_with(s) as guest,
        guest_with(s, "other") as two,
    ):
        await guest.open("o", s.mount / "other", "ro")
        await guest.map("o", 0, RANGE, RANGE, "r")
        await source.hold("file")
        access = await guest.start(0, f"read {PAGE} 16")
        await source.arrived("file")
        await waiting(guest, 1)
        assert bytes.fromhex((await guest.access(1, f"read {RANGE} 16")).value) == page(0)[:16]
        assert bytes.fromhex((await two.access(0, f"read {PAGE} 16")).value) == page(1)[:16]
        gone = await two.access(0, f"touch {len(DATA)}")
        assert (gone.outcome, gone.error) == ("sigbus", errno.EFAULT)
        assert (await call(os.stat, s.mount / "file")).st_size == len(DATA)
        assert await call((s.mount / "other").read_bytes) == DATA
        await waiting(guest, 1)
        await source.release("file")
        assert bytes.fromhex((await access()).value) == page(1)[:16]


class Blocking(Design):
    """A policy that does not come to a decision until it is told to."""

    name = "blocking"
    summary = "never answers in time"

    def __init__(self) -> None:
        self.told = threading.Event()

    def decide(self, failure: Failure) -> Verdict:
        self.told.wait(30)
        return Verdict(Answer.REPORT)


@trio_test
async def test_failure_that_policy_never_answers_is_poisoned_at_its_deadline(tmp_path: Path) -> None:
    blocking = Blocking()
    engine = Engine(answer_seconds=0.3)
    async with serving(tmp_path, engine=engine) as s:
        try:
            async with (
                s.mapped("stuck", DATA, design=blocking) as stuck,
                s.mapped("fine", DATA) as fine,
            ):
                first = await stuck.start(0, f"touch {len(DATA) + 5}")
                await eventually(lambda: engine.counters().failed == 1, "the failure")
                # behind it in the queue of the only policy thread, so it meets its own deadline
                second = await fine.start(0, f"touch {len(DATA) + 7}")
                assert (await fine.access(1, f"read {PAGE} 4")).outcome == "ok"
                got = await first()
                assert (got.outcome, got.address) == ("sigbus", stuck.window + len(DATA) + 5)
                got = await second()
                assert (got.outcome, got.address) == ("sigbus", fine.window + len(DATA) + 7)
                assert engine.counters().late == 2
                blocking.told.set()
                assert [record.delivery for record in await recorded(s, 2)] == [None, None]
                # policy is back: the next failure is told, not poisoned
                got = await fine.access(1, f"touch {len(DATA) + PAGE}")
                assert (got.outcome, got.error) == ("sigbus", errno.EFAULT)
                assert (await recorded(s, 3))[2].delivery is Delivery.EVENT
        finally:
            blocking.told.set()


@pytest.mark.parametrize("answers", [True, False], ids=["late", "never"])
@trio_test
async def test_host_shutdown_ends_parked_fault_in_sigbus(tmp_path: Path, answers: bool) -> None:
    async with gated(tmp_path) as source, trio.open_nursery() as nursery:
        (source.source / "file").write_bytes(DATA)
        ended = trio.Event()

        async def serve(task_status: trio.TaskStatus[tuple[Serving, trio.CancelScope]]) -> None:
            with trio.CancelScope() as scope:
                async with serving(tmp_path, backing=source.path) as s:
                    task_status.started((s, scope))
                    await trio.sleep_forever()
            ended.set()

        s, scope = await nursery.start(serve)
        async with standin(s.host, s.nursery, DESIGNS["report"]) as guest:
            await guest.open("f", s.mount / "file", "rw")
            await guest.map("f", 0, RANGE, 0, "w")
            await source.hold("file")
            access = await guest.start(0, f"touch {PAGE + 5}")
            await source.arrived("file")
            await waiting(guest, 1)
            scope.cancel()
            with trio.fail_after(10):
                got = await access()
                assert (got.outcome, got.address) == ("sigbus", guest.window + PAGE + 5)
                if answers:
                    await source.release("file")
                await ended.wait()
