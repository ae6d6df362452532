# SPDX-License-Identifier: Apache-2.0
"""Backing files of which no call returns: their own waiters wait, until a deadline, and nobody else.

The backing directory is local, and has the hung file system below it.
"""

import contextlib
import errno
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import trio
from gated_source import Gated, gated
from patience import PATIENCE
from serving import PAGE, RANGE, Serving, call, eventually, recorded, serving
from trio.testing import trio_test

from daxfault import native
from daxfault.native import Engine, Reason
from daxfault.vmm.study.standin import StandIn

DATA = b"".join(bytes([number]) * PAGE for number in range(64))
FILES = 10  # that hang; each may occupy 8 threads


@contextlib.asynccontextmanager
async def scene(top: Path, source_seconds: float = PATIENCE) -> AsyncIterator[tuple[Gated, Serving, StandIn]]:
    """A guest that maps a local file at 0, and FILES files of a stopped server behind it."""
    backing = top / "backing"
    backing.mkdir()
    engine = Engine(source_seconds=source_seconds)
    async with gated(backing) as source:
        for number in range(FILES):
            (source.source / str(number)).write_bytes(DATA)
        async with serving(top, backing=backing, engine=engine) as s:
            path = s.make("local", DATA)
            async with s.guest() as guest:
                await guest.open("local", path, "rw")
                await guest.map("local", 0, RANGE, 0, "w")
                for number in range(FILES):
                    await guest.open(f"f{number}", s.mount / "gated" / str(number), "rw")
                    await guest.map(f"f{number}", 0, RANGE, (number + 1) * RANGE, "w")
                try:
                    yield source, s, guest
                finally:
                    source.go_on()


async def others_go_on(s: Serving, guest: StandIn, page: int) -> None:
    """Faults of the local file, and calls on it, end soon."""
    with trio.fail_after(PATIENCE):
        got = await guest.access(0, f"read {page * PAGE} 1")
        assert got.value == f"{page:02x}"
        file = guest.session.file("local")
        assert bytes(await call(file.read, page * PAGE, 1)) == bytes([page])
        await call(file.write, page * PAGE, b"w")
        got = await guest.access(0, f"read {page * PAGE} 1")
        assert got.value == "77"
        await call(file.sync, native.SyncErrors(0))
        await call(file.truncate, len(DATA))


@trio_test
async def test_hung_file_holds_up_no_fault_and_no_call_of_another(tmp_path: Path) -> None:
    async with scene(tmp_path) as (source, s, guest):
        hung = guest.session.file("0")
        assert (await guest.access(0, f"write {RANGE} 73")).outcome == "ok"
        source.stop()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(guest.access, 1, f"read {RANGE + 40 * PAGE} 1")
            for _ in range(45):
                nursery.start_soon(call_abandoned, hung.sync, native.SyncErrors(0))
            nursery.start_soon(call_abandoned, hung.truncate, PAGE)
            await eventually(lambda: hung.state().waiting, "a fault that waits for the hung file")
            await others_go_on(s, guest, 3)
            hung.state()
            source.go_on()
            nursery.cancel_scope.cancel()


async def call_abandoned(function: Callable[..., Any], *args: Any) -> None:
    await trio.to_thread.run_sync(function, *args, abandon_on_cancel=True, limiter=trio.CapacityLimiter(1))


@trio_test
async def test_fault_of_a_hung_file_ends_with_its_deadline_while_a_write_back_hangs(tmp_path: Path) -> None:
    async with scene(tmp_path, source_seconds=1.0) as (source, s, guest):
        hung = guest.session.file("0")
        assert (await guest.access(0, f"write {RANGE} 73")).outcome == "ok"
        source.stop()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call_abandoned, hung.write_back)
            with trio.fail_after(PATIENCE):
                got = await guest.access(0, f"read {RANGE + 40 * PAGE} 1")
            assert got.outcome != "ok"
            (record, *_) = await recorded(s, 1)
            assert (record.failure.reason, record.failure.error) == (Reason.TIMEOUT, errno.ETIMEDOUT)
            assert (await guest.access(0, f"read {RANGE} 1")).value == "73"  # present pages go on
            source.go_on()
        assert not hung.write_back()
        assert (source.source / "0").read_bytes() == b"s" + DATA[1:]


@trio_test
async def test_many_hung_files_leave_threads_to_the_others(tmp_path: Path) -> None:
    async with scene(tmp_path, source_seconds=0.2) as (source, s, guest):
        source.stop()
        await others_go_on(s, guest, 5)
        with trio.fail_after(2 * PATIENCE):
            for number in range(FILES):
                for page in range(0, 64, 16):
                    got = await guest.access(0, f"read {(number + 1) * RANGE + page * PAGE} 1")
                    assert got.outcome != "ok"
        threads = len(os.listdir("/proc/self/task"))
        assert threads < 8 * FILES + 100
        await others_go_on(s, guest, 7)
        source.go_on()
