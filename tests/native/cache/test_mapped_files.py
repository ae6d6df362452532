# SPDX-License-Identifier: Apache-2.0
"""What becomes of a mapped file: names, holes, growth, stores, and who sees them when."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from serving import PAGE, RANGE, Serving, call, eventually, noticed, serving
from trio.testing import trio_test

from daxfault.vmm.designs import DESIGNS
from daxfault.vmm.study.standin import StandIn, standin

PAGES = 8
DATA = bytes(i * 13 % 251 + 1 for i in range(PAGES * PAGE))  # no zero byte
LIBC = ctypes.CDLL(None, use_errno=True)
KEEP_SIZE, PUNCH_HOLE = 1, 2  # linux/falloc.h


def page(number: int) -> bytes:
    return DATA[number * PAGE : (number + 1) * PAGE]


def punch(path: Path, offset: int, length: int) -> None:
    fd = os.open(path, os.O_RDWR)
    try:
        args = (ctypes.c_int(PUNCH_HOLE | KEEP_SIZE), ctypes.c_long(offset), ctypes.c_long(length))
        assert LIBC.fallocate(ctypes.c_int(fd), *args) == 0, os.strerror(ctypes.get_errno())
    finally:
        os.close(fd)


def overwrite(path: Path, offset: int, data: bytes, flags: int = 0) -> None:
    fd = os.open(path, os.O_WRONLY | flags)
    try:
        assert os.pwrite(fd, data, offset) == len(data)
    finally:
        os.close(fd)


def pread(path: Path, offset: int, size: int) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.pread(fd, size, offset)
    finally:
        os.close(fd)


async def read(guest: StandIn, offset: int, size: int = PAGE) -> bytes:
    got = await guest.access(0, f"read {offset} {size}")
    assert got.outcome == "ok", got
    return bytes.fromhex(got.value)


async def store(guest: StandIn, offset: int, data: bytes) -> None:
    assert (await guest.access(1, f"write {offset} {data.hex()}")).outcome == "ok"


async def changed(guest: StandIn, change: Callable[[], None]) -> None:
    """Change the file's bytes behind the mount, and wait until the host has noticed."""
    file = guest.session.file("file")
    before = file.state().generation
    await call(change)
    await eventually(lambda: file.state().generation > before, "the change behind the mount noticed")


@pytest.mark.parametrize("how", ["unlink", "rename", "replace"])
@trio_test
async def test_mapped_file_whose_name_is_gone_keeps_bytes_and_size_changes(tmp_path: Path, how: str) -> None:
    async with serving(tmp_path) as s, s.mapped("file", DATA) as guest:
        name = s.mount / "file"
        held = await call(os.open, name, os.O_RDWR)
        try:
            assert await read(guest, 0) == page(0)
            if how == "unlink":
                await call(os.unlink, name)
            elif how == "rename":
                await call(os.rename, name, s.mount / "moved")
            else:
                s.make("new", b"another file")
                await call(os.rename, s.mount / "new", name)
                assert await call(name.read_bytes) == b"another file"
            assert await read(guest, 3 * PAGE) == page(3)  # filled only now
            await call(os.ftruncate, held, 2 * PAGE)
            gone = await guest.access(0, f"touch {3 * PAGE}")
            assert (gone.outcome, gone.address) == ("sigbus", guest.window + 3 * PAGE)
            await call(os.ftruncate, held, 4 * PAGE)
            assert await read(guest, 3 * PAGE) == bytes(PAGE)
            await store(guest, 0, b"stored")
            assert await call(os.pread, held, 6, 0) == b"stored"
        finally:
            await call(os.close, held)


