# SPDX-License-Identifier: Apache-2.0
"""Errors of the page source: who gets them, what is recorded, and how they go away."""

import contextlib
import errno
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from gated_source import Gated, gated
from patience import PATIENCE
from serving import PAGE, RANGE, Serving, call, eventually, recorded, serving
from trio.testing import trio_test

from daxfault.native import Answer, Delivery, Engine, Failure, Reason
from daxfault.vmm.designs import Design, Verdict
from daxfault.vmm.study.standin import StandIn

PAGES = 16
BAD = 5  # the page that cannot be read
DATA = bytes(i * 11 % 251 for i in range(PAGES * PAGE))


def page(number: int) -> bytes:
    return DATA[number * PAGE : (number + 1) * PAGE]


@contextlib.asynccontextmanager
async def scene(top: Path, code: int = errno.EIO) -> AsyncIterator[tuple[Gated, Serving, StandIn]]:
    """A guest with `file` mapped, of which page BAD answers `code`."""
    async with gated(top) as source:
        (source.source / "file").write_bytes(DATA)
        if code:
            await source.fail("file", code, BAD * PAGE, BAD * PAGE + PAGE)
        async with serving(top, backing=source.path) as s, s.guest() as guest:
            await guest.open("f", s.mount / "file", "rw")
            await guest.map("f", 0, RANGE, 0, "w")
            yield source, s, guest


async def read(guest: StandIn, number: int) -> bytes:
    got = await guest.access(0, f"read {number * PAGE} {PAGE}")
    assert got.outcome == "ok"
    return bytes.fromhex(got.value)


async def mended(guest: StandIn) -> None:
    """Wait until the host, by itself, has read every poisoned page."""

    def clean() -> bool:
        state = guest.session.file("file").state()
        return not state.poisoned and not state.retrying

    await eventually(clean, "all pages mended")


@trio_test
async def test_error_in_window_of_read_ahead_is_of_that_page_alone(tmp_path: Path) -> None:
    async with scene(tmp_path) as (source, s, guest):
        # the first read is of a window that has the bad page inside
        assert await read(guest, 0) == page(0)
        (first, *_) = await source.reads("file")
        assert first == [0, PAGES * PAGE]
        for number in range(PAGES):
            if number != BAD:
                assert await read(guest, number) == page(number)
        assert s.host.engine.counters().failed == 0
        got = await guest.access(0, f"touch {BAD * PAGE + 7}")
        assert (got.outcome, got.address) == ("sigbus", guest.window + BAD * PAGE + 7)
        assert got.error == errno.EIO


def test_read_of_partly_filled_file_is_whole_or_an_error(tmp_path: Path) -> None:
    """Never short of EOF: what is in the page cache alone is no answer."""

    @trio_test
    async def body() -> None:
        async with scene(tmp_path) as (source, s, guest):
            file = guest.session.file("file")
            await read(guest, 0)
            fd = await call(os.open, s.mount / "file", os.O_RDONLY)
            try:
                with pytest.raises(BlockingIOError):
                    file.read(0, len(DATA), nowait=True)
                for ask in (file.read, lambda offset, size: os.pread(fd, size, offset)):
                    with pytest.raises(OSError, match=r"\[Errno 5\]"):
                        await call(ask, 0, len(DATA))
                    assert await call(ask, 0, BAD * PAGE) == DATA[: BAD * PAGE]
                await source.fail("file", 0)
                assert await call(file.read, 0, 2 * len(DATA)) == DATA
                assert await call(os.pread, fd, 2 * len(DATA), 0) == DATA
            finally:
                await call(os.close, fd)

    body()


