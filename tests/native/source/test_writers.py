# SPDX-License-Identifier: Apache-2.0
"""Changes of a backing file by other processes, however little its size and mtime tell of them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from patience import PATIENCE
from serving import PAGE, call, serving
from trio.testing import trio_test

from daxfault import native

DATA = b"o" * (64 * PAGE)

# Writes the line it reads to the offset before it, and sets the mtime to what it was if that is wanted.
WRITER = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
for line in sys.stdin:
    offset, text, back = line.split()
    st = os.fstat(fd)
    os.pwrite(fd, text.encode(), int(offset))
    if back == "back":
        os.utime(fd, ns=(st.st_atime_ns, st.st_mtime_ns))
    print("done", flush=True)
"""


def pread(path: Path, offset: int) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.pread(fd, 6, offset)
    finally:
        os.close(fd)


class Writer:
    """Another process that has the file open."""

    def __init__(self, path: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WRITER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def begin(self, offset: int, text: str, *, back: bool = False) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{offset} {text} {'back' if back else '-'}\n")
        self.process.stdin.flush()

    def done(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "done\n"

    def write(self, offset: int, text: str, *, back: bool = False) -> None:
        self.begin(offset, text, back=back)
        self.done()

    def end(self) -> None:
        self.process.communicate(timeout=PATIENCE)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "backing" / "file"
    path.parent.mkdir()
    path.write_bytes(DATA)
    return path


@pytest.fixture
def writer(path: Path) -> Iterator[Writer]:
    writer = Writer(path)
    yield writer
    writer.end()


@pytest.fixture
def file(path: Path) -> Iterator[native.File]:
    file = native.File(os.open(path, os.O_RDWR), writable=True)
    yield file
    file.close()


def test_write_that_restores_the_mtime_is_a_change(file: native.File, writer: Writer) -> None:
    writer.write(0, "CHANGED", back=True)
    assert file.recheck() == native.CHANGED_CONTENT
    assert file.recheck() == 0


def test_write_by_others_in_the_same_moment_as_ours_is_a_change(file: native.File, writer: Writer) -> None:
    """Theirs begins before ours and ends after it, or the other way round: nobody knows."""
    for _ in range(200):
        writer.begin(0, "CHANGED")
        for _ in range(4):
            file.write(PAGE, b"ours")
        writer.done()
        assert file.recheck() == native.CHANGED_CONTENT


def test_our_own_writes_and_attributes_are_no_change(file: native.File, path: Path) -> None:
    file.write(0, b"ours")
    assert file.recheck() == 0
    os.chmod(path, 0o640)
    os.link(path, path.with_name("other"))
    file.attributes_set()
    assert file.recheck() == 0
    file.truncate(PAGE)
    assert file.recheck() == 0


def test_attributes_set_after_a_write_by_others_do_not_hide_it(file: native.File, writer: Writer) -> None:
    writer.write(0, "CHANGED", back=True)
    file.attributes_set()
    assert file.recheck() == native.CHANGED_CONTENT


def test_two_files_of_one_inode_both_notice_a_write_by_others(path: Path, writer: Writer) -> None:
    first, second = (native.File(os.open(path, os.O_RDWR), writable=True) for _ in range(2))
    try:
        writer.write(0, "CHANGED", back=True)
        assert first.recheck() == native.CHANGED_CONTENT
        first.close()
        assert second.recheck() == native.CHANGED_CONTENT
        writer.write(0, "AGAIN", back=True)
        assert second.recheck() == native.CHANGED_CONTENT
    finally:
        first.close()
        second.close()


@trio_test
async def test_change_behind_the_mount_beside_our_own_syncs_is_seen_by_mapping_and_read(
    tmp_path: Path, path: Path, writer: Writer
) -> None:
    async with serving(tmp_path) as s, s.guest() as guest:
        await guest.open("f", s.mount / "file", "rw")
        await guest.map("f", 0, native.RANGE_SIZE, 0, "w")
        await guest.access(0, f"sum 0 {len(DATA)}")
        file = guest.session.file("file")
        for page in range(1, 64):
            text = f"page{page:02d}"
            writer.begin(page * PAGE, text)
            assert (await guest.access(1, f"write 0 {page:02x}")).outcome == "ok"
            await call(file.sync)
            writer.done()
            while (await guest.access(0, f"read {page * PAGE} 6")).value != text.encode().hex():
                await trio.lowlevel.checkpoint()  # serving() has a bound
            assert await call(pread, s.mount / "file", page * PAGE) == text.encode()