@trio_test
async def test_hole_punched_behind_the_mount_reads_zeros_but_keeps_stores(tmp_path: Path) -> None:
    async with serving(tmp_path) as s, s.mapped("file", DATA) as guest:
        await guest.access(0, f"sum 0 {len(DATA)}")
        await store(guest, 2 * PAGE + 10, b"stored")
        await changed(guest, lambda: punch(s.backing / "file", PAGE, 3 * PAGE))
        assert await read(guest, 0) == page(0)
        assert await read(guest, PAGE) == bytes(PAGE)
        assert await read(guest, 3 * PAGE) == bytes(PAGE)
        assert (await read(guest, 2 * PAGE + 10, 6)) == b"stored"
        assert await read(guest, 4 * PAGE) == page(4)


@trio_test
async def test_truncation_by_other_process_with_the_file_open_ends_in_sigbus(tmp_path: Path) -> None:
    async with serving(tmp_path) as s, s.mapped("file", DATA) as guest:
        await guest.access(0, f"sum 0 {len(DATA)}")
        program = "import os, sys; os.ftruncate(os.open(sys.argv[1], os.O_RDWR), int(sys.argv[2]))"
        await trio.run_process([sys.executable, "-c", program, str(s.mount / "file"), str(PAGE)])
        got = await guest.access(0, f"touch {PAGE}")
        assert (got.outcome, got.address) == ("sigbus", guest.window + PAGE)
        assert await read(guest, 0) == page(0)


@pytest.mark.parametrize("via", ["mount", "backing"])
@trio_test
async def test_append_is_seen_by_the_guest(tmp_path: Path, via: str) -> None:
    data = DATA[: 2 * PAGE + 100]
    async with serving(tmp_path) as s, s.mapped("file", data) as guest:
        assert await read(guest, 2 * PAGE) == data[2 * PAGE :].ljust(PAGE, b"\0")
        assert (await guest.access(0, f"touch {3 * PAGE}")).outcome == "sigbus"
        more = b"+" * (PAGE + 50)

        def append() -> None:
            with (getattr(s, via) / "file").open("ab") as file:
                file.write(more)

        await call(append)
        if via == "backing":
            await noticed(guest, "file", len(data) + len(more))
        whole = (data + more).ljust(4 * PAGE, b"\0")
        assert await read(guest, 2 * PAGE) == whole[2 * PAGE : 3 * PAGE]
        assert await read(guest, 3 * PAGE) == whole[3 * PAGE :]


@trio_test
async def test_store_is_read_at_once_by_read_and_by_other_guest(tmp_path: Path) -> None:
    async with serving(tmp_path) as s, s.mapped("file", DATA) as one, s.guest() as two:
        await two.open("f", s.mount / "file", "rw")
        await two.map("f", 0, RANGE, 0, "w")
        fd = await call(os.open, s.mount / "file", os.O_RDONLY)
        try:
            for number, data in enumerate((b"first", b"other")):
                await store(one, PAGE + 20 + number, data)
                assert await call(os.pread, fd, 5, PAGE + 20 + number) == data
                assert await read(two, PAGE + 20 + number, 5) == data
            await store(two, PAGE + 20, b"again")
            assert await read(one, PAGE + 20, 5) == b"again"
            # and a write is seen by both
            await call(overwrite, s.mount / "file", PAGE + 20, b"wrote")
            assert [await read(g, PAGE + 20, 5) for g in (one, two)] == [b"wrote", b"wrote"]
        finally:
            await call(os.close, fd)
        assert pread(s.backing / "file", PAGE + 20, 5) == b"wrote"


@pytest.mark.parametrize("how", ["fsync", "unmap", "kill"])
@trio_test
async def test_store_is_in_the_backing_file_after(tmp_path: Path, how: str) -> None:
    async with serving(tmp_path) as s, s.mapped("file", DATA) as guest:
        await store(guest, 2 * PAGE + 10, b"stored")
        before = pread(s.backing / "file", 2 * PAGE + 10, 6)
        assert before == page(2)[10:16]  # or there would be nothing to prove
        if how == "fsync":
            fd = await call(os.open, s.mount / "file", os.O_RDWR)
            await call(os.fsync, fd)
            await call(os.close, fd)
        elif how == "unmap":
            await guest.unmap(0, RANGE)
        else:
            guest.process.send_signal(signal.SIGKILL)
            backing = s.backing / "file"
            await eventually(lambda: pread(backing, 2 * PAGE + 10, 6) == b"stored", "the write-back")
        assert pread(s.backing / "file", 0, len(DATA)) == (
            DATA[: 2 * PAGE + 10] + b"stored" + DATA[2 * PAGE + 16 :]
        )


