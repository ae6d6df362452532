# SPDX-License-Identifier: Apache-2.0
"""Pages that guests can store to: what is written back, and what is read again after a change behind."""

import contextlib
import os
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio
from serving import PAGE, RANGE, Serving, call, serving
from trio.testing import trio_test

from daxfault.vmm.study.standin import StandIn

PAGES = 64
DATA = bytes(i * 13 % 251 + 1 for i in range(PAGES * PAGE))


def overwrite(path: Path, offset: int, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        assert os.pwrite(fd, data, offset) == len(data)
    finally:
        os.close(fd)


async def read(guest: StandIn, offset: int, size: int) -> bytes:
    got = await guest.access(0, f"read {offset} {size}")
    assert got.outcome == "ok", got
    return bytes.fromhex(got.value)


async def store(guest: StandIn, offset: int, data: bytes) -> None:
    assert (await guest.access(1, f"write {offset} {data.hex()}")).outcome == "ok"


async def shows(guest: StandIn, offset: int, data: bytes) -> None:
    """Wait until the guest's mapping has these bytes: the host notices changes behind the mount soon."""
    while await read(guest, offset, len(data)) != data:
        await trio.lowlevel.checkpoint()  # serving() has a bound


@contextlib.asynccontextmanager
async def stored(top: Path, before: str, data: bytes = DATA) -> AsyncIterator[tuple[Serving, StandIn]]:
    """A guest that has stored to the first 8 of PAGES, one after the other, so that the host runs ahead.
    Past `data` there is a hole."""
    async with serving(top) as s, s.guest() as guest:
        path = s.make("file", data)
        os.truncate(s.backing / "file", PAGES * PAGE)
        await guest.open("f", path, "rw")
        await guest.map("f", 0, RANGE, 0, "w")
        if before == "read":
            await guest.access(0, f"sum 0 {PAGES * PAGE}")
        for page in range(8):
            await store(guest, page * PAGE, b"stored")
        yield s, guest


@pytest.mark.parametrize("before", ["read", "untouched"])
@trio_test
async def test_page_beside_a_store_changed_behind_the_mount_is_seen_and_kept(
    tmp_path: Path, before: str
) -> None:
    async with stored(tmp_path, before) as (s, guest):
        for page in (9, 40):
            await call(overwrite, s.backing / "file", page * PAGE, b"CHANGED!")
            await shows(guest, page * PAGE, b"CHANGED!")
        await call(guest.session.file("file").sync)
        found = (s.backing / "file").read_bytes()
        expected = bytearray(DATA)
        for page in range(8):
            expected[page * PAGE : page * PAGE + 6] = b"stored"
        for page in (9, 40):
            expected[page * PAGE : page * PAGE + 8] = b"CHANGED!"
        assert found == bytes(expected)


@pytest.mark.parametrize("before", ["read", "untouched"])
@trio_test
async def test_store_to_sparse_file_fills_the_holes_of_its_own_pages_alone(
    tmp_path: Path, before: str
) -> None:
    async with stored(tmp_path, before, b"") as (s, guest):
        await call(guest.session.file("file").sync)
        fd = os.open(s.backing / "file", os.O_RDONLY)
        try:
            assert os.lseek(fd, 0, os.SEEK_HOLE) == 8 * PAGE
        finally:
            os.close(fd)


@trio_test
async def test_page_stored_to_keeps_the_store_when_the_file_changes_behind_the_mount(tmp_path: Path) -> None:
    async with stored(tmp_path, "read") as (s, guest):
        await call(overwrite, s.backing / "file", 0, b"CHANGED!" + b"!" * (2 * PAGE))
        await call(overwrite, s.backing / "file", 20 * PAGE, b"CHANGED!")
        await shows(guest, 20 * PAGE, b"CHANGED!")
        assert await read(guest, 0, 6) == b"stored"
        await call(guest.session.file("file").sync)
        assert (s.backing / "file").read_bytes()[: PAGE + 8] == (
            b"stored" + DATA[6:PAGE] + b"stored" + DATA[PAGE + 6 :][:2]
        )


@trio_test
async def test_page_written_back_and_changed_behind_the_mount_is_read_again(tmp_path: Path) -> None:
    async with stored(tmp_path, "read") as (s, guest):
        file = guest.session.file("file")
        assert await call(file.write_back)
        assert not await call(file.write_back)  # nothing differs any more
        await call(overwrite, s.backing / "file", 3 * PAGE, b"CHANGED!")
        await shows(guest, 3 * PAGE, b"CHANGED!")
        await store(guest, 3 * PAGE + 100, b"more")
        await call(file.sync)
        assert (s.backing / "file").read_bytes()[3 * PAGE :][:104] == b"CHANGED!" + DATA[3 * PAGE + 8 :][
            :92
        ] + b"more"


@pytest.mark.parametrize("clean", [True, False], ids=["clean", "dirty"])
@trio_test
async def test_write_into_an_exposed_page_leaves_it_to_be_compared(tmp_path: Path, clean: bool) -> None:
    """write(2) into part of a page: what the backing file holds is known again, or written back."""
    async with stored(tmp_path, "untouched") as (s, guest):
        file = guest.session.file("file")
        if clean:
            await call(file.sync)
        await call(overwrite, s.mount / "file", 2 * PAGE + 50, b"written")
        assert not await call(file.write_back)  # close(2) has
        assert (s.backing / "file").read_bytes()[2 * PAGE :][:57] == b"stored" + DATA[2 * PAGE + 6 :][
            :44
        ] + b"written"
        await store(guest, 2 * PAGE + 200, b"after")
        await call(file.sync)
        expected = bytearray(DATA[2 * PAGE : 3 * PAGE])
        expected[:6], expected[50:57], expected[200:205] = b"stored", b"written", b"after"
        assert (s.backing / "file").read_bytes()[2 * PAGE : 3 * PAGE] == bytes(expected)
        assert await read(guest, 2 * PAGE, PAGE) == bytes(expected)


@trio_test
async def test_truncation_into_an_exposed_page_leaves_nothing_to_write(tmp_path: Path) -> None:
    async with stored(tmp_path, "untouched") as (s, guest):
        file = guest.session.file("file")
        await call(file.sync)
        await call(os.truncate, s.mount / "file", 3 * PAGE + 100)
        await store(guest, 3 * PAGE + 500, b"past the end")
        assert not await call(file.write_back)
        await call(os.truncate, s.mount / "file", 5 * PAGE)
        assert not await call(file.write_back)
        assert (s.backing / "file").read_bytes()[3 * PAGE :] == (b"stored" + DATA[3 * PAGE + 6 :][:94]).ljust(
            2 * PAGE, b"\0"
        )


@contextlib.contextmanager
def writer_behind(path: Path) -> Iterator[None]:
    """Somebody who writes page 32 of the backing file over and over."""
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            overwrite(path, 32 * PAGE, b"CHANGED!")

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@trio_test
async def test_stores_beside_a_busy_writer_behind_the_mount_are_all_written_back(tmp_path: Path) -> None:
    """A page is compared and dropped in one step with its write protection: no store falls between."""
    async with stored(tmp_path, "read") as (s, guest):
        file = guest.session.file("file")
        with writer_behind(s.backing / "file"):
            for number in range(100):
                await store(guest, number % 30 * PAGE + 64, number.to_bytes(4, "little"))
                await call(file.recheck)
                assert await read(guest, number % 30 * PAGE + 64, 4) == number.to_bytes(4, "little")
                if number % 10 == 0:
                    await call(file.write_back)
        await call(file.sync)
        found = (s.backing / "file").read_bytes()
        for number in range(70, 100):
            assert found[number % 30 * PAGE + 64 :][:4] == number.to_bytes(4, "little")
        assert found[32 * PAGE :][:8] == b"CHANGED!"
