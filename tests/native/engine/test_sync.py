# SPDX-License-Identifier: Apache-2.0
"""Syncs that fail: what they leave dirty, and who is told."""

import contextlib
import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from gated_source import Gated, gated
from serving import PAGE, RANGE, Serving, call, serving
from trio.testing import trio_test

from daxfault.vmm.study.standin import StandIn

DATA = bytes(8 * PAGE)
EIO = os.strerror(errno.EIO)


@contextlib.asynccontextmanager
async def losing(top: Path) -> AsyncIterator[tuple[Gated, Serving, StandIn]]:
    """A guest that has stored to pages 1 and 5; the disk loses what is written, and says so at fsync."""
    async with gated(top) as source:
        (source.source / "file").write_bytes(DATA)
        async with serving(top, backing=source.path) as s, s.guest() as guest:
            await guest.open("f", s.mount / "file", "rw")
            await guest.map("f", 0, RANGE, 0, "w")
            for page in (1, 5):
                assert (await guest.access(0, f"write {page * PAGE} {b'stored'.hex()}")).outcome == "ok"
            await source.lose("file", True)
            yield source, s, guest


@trio_test
async def test_stores_are_written_again_by_the_first_sync_after_a_failed_one(tmp_path: Path) -> None:
    async with losing(tmp_path) as (source, _, guest):
        file = guest.session.file("file")
        for _ in range(2):
            with pytest.raises(OSError, match=EIO):
                await call(file.sync)
        await source.lose("file", False)
        await call(file.sync)
        found = (source.source / "file").read_bytes()
        assert [page for page in range(8) if found[page * PAGE :][:6] == b"stored"] == [1, 5]
        assert not await call(file.write_back)


@trio_test
async def test_stores_that_were_written_back_before_the_failed_sync_are_written_again(tmp_path: Path) -> None:
    async with losing(tmp_path) as (source, _, guest):
        file = guest.session.file("file")
        assert await call(file.write_back)
        with pytest.raises(OSError, match=EIO):
            await call(file.sync)
        await source.lose("file", False)
        await call(file.sync)
        assert (source.source / "file").read_bytes()[PAGE:][:6] == b"stored"


@trio_test
async def test_write_to_cached_pages_is_written_again_after_a_failed_sync(tmp_path: Path) -> None:
    async with losing(tmp_path) as (source, s, guest):
        await guest.access(0, f"read {3 * PAGE} 1")
        fd = await call(os.open, s.mount / "file", os.O_RDWR)
        try:
            await call(os.pwrite, fd, b"written", 3 * PAGE)
            with pytest.raises(OSError, match=EIO):
                await call(os.fsync, fd)
            await source.lose("file", False)
            await call(os.fsync, fd)
        finally:
            await call(os.close, fd)
        assert (source.source / "file").read_bytes()[3 * PAGE :][:7] == b"written"


@trio_test
async def test_failed_sync_is_reported_once_to_each_descriptor(tmp_path: Path) -> None:
    async with losing(tmp_path) as (source, s, _):
        fds = [await call(os.open, s.mount / "file", os.O_RDWR) for _ in range(2)]
        try:
            with pytest.raises(OSError, match=EIO):
                await call(os.fsync, fds[0])
            await source.lose("file", False)
            await call(os.fsync, fds[0])
            with pytest.raises(OSError, match=EIO):
                await call(os.fsync, fds[1])
            await call(os.fsync, fds[1])
            fds.append(await call(os.open, s.mount / "file", os.O_RDWR))
            await call(os.fsync, fds[2])
        finally:
            for fd in fds:
                await call(os.close, fd)
