# SPDX-License-Identifier: Apache-2.0
"""File data through the mount."""

import mmap
import os
import random
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from fsd_mount import FsdMount, MakeMount, errno_of, eventually
from needs import require

MIB = 1 << 20


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 128 * 1024 + 1, 3 * MIB + 17])
def test_what_is_written_is_read(mnt: FsdMount, size: int) -> None:
    data = random.Random(size).randbytes(size)
    (mnt.path / "f").write_bytes(data)
    assert (mnt.source / "f").read_bytes() == data
    assert (mnt.path / "f").read_bytes() == data


def test_reading_at_any_offset_ends_at_the_end(mnt: FsdMount) -> None:
    data = random.Random(0).randbytes(2 * MIB + 5)
    (mnt.source / "f").write_bytes(data)
    with open(mnt.path / "f", "rb") as file:
        for offset in (0, 1, 4096, MIB - 1, 2 * MIB, 2 * MIB + 4, 2 * MIB + 5, 3 * MIB):
            assert os.pread(file.fileno(), MIB, offset) == data[offset : offset + MIB]


def test_direct_io_by_the_client_reads_and_writes(mnt: FsdMount) -> None:
    page = mmap.mmap(-1, 4096)
    page[:] = b"d" * 4096
    fd = os.open(mnt.path / "f", os.O_CREAT | os.O_RDWR | os.O_DIRECT)
    assert os.writev(fd, [page]) == 4096
    page[:] = bytes(4096)
    assert os.preadv(fd, [page], 0) == 4096
    os.close(fd)
    assert page[:] == b"d" * 4096 == (mnt.source / "f").read_bytes()


def test_open_truncates_and_appends(mnt: FsdMount) -> None:
    (mnt.source / "f").write_text("much text")
    with open(mnt.path / "f", "w") as file:
        assert os.stat(mnt.source / "f").st_size == 0
        file.write("a")
    with open(mnt.path / "f", "a") as one, open(mnt.path / "f", "a") as other:
        for number in range(5):
            print(number, file=one, end="", flush=True)
            print("-", file=other, end="", flush=True)
    assert (mnt.source / "f").read_text() == "a0-1-2-3-4-"


def test_truncating_open_for_reading_truncates(mnt: FsdMount) -> None:
    (mnt.path / "f").write_text("text")
    os.close(os.open(mnt.path / "f", os.O_RDONLY | os.O_TRUNC))
    assert os.stat(mnt.source / "f").st_size == 0


def test_file_opened_for_reading_first_can_be_written_by_another(mnt: FsdMount) -> None:
    (mnt.source / "f").write_text("old")
    with open(mnt.path / "f") as reader, open(mnt.path / "f", "r+") as writer:
        writer.write("new")
        writer.flush()
        assert reader.read() == "new"
        assert errno_of(os.write, reader.fileno(), b"x") == "EBADF"


def test_sparse_file_stays_sparse_and_reads_zeros(mnt: FsdMount) -> None:
    with open(mnt.path / "f", "wb") as file:
        file.seek(1 << 32)
        file.write(b"end")
    found = os.stat(mnt.path / "f")
    assert found.st_size == (1 << 32) + 3
    assert found.st_blocks * 512 < MIB
    with open(mnt.path / "f", "rb") as file:
        assert os.pread(file.fileno(), 8192, 1 << 20) == bytes(8192)
        assert os.pread(file.fileno(), 16, (1 << 32) - 2) == b"\0\0end"


def test_unlinked_open_file_keeps_its_data_and_attributes(mnt: FsdMount) -> None:
    with open(mnt.path / "f", "w+b") as file:
        file.write(b"before")
        file.flush()
        os.unlink(mnt.path / "f")
        file.write(b" after")
        file.flush()
        os.ftruncate(file.fileno(), 9)
        os.fchmod(file.fileno(), 0o611)
        os.utime(file.fileno(), ns=(1, 2))
        found = os.fstat(file.fileno())
        assert (found.st_nlink, found.st_size, found.st_mode & 0o777, found.st_mtime_ns) == (0, 9, 0o611, 2)
        assert os.pread(file.fileno(), 99, 0) == b"before af"
    eventually(lambda: mnt.ask("files") == 0, "the file is closed")


