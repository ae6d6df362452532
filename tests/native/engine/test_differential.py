# SPDX-License-Identifier: Apache-2.0
"""A file mapped by a guest of ours and a file mapped by the kernel give the same bytes and errors.

The same random operations run on both: on our mount, with a guest that has the file
mapped shared and writable, and on a file of the same file system mapped with mmap(2).
The kernel's side is touched by system calls only: they give EFAULT, or a short count,
exactly where a load gives SIGBUS.

Not compared, since the kernel's own file systems differ: stores behind EOF in the last page.
"""

import errno
import mmap
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from needs import require
from serving import PAGE, RANGE, Serving, call, eventually, noticed, serving
from trio.testing import trio_test

from daxfault.vmm.study.standin import StandIn

MOST = 6 * PAGE
EXAMPLES = int(os.environ.get("DAXFAULT_EXAMPLES", "40"))

offsets = st.one_of(
    st.integers(0, MOST - 1),
    st.builds(lambda page, by: max(0, page * PAGE + by), st.integers(0, 6), st.integers(-3, 3)),
)
sizes = st.one_of(st.just(0), offsets)
lengths = st.one_of(st.integers(1, 40), st.integers(1, PAGE))
data = st.builds(lambda byte, length: bytes([byte]) * length, st.integers(1, 255), lengths)

operations = st.one_of(
    st.tuples(st.just("load"), offsets, lengths),
    st.tuples(st.just("load"), offsets, lengths),
    st.tuples(st.just("send"), offsets, lengths),
    st.tuples(st.just("store"), offsets, data),
    st.tuples(st.just("store"), offsets, data),
    st.tuples(st.just("write"), offsets, data),
    st.tuples(st.just("read"), offsets, lengths),
    st.tuples(st.just("truncate"), sizes),
    st.tuples(st.just("truncate behind"), sizes),
    st.tuples(st.just("write behind"), offsets, data),
    st.tuples(st.just("punch behind"), st.integers(0, 5), st.integers(1, 3)),
    st.tuples(st.just("append"), data),
    st.tuples(st.just("fsync")),
    st.tuples(st.just("map again")),
)


class Native:
    """The kernel's side."""

    def __init__(self, path: Path, content: bytes) -> None:
        path.write_bytes(content)
        self.path = path
        self.fd = os.open(path, os.O_RDWR)
        self.sink = os.memfd_create("sink")
        self._map()

    def _map(self) -> None:
        # mmap(2) takes any length, Python's only what the file has
        size = os.fstat(self.fd).st_size
        os.ftruncate(self.fd, RANGE)
        self.map = mmap.mmap(self.fd, RANGE)
        os.ftruncate(self.fd, size)

    @property
    def size(self) -> int:
        return os.fstat(self.fd).st_size

    def load(self, offset: int, length: int) -> tuple[str, bytes]:
        os.ftruncate(self.sink, 0)
        try:
            with memoryview(self.map) as whole, whole[offset : offset + length] as piece:
                done = os.pwrite(self.sink, piece, 0)
        except OSError as exc:
            return errno.errorcode[exc.errno].lower(), b""
        return "ok" if done == length else "short", os.pread(self.sink, done, 0)

    def store(self, offset: int, content: bytes) -> int:
        """-> bytes stored"""
        os.ftruncate(self.sink, 0)
        os.pwrite(self.sink, content, 0)
        try:
            with memoryview(self.map) as whole, whole[offset : offset + len(content)] as piece:
                return os.preadv(self.sink, [piece], 0)
        except OSError:
            return 0

    def close(self) -> None:
        self.map.close()
        os.close(self.fd)
        os.close(self.sink)


def punch(path: Path, page: int, pages: int) -> None:
    command = ["fallocate", "--punch-hole", "-o", str(page * PAGE), "-l", str(pages * PAGE), path]
    subprocess.run(command, check=True)


