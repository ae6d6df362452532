# SPDX-License-Identifier: Apache-2.0
"""Changes behind the mount, seen through it.

attr_timeout is a minute here: what is seen sooner was told to the kernel.
"""

import contextlib
import fcntl
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fsd_mount import PATIENCE, FsdMount, MakeMount, errno_of, eventually
from needs import require_root


@pytest.fixture
def slow(make_mount: MakeMount) -> FsdMount:
    return make_mount(attr_timeout=60, entry_timeout=60)


def change(path: Path, data: bytes) -> None:
    """Write `data` over the beginning, in place."""
    fd = os.open(path, os.O_WRONLY)
    os.write(fd, data)
    os.close(fd)


def test_data_written_behind_the_mount_reaches_an_open_file(slow: FsdMount) -> None:
    (slow.source / "f").write_bytes(b"a" * 5000)
    with open(slow.path / "f", "rb") as file:
        assert os.pread(file.fileno(), 9, 4000) == b"a" * 9
        change(slow.source / "f", b"b" * 4500)
        eventually(lambda: os.pread(file.fileno(), 2, 4000) == b"bb", "the new data is read")


def test_size_changed_behind_the_mount_reaches_an_open_file(slow: FsdMount) -> None:
    (slow.source / "f").write_bytes(b"a" * 5000)
    with open(slow.path / "f", "rb") as file:
        assert len(os.pread(file.fileno(), 9999, 0)) == 5000
        os.truncate(slow.source / "f", 100)
        eventually(lambda: os.fstat(file.fileno()).st_size == 100, "the file is short")
        assert os.pread(file.fileno(), 9999, 0) == b"a" * 100
        os.truncate(slow.source / "f", 200)
        eventually(lambda: os.fstat(file.fileno()).st_size == 200, "the file is longer")
        assert os.pread(file.fileno(), 9999, 0) == b"a" * 100 + bytes(100)


def test_mode_changed_behind_the_mount_reaches_an_open_file(slow: FsdMount) -> None:
    (slow.source / "f").touch()
    with open(slow.path / "f") as file:
        (slow.source / "f").chmod(0o604)
        eventually(lambda: os.fstat(file.fileno()).st_mode & 0o777 == 0o604, "the mode is new")


def test_file_changed_while_closed_is_read_anew(slow: FsdMount) -> None:
    (slow.source / "f").write_bytes(b"old data")
    assert (slow.path / "f").read_bytes() == b"old data"
    eventually(lambda: slow.ask("files") == 0, "the file is closed")
    change(slow.source / "f", b"new")
    with open(slow.path / "f", "rb") as file:
        assert os.pread(file.fileno(), 8, 0) == b"new data"


def test_file_not_changed_is_kept_in_the_kernels_cache(slow: FsdMount) -> None:
    (slow.source / "f").write_bytes(b"data" * 1024)
    os.utime(slow.source / "f", ns=(10**18, 10**18))
    ctime = os.stat(slow.source / "f").st_ctime_ns
    # younger than a clock tick, a file cannot be told from its next state
    eventually(lambda: time.time_ns() - ctime > 50_000_000, "the file is old enough")
    assert (slow.path / "f").read_bytes() == b"data" * 1024
    eventually(lambda: slow.ask("files") == 0, "the file is closed")
    slow.ask("count_reads")
    assert (slow.path / "f").read_bytes() == b"data" * 1024
    assert slow.ask("reads") == 0