def test_mode_without_permissions_does_not_hinder_an_open_file(mnt: FsdMount) -> None:
    fd = os.open(mnt.path / "f", os.O_CREAT | os.O_RDWR, 0)
    assert os.write(fd, b"x") == 1
    os.ftruncate(fd, 0)
    os.close(fd)


def test_fsync_succeeds_and_waits_in_a_thread(mnt: FsdMount) -> None:
    with open(mnt.path / "f", "w") as file:
        file.write("x")
        file.flush()
        os.fsync(file.fileno())
        os.fdatasync(file.fileno())


def test_errors_of_open_files_are_those_of_the_source(mnt: FsdMount) -> None:
    (mnt.path / "d").mkdir()
    (mnt.path / "f").touch()
    assert errno_of(os.open, mnt.path / "d", os.O_RDWR) == "EISDIR"
    assert errno_of(os.open, mnt.path / "d", os.O_CREAT | os.O_RDWR) == "EISDIR"
    assert errno_of(os.open, mnt.path / "f", os.O_DIRECTORY) == "ENOTDIR"
    assert errno_of(os.open, mnt.path / "no" / "f", os.O_CREAT | os.O_RDWR) == "ENOENT"
    with open(mnt.path / "f", "r+b") as ours, open(mnt.source / "f", "r+b") as theirs:
        # past the largest file the source can hold
        far = 2**63 - 4097
        assert errno_of(os.pwrite, ours.fileno(), b"x", far) == errno_of(
            os.pwrite, theirs.fileno(), b"x", far
        )


def test_writing_a_program_that_runs_is_refused(mnt: FsdMount) -> None:
    shutil.copy("/bin/sleep", mnt.source / "program")
    child = subprocess.Popen([mnt.path / "program", "60"])
    try:
        assert errno_of(os.open, mnt.path / "program", os.O_WRONLY) == "ETXTBSY"
    finally:
        child.kill()
        child.wait()


def test_private_and_shared_mappings_of_a_client_work(mnt: FsdMount) -> None:
    (mnt.path / "f").write_bytes(b"a" * 8192)
    # in another process: a page fault here is answered by the mount, and must not be waited for in Python
    code = (
        "import mmap, sys\n"
        "with open(sys.argv[1], 'r+b') as f, mmap.mmap(f.fileno(), 0) as m:\n"
        "    assert m[:] == b'a' * 8192; m[4096:4100] = b'bbbb'; m.flush()\n"
    )
    subprocess.run([sys.executable, "-c", code, mnt.path / "f"], check=True, timeout=20)
    assert (mnt.source / "f").read_bytes()[4090:4104] == b"a" * 6 + b"b" * 4 + b"a" * 4
    assert (mnt.path / "f").read_bytes() == (mnt.source / "f").read_bytes()


def test_pages_a_client_dirtied_are_written_before_the_mount_ends(mnt: FsdMount) -> None:
    (mnt.path / "f").write_bytes(b"a" * 4096)
    code = (
        "import mmap, sys\n"
        "with open(sys.argv[1], 'r+b') as f:\n"
        "    m = mmap.mmap(f.fileno(), 0); m[:4] = b'bbbb'; print(flush=True); sys.stdin.read()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, mnt.path / "f"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdout.readline()
    mnt.close()
    assert (mnt.source / "f").read_bytes()[:5] == b"bbbba"
    child.communicate()


def test_writes_give_the_same_in_a_thread(mnt: FsdMount) -> None:
    mnt.ask("writes_in_threads")
    (mnt.path / "f").write_text("x" * 100)
    assert (mnt.source / "f").read_text() == "x" * 100


def test_concurrent_readers_and_writers_see_whole_blocks(mnt: FsdMount) -> None:
    (mnt.path / "f").write_bytes(b"\0" * 64 * 4096)

    def work(worker: int) -> None:
        rng = random.Random(worker)
        fd = os.open(mnt.path / "f", os.O_RDWR)
        for _ in range(100):
            offset = rng.randrange(64) * 4096
            if rng.random() < 0.5:
                os.pwrite(fd, bytes([worker]) * 4096, offset)
            else:
                assert len(set(os.pread(fd, 4096, offset))) == 1
        os.close(fd)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(1, 7)))
    eventually(lambda: mnt.ask("files") == 0, "the file is closed")


