# SPDX-License-Identifier: Apache-2.0
"""Errors and delays of a page source, made on purpose: whom they meet, how often, and how they end."""

import errno
import os
from pathlib import Path

import pytest
from serving import PAGE, Serving, call, eventually, recorded, serving
from trio.testing import trio_test

from daxfault import native
from daxfault.vmm.study.standin import StandIn

PAGES = 64
BAD = 40


def bad(guest: StandIn, s: Serving, name: str = "f") -> native.File:
    return guest.session.file(name)


def content() -> bytes:
    return os.urandom(PAGES * PAGE)


async def sigbus_at(guest: StandIn, page: int) -> None:
    got = await guest.access(0, f"touch {page * PAGE + 3}")
    assert (got.outcome, got.address) == ("sigbus", guest.window + page * PAGE + 3)


async def reads(guest: StandIn, data: bytes, page: int, vcpu: int = 0) -> None:
    got = await guest.access(vcpu, f"read {page * PAGE} 16")
    assert (got.outcome, got.value) == ("ok", data[page * PAGE : page * PAGE + 16].hex())


@trio_test
async def test_injected_error_meets_its_pages_and_no_others(tmp_path: Path) -> None:
    data = content()
    async with serving(tmp_path) as s, s.mapped("f", data) as guest:
        bad(guest, s).inject(BAD * PAGE, 2 * PAGE, error=errno.EIO)
        await reads(guest, data, BAD - 1)
        await sigbus_at(guest, BAD)
        await sigbus_at(guest, BAD + 1)
        await reads(guest, data, BAD + 2)
        assert {record.failure.error for record in await recorded(s, 2)} == {errno.EIO}


@trio_test
async def test_injected_error_taken_back_is_no_more(tmp_path: Path) -> None:
    data = content()
    async with serving(tmp_path) as s, s.mapped("f", data) as guest:
        bad(guest, s).inject(0, PAGES * PAGE, error=errno.EIO)
        await sigbus_at(guest, BAD)
        bad(guest, s).inject_clear()
        await reads(guest, data, BAD)


@trio_test
async def test_injected_error_with_a_count_is_over_after_as_many_faults(tmp_path: Path) -> None:
    data = content()
    async with serving(tmp_path) as s, s.mapped("f", data) as guest:
        bad(guest, s).inject(BAD * PAGE, PAGE, error=errno.EIO, count=2)
        outcomes = [(await guest.access(0, f"touch {BAD * PAGE}")).outcome for _ in range(3)]
        # the source is asked again when a thread has left its fault meanwhile, and that counts
        assert outcomes in (["sigbus", "sigbus", "ok"], ["sigbus", "ok", "ok"])


@trio_test
async def test_injected_error_of_stores_lets_loads_pass(tmp_path: Path) -> None:
    data = content()
    async with serving(tmp_path) as s, s.mapped("f", data) as guest:
        bad(guest, s).inject(BAD * PAGE, 2 * PAGE, error=errno.ENOSPC, stores=True)
        got = await guest.access(0, f"write {BAD * PAGE + 3} 55")
        assert (got.outcome, got.address) == ("sigbus", guest.window + BAD * PAGE + 3)
        await reads(guest, data, BAD + 1)
        assert [record.failure.error for record in await recorded(s, 1)] == [errno.ENOSPC]


@trio_test
async def test_injected_delay_parks_the_fault_until_it_is_taken_back(tmp_path: Path) -> None:
    data = content()
    async with serving(tmp_path) as s, s.mapped("f", data) as guest:
        file = bad(guest, s)
        file.inject(BAD * PAGE, PAGE, delay=3600.0)
        wait = await guest.start(0, f"read {BAD * PAGE} 16")
        await eventually(lambda: file.state().waiting, "the fault parked")
        await reads(guest, data, 0, vcpu=1)
        assert file.state().waiting == 1
        file.inject_clear()
        got = await wait()
        assert (got.outcome, got.value) == ("ok", data[BAD * PAGE : BAD * PAGE + 16].hex())


@trio_test
async def test_injected_delay_of_a_page_that_is_cut_off_ends_with_the_truncation(tmp_path: Path) -> None:
    async with serving(tmp_path) as s, s.mapped("f", content()) as guest:
        file = bad(guest, s)
        file.inject(BAD * PAGE, PAGE, delay=3600.0)
        wait = await guest.start(0, f"touch {BAD * PAGE + 3}")
        await eventually(lambda: file.state().waiting, "the fault parked")
        await call(os.truncate, s.mount / "f", PAGE)
        got = await wait()
        assert (got.outcome, got.address) == ("sigbus", guest.window + BAD * PAGE + 3)
        file.inject_clear()


@pytest.mark.parametrize(
    "arguments",
    [
        {"start": 1, "length": PAGE, "error": errno.EIO},
        {"start": 0, "length": 100, "error": errno.EIO},
        {"start": 0, "length": 0, "error": errno.EIO},
        {"start": 0, "length": PAGE},
        {"start": 0, "length": PAGE, "error": -1},
        {"start": 0, "length": PAGE, "delay": 3601.0},
        {"start": 2**64 - PAGE, "length": 2 * PAGE, "error": errno.EIO},
    ],
    ids=lambda arguments: ",".join(f"{key}={value}" for key, value in arguments.items()),
)
def test_injection_that_makes_no_sense_is_refused(tmp_path: Path, arguments: dict[str, float]) -> None:
    fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    file = native.File(fd, writable=True)
    with pytest.raises(OSError, match=r"injecting into 0x.* Invalid argument|Invalid argument"):
        file.inject(**arguments)  # type: ignore[arg-type]
    file.close()