@trio_test
async def test_store_is_in_the_backing_file_after_host_shutdown(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        ended = trio.Event()

        async def serve(task_status: trio.TaskStatus[tuple[Serving, trio.CancelScope]]) -> None:
            with trio.CancelScope() as scope:
                async with serving(tmp_path) as s:
                    task_status.started((s, scope))
                    await trio.sleep_forever()
            ended.set()

        s, scope = await nursery.start(serve)
        async with standin(s.host, s.nursery, DESIGNS["report"]) as guest:
            await guest.open("f", s.make("file", DATA), "rw")
            await guest.map("f", 0, RANGE, 0, "w")
            await store(guest, 2 * PAGE + 10, b"stored")
            scope.cancel()
            await ended.wait()  # while the guest lives on
            assert pread(s.backing / "file", 2 * PAGE + 10, 6) == b"stored"
            # what it has not got yet is an error, never zeros
            got = await guest.access(0, f"touch {RANGE - PAGE}")
            assert got.outcome == "sigbus"


@trio_test
async def test_store_past_eof_in_last_page_never_reaches_the_file(tmp_path: Path) -> None:
    data = DATA[: PAGE + 100]
    async with serving(tmp_path) as s, s.mapped("file", data) as guest:
        await store(guest, PAGE + 90, b"0123456789past EOF")
        assert await read(guest, PAGE + 90, 18) == b"0123456789past EOF"
        fd = await call(os.open, s.mount / "file", os.O_RDWR)
        try:
            await call(os.fsync, fd)
            whole = data[: PAGE + 90] + b"0123456789"
            assert (s.backing / "file").read_bytes() == whole
            assert await call(os.pread, fd, 2 * PAGE, 0) == whole
            await call(os.ftruncate, fd, 2 * PAGE)
            assert await read(guest, PAGE + 90, 18) == b"0123456789" + bytes(8)
            await call(os.fsync, fd)
        finally:
            await call(os.close, fd)
        assert (s.backing / "file").read_bytes() == whole.ljust(2 * PAGE, b"\0")


@trio_test
async def test_write_back_leaves_alone_what_the_guest_did_not_store_to(tmp_path: Path) -> None:
    async with serving(tmp_path) as s, s.mapped("file", DATA) as guest:
        await guest.access(0, f"sum 0 {len(DATA)}")  # every page is mapped for reading
        await store(guest, 3 * PAGE, b"stored")
        await changed(guest, lambda: overwrite(s.backing / "file", 5 * PAGE, b"behind"))
        await guest.unmap(0, RANGE)
        assert pread(s.backing / "file", 5 * PAGE, 6) == b"behind"
        assert pread(s.backing / "file", 3 * PAGE, 6) == b"stored"


@trio_test
async def test_write_back_of_unnoticed_change_leaves_alone_what_the_guest_did_not_store_to(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as s, s.mapped("file", DATA) as guest:
        await guest.access(0, f"sum 0 {len(DATA)}")
        await store(guest, 3 * PAGE, b"stored")
        # in this very step of the loop: inotify has not told anybody yet
        overwrite(s.backing / "file", 5 * PAGE, b"behind")
        guest.session.file("file").write_back()
        assert pread(s.backing / "file", 5 * PAGE, 6) == b"behind"
        assert pread(s.backing / "file", 3 * PAGE, 6) == b"stored"
        assert await read(guest, 5 * PAGE, 6) == b"behind"