@pytest.mark.parametrize("code", [errno.EIO, errno.ENODATA, errno.EUCLEAN, errno.ESTALE])
@trio_test
async def test_error_is_recorded_with_errno_file_offset_and_address(tmp_path: Path, code: int) -> None:
    async with scene(tmp_path, code) as (_, s, guest):
        got = await guest.access(3, f"touch {BAD * PAGE + 7}")
        assert (got.outcome, got.error) == ("sigbus", code)
        (record,) = await recorded(s, 1)
        shown = record.as_json()
        assert shown["errno"] == errno.errorcode[code]
        assert shown["reason"] == "io"
        assert shown["offset"] == BAD * PAGE
        assert shown["address"] == hex(guest.window + BAD * PAGE + 7)
        assert shown["file"] == str(s.mount / "file")
        assert shown["pid"] == guest.process.pid
        # the guest slept while the source was asked: it is told with its token
        assert (shown["delivered"], shown["write"]) == ("error", False)


@trio_test
async def test_error_in_guest_kernel_copy_is_efault_with_exact_count(tmp_path: Path) -> None:
    async with scene(tmp_path) as (_, _, guest):
        begin = (BAD - 1) * PAGE + 100
        got = await guest.access(0, f"kcopy {begin} {2 * PAGE}")
        assert (got.outcome, got.done) == ("efault", PAGE - 100)
        assert got.address == guest.window + BAD * PAGE
        assert got.error == errno.EIO


@trio_test
async def test_error_in_guest_kernel_copy_without_exception_table_is_panic(tmp_path: Path) -> None:
    async with scene(tmp_path) as (_, s, guest):
        got = await guest.access(0, f"kcopy_bare {BAD * PAGE} 64")
        assert (got.outcome, got.error) == ("panic", errno.EIO)
        assert got.address == guest.window + BAD * PAGE
        # it is that guest's own end, and nobody else's
        async with s.guest() as other:
            await other.open("f", s.mount / "file", "rw")
            await other.map("f", 0, RANGE, 0, "w")
            assert await read(other, 0) == page(0)


@trio_test
async def test_error_in_system_call_is_efault_and_poison(tmp_path: Path) -> None:
    async with scene(tmp_path) as (_, s, guest):
        got = await guest.access(0, f"sys_write {BAD * PAGE} 16")
        assert got.outcome == "efault"
        (record,) = await recorded(s, 1)
        assert record.delivery is Delivery.POISON
        assert (record.failure.reason, record.failure.error) == (Reason.IO, errno.EIO)


@trio_test
async def test_error_that_goes_away_is_gone_at_the_next_access(tmp_path: Path) -> None:
    async with scene(tmp_path) as (source, _, guest):
        assert (await guest.access(0, f"touch {BAD * PAGE}")).outcome == "sigbus"
        await source.fail("file", 0)
        assert await read(guest, BAD) == page(BAD)


@trio_test
async def test_poison_of_error_that_goes_away_is_mended_by_heal(tmp_path: Path) -> None:
    async with scene(tmp_path) as (source, s, guest):
        s.host.healer.failed = lambda failure: None  # type: ignore[method-assign]  # nobody else retries it
        assert (await guest.access(0, f"sys_write {BAD * PAGE} 16")).outcome == "efault"
        file = guest.session.file("file")
        # not while the error lasts
        assert await call(file.heal) == 1
        assert (await guest.access(0, f"touch {BAD * PAGE}")).outcome == "sigbus"
        await source.fail("file", 0)
        assert await call(file.heal) == 1
        assert await read(guest, BAD) == page(BAD)
        assert await call(file.heal) == 0


@trio_test
async def test_poison_of_error_that_goes_away_is_mended_by_the_host_itself(tmp_path: Path) -> None:
    async with scene(tmp_path) as (source, s, guest):
        assert (await guest.access(0, f"sys_write {BAD * PAGE} 16")).outcome == "efault"
        await source.hold("file")
        await source.arrived("file")  # an attempt, in vain
        await source.release("file")
        assert (await guest.access(0, f"touch {BAD * PAGE}")).outcome == "sigbus"
        await source.fail("file", 0)
        await mended(guest)
        assert await read(guest, BAD) == page(BAD)
        assert s.host.engine.counters().healed >= 1