class Both:
    """One file on our side, one on the kernel's, and what is done to both."""

    def __init__(self, s: Serving, guest: StandIn, native: Native) -> None:
        self.s = s
        self.guest = guest
        self.native = native
        self.path = s.mount / "file"
        self.backing = s.backing / "file"

    async def do(self, name: str, *args: Any) -> None:
        await getattr(self, name.replace(" ", "_"))(*args)
        assert os.path.getsize(self.backing) == self.native.size  # noqa: ASYNC240 - not on the mount

    async def load(self, offset: int, length: int) -> None:
        got = await self.guest.access(0, f"read {offset} {length}")
        outcome, expected = self.native.load(offset, length)
        assert bytes.fromhex(got.value) == expected
        assert got.outcome == ("ok" if outcome == "ok" else "sigbus")
        if outcome != "ok":
            assert (got.address, got.si_code) == (self.guest.window + offset + len(expected), 2)

    async def send(self, offset: int, length: int) -> None:
        got = await self.guest.access(0, f"sys_write {offset} {length}")
        outcome, expected = self.native.load(offset, length)
        assert (got.outcome, got.done) == (outcome, len(expected))

    async def store(self, offset: int, content: bytes) -> None:
        size = self.native.size
        if size % PAGE and offset < size // PAGE * PAGE + PAGE:
            content = content[: max(0, size - offset)]
        if not content:
            return
        got = await self.guest.access(0, f"write {offset} {content.hex()}")
        stored = self.native.store(offset, content)
        assert (got.outcome, got.done) == ("ok" if stored == len(content) else "sigbus", stored)

    async def write(self, offset: int, content: bytes) -> None:
        def ours() -> None:
            with self.path.open("r+b", buffering=0) as file:
                assert os.pwrite(file.fileno(), content, offset) == len(content)

        await call(ours)
        os.pwrite(self.native.fd, content, offset)

    async def append(self, content: bytes) -> None:
        if self.native.size + len(content) > MOST:
            return

        def ours() -> None:
            with self.path.open("ab", buffering=0) as file:
                assert file.write(content) == len(content)

        await call(ours)
        os.pwrite(self.native.fd, content, self.native.size)

    async def read(self, offset: int, length: int) -> None:
        def ours() -> bytes:
            with self.path.open("rb", buffering=0) as file:
                return os.pread(file.fileno(), length, offset)

        assert await call(ours) == os.pread(self.native.fd, length, offset)

    async def truncate(self, size: int) -> None:
        await call(os.truncate, self.path, size)
        os.ftruncate(self.native.fd, size)

    async def truncate_behind(self, size: int) -> None:
        # a change behind the mount is to meet clean pages: those that were stored to are the guest's
        await self.fsync()
        os.truncate(self.backing, size)
        await noticed(self.guest, "file", size)
        os.ftruncate(self.native.fd, size)

    async def _changed(self, change: Any, *args: Any) -> None:
        """Make a change behind the mount that keeps the size, and wait until it is noticed."""
        await self.fsync()
        file = self.guest.session.file("file")
        before = file.state().generation
        change(self.backing, *args)
        change(self.native.path, *args)
        await eventually(lambda: file.state().generation != before, "the change behind the mount noticed")

    async def write_behind(self, offset: int, content: bytes) -> None:
        content = content[: max(0, self.native.size - offset)]
        if content:
            await self._changed(overwrite, offset, content)

    async def punch_behind(self, page: int, pages: int) -> None:
        if self.native.size > page * PAGE:
            await self._changed(punch, page, pages)

    async def fsync(self) -> None:
        def ours() -> None:
            with self.path.open("r+b", buffering=0) as file:
                os.fsync(file.fileno())

        await call(ours)
        size = self.native.size
        assert self.backing.read_bytes() == os.pread(self.native.fd, size, 0)

    async def map_again(self) -> None:
        await self.guest.unmap(0, RANGE)
        assert self.backing.read_bytes() == os.pread(self.native.fd, self.native.size, 0)
        await self.guest.map("f", 0, RANGE, 0, "w")


def overwrite(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), content, offset)


@pytest.fixture(params=["tmpfs", "disk"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    if request.param == "disk":
        yield tmp_path
        return
    require(os.path.ismount("/dev/shm"), "a tmpfs at /dev/shm")
    top = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield top
    shutil.rmtree(top)


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(content=st.integers(0, MOST), steps=st.lists(operations, max_size=14))
@trio_test
async def test_any_operations_on_a_mapped_file_give_what_the_kernels_own_mapping_gives(
    place: Path, content: int, steps: list[tuple[Any, ...]]
) -> None:
    first = bytes(i % 251 + 1 for i in range(content))
    native = Native(place / "native", first)
    try:
        async with serving(place) as s, s.mapped("file", first) as guest:
            both = Both(s, guest, native)
            for step in steps:
                await both.do(*step)
            await both.map_again()
    finally:
        native.close()