def test_operation_that_raises_anything_answers_eio_and_the_mount_goes_on(mnt: FsdMount) -> None:
    (mnt.source / "f").write_text("x")
    mnt.ask("break_attributes", times=1)
    assert errno_of(os.stat, mnt.path / "f") == "EIO"
    assert os.stat(mnt.path / "f").st_size == 1
    assert "RuntimeError: broken by a test" in mnt.close()


def test_file_mapped_writable_by_a_guest_is_not_cached_by_the_kernel(make_mount: MakeMount) -> None:
    mnt = make_mount(attr_timeout=60)
    (mnt.source / "f").write_text("one")
    with open(mnt.path / "f", "rb", buffering=0) as held:
        assert held.read() == b"one"
        mnt.ask("map_writable", nodeid=os.fstat(held.fileno()).st_ino)
        with open(mnt.path / "f", "rb", buffering=0) as file:
            # what a guest's store is to the kernel: new bytes that nobody tells it of
            fd = os.open(mnt.source / "f", os.O_WRONLY)
            os.write(fd, b"two")
            assert os.pread(file.fileno(), 9, 0) == b"two"
            os.pwrite(fd, b"six", 0)
            assert os.pread(file.fileno(), 9, 0) == b"six"
            os.close(fd)


def test_handle_opened_before_a_guest_mapped_the_file_sees_its_stores_soon(make_mount: MakeMount) -> None:
    mnt = make_mount(attr_timeout=60)
    (mnt.source / "f").write_text("one")
    with open(mnt.path / "f", "rb", buffering=0) as file:
        mnt.ask("map_writable", nodeid=os.fstat(file.fileno()).st_ino)
        for text in (b"two", b"six", b"ten"):
            fd = os.open(mnt.source / "f", os.O_WRONLY)
            os.write(fd, text)
            os.close(fd)
            eventually(lambda text=text: os.pread(file.fileno(), 9, 0) == text, "the store is read")


def test_read_that_waits_for_storage_does_not_stop_the_mount(mnt: FsdMount) -> None:
    (mnt.source / "slow").write_text("slow")
    (mnt.source / "other").write_text("other")
    with open(mnt.path / "slow", "rb") as file, ThreadPoolExecutor() as pool:
        mnt.ask("block_reads", nodeid=os.fstat(file.fileno()).st_ino)
        waiting = pool.submit(os.pread, file.fileno(), 9, 0)
        assert (mnt.path / "other").read_text() == "other"
        (mnt.path / "other").rename(mnt.path / "renamed")
        assert sorted(os.listdir(mnt.path)) == ["renamed", "slow"]
        assert not waiting.done()
        mnt.ask("let_reads")
        assert waiting.result() == b"slow"


def test_splice_and_sendfile_copy_whole_files(mnt: FsdMount) -> None:
    require(hasattr(os, "sendfile"), "sendfile")
    data = random.Random(1).randbytes(MIB + 3)
    (mnt.path / "a").write_bytes(data)
    with open(mnt.path / "a", "rb") as source, open(mnt.path / "b", "wb") as target:
        left = len(data)
        while left:
            left -= os.sendfile(target.fileno(), source.fileno(), None, left)
    assert (mnt.source / "b").read_bytes() == data