@trio_test
async def test_poison_of_source_that_never_answers_is_mended_when_it_does(tmp_path: Path) -> None:
    async with gated(tmp_path) as source:
        (source.source / "file").write_bytes(DATA)
        engine = Engine(source_seconds=0.2)
        async with serving(tmp_path, backing=source.path, engine=engine) as s, s.guest() as guest:
            await guest.open("f", s.mount / "file", "rw")
            await guest.map("f", 0, RANGE, 0, "w")
            await source.hold("file")
            assert (await guest.access(0, f"sys_write {BAD * PAGE} 16")).outcome == "efault"
            # a change that would mend it does not wait for the source longer than a second
            with trio.fail_after(5):
                await call(os.truncate, s.mount / "file", len(DATA) + PAGE)
            await source.release("file")
            await mended(guest)
            assert await read(guest, BAD) == page(BAD)


@pytest.mark.parametrize("code", [errno.ENOENT, errno.ESTALE])
@trio_test
async def test_vanished_backing_file_is_an_error_and_unmount_works(tmp_path: Path, code: int) -> None:
    async with scene(tmp_path, 0) as (source, s, guest):
        await source.vanish("file", code)
        got = await guest.access(0, f"touch {PAGE + 3}")
        assert (got.outcome, got.address) == ("sigbus", guest.window + PAGE + 3)
        # the kernel itself turns a file system's ENOENT for an open file into what it likes
        (record,) = await recorded(s, 1)
        assert (record.failure.reason, record.failure.error) == (Reason.IO, code)
        assert got.error == code
        await source.vanish("file", 0)
        assert await read(guest, 1) == page(1)


@pytest.mark.parametrize("parked", [False, True])
@trio_test
async def test_killed_server_of_the_backing_is_enotconn_and_unmount_works(
    tmp_path: Path, parked: bool
) -> None:
    async with scene(tmp_path, 0) as (source, s, guest):
        if parked:
            await source.hold("file")
            access = await guest.start(0, f"touch {PAGE + 3}")
            await source.arrived("file")
            source.kill()
        else:
            source.kill()
            await source.ended()
            access = await guest.start(0, f"touch {PAGE + 3}")
        with trio.fail_after(10):
            got = await access()
        assert (got.outcome, got.address) == ("sigbus", guest.window + PAGE + 3)
        (record,) = await recorded(s, 1)
        assert record.failure.reason is Reason.IO
        assert record.failure.error in (errno.ENOTCONN, errno.ECONNABORTED)
        assert got.error == record.failure.error


class SecondLate(Design):
    """Poisons the first failed fault at once, and the next when `healed` is set."""

    name = "second-late"
    summary = "answers late"

    def __init__(self) -> None:
        self.healed = threading.Event()
        self._first = True

    def decide(self, failure: Failure) -> Verdict:
        if not self._first:
            self.healed.wait(PATIENCE)
        self._first = False
        return Verdict(Answer.POISON)


@trio_test
async def test_store_to_page_that_healed_before_a_late_answer_is_written_back(tmp_path: Path) -> None:
    late = SecondLate()
    try:
        async with gated(tmp_path) as source:
            (source.source / "file").write_bytes(DATA)
            async with serving(tmp_path, backing=source.path) as s, s.guest(late) as guest:
                await guest.open("f", s.mount / "file", "rw")
                await guest.map("f", 0, RANGE, 0, "w")
                file = guest.session.file("file")
                await source.fail("file", errno.EIO, BAD * PAGE, BAD * PAGE + PAGE)
                await source.hold("file")
                accesses = [await guest.start(task, f"touch {BAD * PAGE}") for task in (0, 1)]
                await eventually(lambda: file.state().waiting == 2, "both faults parked")
                await source.release("file")
                assert (await accesses[0]()).outcome == "sigbus"
                await eventually(lambda: file.state().poisoned == 1, "the first answer")
                await source.fail("file", 0)
                await mended(guest)
                assert await read(guest, BAD) == page(BAD)  # present, write-protected
                late.healed.set()
                await accesses[1]()
                stored = await guest.access(0, f"write {BAD * PAGE} {b'stored'.hex()}")
                assert stored.outcome == "ok"
                await call(file.sync)
                assert (source.source / "file").read_bytes()[BAD * PAGE :][:6] == b"stored"
    finally:
        late.healed.set()