def test_kernel_mapping_of_a_file_cut_behind_the_mount_gets_sigbus(slow: FsdMount) -> None:
    (slow.source / "f").write_bytes(b"a" * 8192)
    code = (
        "import mmap, os, sys\n"
        "with open(sys.argv[1], 'rb') as f:\n"
        "    m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ); m[4096]\n"
        "    print(flush=True); sys.stdin.readline(); m[4096]\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, slow.path / "f"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdout.readline()
    os.truncate(slow.source / "f", 10)
    eventually(lambda: os.stat(slow.path / "f").st_size == 10, "the file is short")
    child.communicate(b"\n", timeout=10)
    assert child.returncode == -7  # SIGBUS


def test_file_that_lost_its_last_name_but_is_open_is_still_watched(slow: FsdMount) -> None:
    # the kernel drops the watches of a file when its last name goes, even if it is open by another one
    (slow.source / "a").write_bytes(b"old")
    os.link(slow.source / "a", slow.source / "b")
    behind = os.open(slow.source / "b", os.O_RDWR)
    with open(slow.path / "a", "rb") as file:
        assert os.pread(file.fileno(), 9, 0) == b"old"
        os.unlink(slow.source / "a")
        os.unlink(slow.path / "b")
        for data in (b"new", b"two"):
            os.pwrite(behind, data, 0)
            eventually(lambda data=data: os.pread(file.fileno(), 9, 0) == data, "the new data is read")
    os.close(behind)
    eventually(lambda: slow.ask("files") == 0, "the file is closed")
    assert slow.close() == ""


def test_files_without_a_watch_are_looked_at_now_and_then(slow: FsdMount) -> None:
    slow.ask("no_watches_left")
    (slow.source / "f").write_bytes(b"old")
    with open(slow.path / "f", "rb") as file:
        assert os.pread(file.fileno(), 9, 0) == b"old"
        change(slow.source / "f", b"new")
        eventually(lambda: os.pread(file.fileno(), 9, 0) == b"new", "the new data is read")
    assert slow.close().count("max_user_watches") == 1


def test_file_replaced_behind_the_mount_stays_itself_for_who_has_it_open(slow: FsdMount) -> None:
    (slow.source / "f").write_text("first")
    with open(slow.path / "f") as file:
        (slow.source / "new").write_text("second")
        os.rename(slow.source / "new", slow.source / "f")
        assert file.read() == "first"
        assert os.fstat(file.fileno()).st_size == 5
    assert errno_of(os.stat, slow.path / "f") is None


@pytest.fixture
def reader(slow: FsdMount) -> Iterator[mmap.mmap]:
    """A client's mapping of "f", whose first page it has."""
    (slow.source / "f").write_bytes(b"a" * 8192)
    with (
        open(slow.path / "f", "rb") as file,
        mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as area,
    ):
        assert area[0] == ord("a")
        yield area


def test_data_written_behind_the_mount_reaches_a_mapping_of_a_client(
    slow: FsdMount, reader: mmap.mmap
) -> None:
    for data in (b"b", b"c"):
        change(slow.source / "f", data)
        eventually(lambda data=data: reader[0] == data[0], "the new data is read")


def test_data_written_behind_the_mount_with_its_mtime_put_back_reaches_a_mapping(
    slow: FsdMount, reader: mmap.mmap
) -> None:
    before = os.stat(slow.source / "f")
    change(slow.source / "f", b"b")
    os.utime(slow.source / "f", ns=(before.st_atime_ns, before.st_mtime_ns))
    eventually(lambda: reader[0] == ord("b"), "the new data is read")


def test_data_stored_to_a_mapping_behind_the_mount_reaches_a_mapping_and_later_openers(
    slow: FsdMount, reader: mmap.mmap
) -> None:
    # the first store moves the mtime, the others may not: their page is dirty already
    with open(slow.source / "f", "r+b") as file, mmap.mmap(file.fileno(), 0) as area:
        for value in b"bcd":
            area[0] = value
            eventually(lambda value=value: reader[0] == value, "the new data is read")
        area[0] = ord("e")
        assert (slow.path / "f").read_bytes()[0] == ord("e")


def test_data_stored_to_a_mapping_behind_the_mount_is_seen_although_an_open_met_it_first(
    slow: FsdMount, reader: mmap.mmap
) -> None:
    with open(slow.source / "f", "r+b") as file, mmap.mmap(file.fileno(), 0) as area:
        area[0] = ord("b")
        assert (slow.path / "f").read_bytes()[0] == ord("b")  # the open looks at the mtime
        eventually(lambda: reader[0] == ord("b"), "the kernel's pages are dropped")
        area[0] = ord("c")
        eventually(lambda: reader[0] == ord("c"), "the new data is read")


@pytest.mark.parametrize("call", ["chmod", "link", "setxattr"])
def test_attributes_changed_through_the_mount_leave_the_kernels_pages(slow: FsdMount, call: str) -> None:
    path = slow.path / "f"
    path.write_bytes(b"data" * 1024)
    calls: dict[str, Callable[[], object]] = {
        "chmod": lambda: path.chmod(0o600),
        "link": lambda: os.link(path, slow.path / "g"),
        "setxattr": lambda: os.setxattr(path, "user.x", b"x"),
    }
    with open(path, "rb") as file:
        assert len(os.pread(file.fileno(), 9999, 0)) == 4096
        calls[call]()
        # what is seen of another file is seen after what was seen of this one: one queue
        with open(slow.path / "other", "w+b") as other:
            change(slow.source / "other", b"x")
            eventually(lambda: os.pread(other.fileno(), 1, 0) == b"x", "a later change was seen")
        slow.ask("count_reads")
        assert len(os.pread(file.fileno(), 4096, 0)) == 4096
        assert slow.ask("reads") == 0


def test_stores_behind_the_mount_are_seen_by_turns_where_more_files_are_in_use_than_a_turn_has(
    slow: FsdMount,
) -> None:
    slow.ask("look_at", files=1)
    with contextlib.ExitStack() as stack:
        readers = []
        for name in ("f", "g", "h"):
            (slow.source / name).write_bytes(b"a" * 4096)
            readers.append(stack.enter_context(open(slow.path / name, "rb")))
            assert os.pread(readers[-1].fileno(), 1, 0) == b"a"
        for name in ("f", "g", "h"):
            with open(slow.source / name, "r+b") as file, mmap.mmap(file.fileno(), 0) as area:
                area[0] = ord("b")
        for reader in readers:
            eventually(lambda reader=reader: os.pread(reader.fileno(), 1, 0) == b"b", "the new data is read")


def touched(area: mmap.mmap, offset: int) -> str | None:
    """The errno with which a system call fails that reads one byte of `area`; None when it does not."""
    reading, writing = os.pipe()
    with memoryview(area) as whole, whole[offset : offset + 1] as byte:
        error = errno_of(os.write, writing, byte)
    os.close(reading)
    os.close(writing)
    return error


@pytest.mark.parametrize("direct", [False, True], ids=["mount", "native"])
def test_file_grown_behind_the_mount_is_readable_in_a_mapping_past_the_old_end(
    slow: FsdMount, direct: bool
) -> None:
    require_root()  # the file server asks by file handle
    path = slow.source / "f" if direct else slow.path / "f"
    path.write_bytes(b"a" * 8192)
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as area:
        os.truncate(file.fileno(), 4096)
        assert touched(area, 4096) == "EFAULT"
        os.truncate(slow.source / "f", 8192)
        eventually(lambda: touched(area, 4096) is None, "the page is readable")
        assert area[4096] == 0


def test_killed_server_ends_although_it_waits_for_its_own_answer(slow: FsdMount) -> None:
    require_root()
    (slow.source / "f").write_bytes(b"a")
    fd = os.open(slow.path / "f", os.O_RDONLY)
    assert os.read(fd, 9) == b"a"
    slow.ask("never_answer_getattr")
    os.truncate(slow.source / "f", 100)
    eventually(lambda: slow.ask("waiting_for_getattr"), "the server asks its own mount")
    slow._child.kill()
    assert slow._child.wait(PATIENCE) == -signal.SIGKILL
    assert errno_of(os.fstat, fd) in ("ENOTCONN", "ECONNABORTED")
    assert errno_of(os.close, fd) == "ENOTCONN"  # of the FLUSH; the descriptor is closed


@pytest.fixture(params=["mount", "mount without a cache", "native"])
def roots(make_mount: MakeMount, request: pytest.FixtureRequest) -> tuple[Path, Path]:
    """A directory, and the directory behind it; on the native file system both are the same."""
    mount = make_mount(attr_timeout=60, direct_io=request.param == "mount without a cache")
    return mount.source if request.param == "native" else mount.path, mount.source


@pytest.mark.parametrize("size", [4, 4096, 3 << 20])
@pytest.mark.parametrize("how", [os.O_WRONLY, os.O_RDWR])
def test_append_after_an_append_behind_the_mount_overwrites_nothing(
    roots: tuple[Path, Path], size: int, how: int
) -> None:
    path, behind = roots[0] / "log", roots[1] / "log"
    expected = b""
    appending = os.open(path, how | os.O_CREAT | os.O_APPEND)
    other = os.open(behind, os.O_WRONLY | os.O_APPEND)
    for number, fd in enumerate((appending, other, appending, appending, other, other, appending)):
        text = bytes([ord("a") + number]) * size
        assert os.write(fd, text) == size
        expected += text
        assert behind.read_bytes() == expected
    eventually(lambda: path.read_bytes() == expected, "the mount shows it")
    assert os.fstat(appending).st_size == len(expected)
    os.close(other)
    os.close(appending)


def test_write_through_a_descriptor_that_appends_no_more_goes_to_its_offset(roots: tuple[Path, Path]) -> None:
    path = roots[0] / "f"
    path.write_bytes(b"0123456789")
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.write(fd, b"ab")
    fcntl.fcntl(fd, fcntl.F_SETFL, 0)
    for offset in (0, 3):
        os.pwrite(fd, b"c", offset)
    os.close(fd)
    assert (roots[1] / "f").read_bytes() == b"c12c456789ab"


def test_mapping_of_a_descriptor_that_appends_is_written_back_in_place(slow: FsdMount) -> None:
    for root in (slow.path, slow.source):
        fd = os.open(root / "f", os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC)
        os.write(fd, b"a" * 4096)
        os.truncate(root / "f", 3 * 4096)
        with mmap.mmap(fd, 0) as area:
            for page in range(3):  # each written back by itself, the second where the append ended
                area[page * 4096] = ord("b")
                area.flush(page * 4096, 4096)
            area[4096] = ord("c")
            os.write(fd, b"end")
            area.flush()
        os.close(fd)
        pages = (b"b" + b"a" * 4095, b"c" + bytes(4095), b"b" + bytes(4095))
        assert (slow.source / "f").read_bytes() == b"".join(pages) + b"end"
