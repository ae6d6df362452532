# SPDX-License-Identifier: Apache-2.0
"""Requests of a traced mount are noted as they were answered; an untraced one has nothing to note with."""

import errno
import inspect
import os
import time
from pathlib import Path

import trio
from needs import require_fuse
from trio.testing import trio_test

from daxfault import fsd
from daxfault.fsd.tracing import Request, trace


@trio_test
async def test_trace_of_a_mount_notes_each_request_with_its_time_and_errno(tmp_path: Path) -> None:
    require_fuse()
    backing, mount = tmp_path / "backing", tmp_path / "mount"
    backing.mkdir()
    mount.mkdir()
    (backing / "there").write_bytes(b"x" * 5000)
    noted: list[Request] = []

    def use() -> None:
        assert len((mount / "there").read_bytes()) == 5000
        assert not (mount / "gone").exists()
        os.truncate(mount / "there", 10)

    fs = fsd.Filesystem(backing)
    trace(fs, noted.append)
    begin = time.monotonic_ns()
    async with fsd.mounted(fs, mount):
        await trio.to_thread.run_sync(use)
    end = time.monotonic_ns()
    assert all(begin <= one.begin_ns <= one.end_ns <= end for one in noted)
    looked = {one.about["name"]: one.error for one in noted if one.name == "lookup"}
    assert looked == {"there": 0, "gone": errno.ENOENT}
    (read, *_) = [one for one in noted if one.name == "read"]
    assert read.about["off"] == 0
    assert int(read.about["size"]) >= 5000
    assert [one.error for one in noted if one.name == "setattr"] == [0]


def test_filesystem_that_is_not_traced_has_its_own_handlers(tmp_path: Path) -> None:
    fs, traced = fsd.Filesystem(tmp_path), fsd.Filesystem(tmp_path)
    try:
        trace(traced, lambda _: None)
        assert {"read", "setattr", "lookup"} <= vars(traced).keys() - vars(fs).keys()
        assert not [name for name in vars(fs) if inspect.iscoroutinefunction(getattr(fs, name))]
    finally:
        fs.close()
        traced.close()
