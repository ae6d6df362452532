# SPDX-License-Identifier: Apache-2.0
"""Mounting, what prevents it, unmounting whatever happens, and the host's interface."""

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from checkout import SUPPORT
from fsd_mount import FsdMount, errno_of, eventually
from needs import require, require_fuse, require_root
from trio.testing import trio_test

from daxfault import fsd, native
from daxfault.fsd.mountpoint import is_mounted
from daxfault.fsd.threads import Threads

in_thread = trio.to_thread.run_sync


@pytest.fixture
def place(tmp_path: Path) -> tuple[Path, Path]:
    require_fuse()
    (tmp_path / "source").mkdir()
    (tmp_path / "mount").mkdir()
    return tmp_path / "source", tmp_path / "mount"


@contextlib.asynccontextmanager
async def serving(place: tuple[Path, Path]) -> AsyncIterator[tuple[fsd.Filesystem, fsd.Mount]]:
    """Mount in this process while the body runs; calls on the mount belong in a thread."""
    with trio.fail_after(20):
        fs = fsd.Filesystem(place[0])
        async with fsd.mounted(fs, place[1]) as mount:
            yield fs, mount


def refusal(source: Path, path: Path) -> str:
    async def attempt() -> None:
        async with serving((source, path)):
            raise AssertionError("mounted")

    with pytest.raises(fsd.MountError) as caught:
        trio.run(attempt)
    return str(caught.value)


def test_mount_point_that_cannot_serve_is_refused_with_a_reason(place: tuple[Path, Path]) -> None:
    source, path = place
    assert "does not exist" in refusal(source, path / "no")
    (path / "file").touch()
    assert "is not a directory" in refusal(source, path / "file")
    assert "is not empty, 1 entries" in refusal(source, path)
    assert str(path) in refusal(source, path)


def test_mount_point_in_the_source_is_refused(place: tuple[Path, Path]) -> None:
    source, path = place
    (source / "below" / "mount").mkdir(parents=True)
    assert "lies inside the backing directory" in refusal(source, source / "below" / "mount")
    assert "is the backing directory" in refusal(path, path)
    (path.parent / "link").symlink_to(source / "below")
    assert "lies inside" in refusal(source, path.parent / "link" / "mount")


def test_source_that_cannot_be_served_is_refused(place: tuple[Path, Path]) -> None:
    source, path = place
    assert "does not exist" in refusal(source / "no", path)
    (source / "file").touch()
    assert "is not a directory" in refusal(source / "file", path)


def test_second_mount_on_a_mount_point_is_refused(mnt: FsdMount, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    assert "something is mounted there already" in refusal(tmp_path / "other", mnt.path)


def test_dead_mount_is_named_with_the_command_that_removes_it(mnt: FsdMount, tmp_path: Path) -> None:
    require_root()
    mnt._child.send_signal(signal.SIGKILL)
    mnt._child.wait()
    (tmp_path / "other").mkdir()
    message = refusal(tmp_path / "other", mnt.path)
    assert f"umount -l {mnt.path}" in message
    subprocess.run(["umount", "-l", mnt.path], check=True)
    assert not is_mounted(str(mnt.path))


def test_missing_device_is_named(place: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daxfault.fsd.mountpoint.FUSE_DEVICE", "/dev/no-fuse")
    assert "modprobe fuse" in refusal(*place)


def test_missing_fusermount_is_named_unless_root(
    place: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "fusermount3: not found" in refusal(*place)


@trio_test
async def test_second_mount_of_a_process_is_refused(place: tuple[Path, Path], tmp_path: Path) -> None:
    async with serving(place):
        (tmp_path / "other").mkdir()
        with pytest.raises(fsd.MountError, match="can serve one"):
            async with fsd.mounted(fsd.Filesystem(place[0]), tmp_path / "other"):
                pass


@trio_test
async def test_mount_ends_with_its_body_and_can_be_made_again(place: tuple[Path, Path]) -> None:
    source, path = place

    for _ in range(3):
        async with serving(place) as (_, mount):
            assert mount.path == str(path)
            assert is_mounted(str(path))
            await in_thread((path / "f").write_text, "x")
        assert not is_mounted(str(path))
    assert (source / "f").read_text() == "x"


@trio_test
async def test_error_of_the_body_is_raised_as_it_is(place: tuple[Path, Path]) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with serving(place):
            raise KeyError("mine")
    assert not is_mounted(str(place[1]))


@trio_test
async def test_cancelled_mount_is_unmounted(place: tuple[Path, Path]) -> None:
    with trio.move_on_after(0.1) as scope:
        async with fsd.mounted(fsd.Filesystem(place[0]), place[1]):
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert not is_mounted(str(place[1]))


@trio_test
async def test_cancelled_mount_still_writes_what_clients_had_stored(place: tuple[Path, Path]) -> None:
    source, path = place
    (source / "f").write_bytes(b"a" * 4096)
    code = (
        "import mmap, sys\n"
        "with open(sys.argv[1], 'r+b') as f:\n"
        "    m = mmap.mmap(f.fileno(), 0); m[:4] = b'bbbb'; print(flush=True); sys.stdin.read()\n"
    )

    with trio.CancelScope() as scope:
        async with fsd.mounted(fsd.Filesystem(source), path):
            start = partial(subprocess.Popen, [sys.executable, "-c", code, path / "f"],
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
            child = await in_thread(start)
            assert await in_thread(child.stdout.readline)
            scope.cancel()
            await trio.sleep_forever()
    assert (source / "f").read_bytes()[:5] == b"bbbba"
    assert not is_mounted(str(path))
    await in_thread(child.communicate)


@trio_test
async def test_failure_of_the_server_ends_the_mount_and_is_raised(place: tuple[Path, Path]) -> None:
    with pytest.raises(fsd.MountError, match="broken by a test"):  # noqa: PT012 - it ends the body
        async with serving(place) as (_, mount):
            mount.fail(RuntimeError("broken by a test"))
            await trio.sleep_forever()
    assert not is_mounted(str(place[1]))


@trio_test
async def test_change_behind_the_mount_is_noticed_although_no_thread_could_be_started(
    place: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, path = place
    failed: list[str] = []

    def failing_once(pool: str) -> None:
        whole = getattr(Threads, pool)

        async def started(self: Threads, *args: Any) -> Any:
            if pool not in failed:
                failed.append(pool)
                raise RuntimeError("can't start new thread")
            return await whole(self, *args)

        monkeypatch.setattr(Threads, pool, started)

    async with serving(place):
        (source / "f").write_bytes(b"old")
        fd = await in_thread(os.open, path / "f", os.O_RDONLY)
        assert await in_thread(os.pread, fd, 9, 0) == b"old"
        failing_once("storage")
        failing_once("kernel")
        (source / "f").write_bytes(b"new")
        await in_thread(eventually, lambda: os.pread(fd, 9, 0) == b"new", "the new data is read")
        assert sorted(failed) == ["kernel", "storage"]
        await in_thread(os.close, fd)


@trio_test
async def test_busy_mount_is_detached_and_its_clients_get_enotconn(place: tuple[Path, Path]) -> None:
    path = place[1]
    opened: list[int] = []
    async with serving(place):
        opened.append(await in_thread(os.open, path / "f", os.O_CREAT | os.O_RDWR))
    assert not is_mounted(str(path))
    assert errno_of(os.pwrite, opened[0], b"x", 0) in ("ENOTCONN", "ECONNABORTED")
    assert errno_of(os.close, opened[0]) == "ENOTCONN"  # of the FLUSH; the descriptor is closed


@trio_test
async def test_unmounting_from_outside_ends_the_wait_of_the_body(place: tuple[Path, Path]) -> None:
    require_root()
    async with serving(place) as (_, mount):
        await trio.run_process(["umount", mount.path])
        await mount.wait_unmounted()


@trio_test
async def test_aborted_connection_leaves_no_mount(place: tuple[Path, Path]) -> None:
    require_root()
    path, control = place[1], place[0].parent / "control"

    control.mkdir()
    made = await trio.run_process(["mount", "-t", "fusectl", "none", control], check=False)
    require(made.returncode == 0, "fusectl file system")
    try:
        async with serving(place) as (fs, mount):
            assert fs.device is not None
            (control / str(os.minor(fs.device)) / "abort").write_text("1")
            await mount.wait_unmounted()
    finally:
        await trio.run_process(["umount", control])
    assert not is_mounted(str(path))


def test_killed_test_process_leaves_no_mount(place: tuple[Path, Path]) -> None:
    source, path = place
    code = (
        "import os, sys, signal; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path; from fsd_mount import FsdMount\n"
        "mount = FsdMount(Path(sys.argv[2]), Path(sys.argv[3]))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    child = subprocess.run([sys.executable, "-c", code, SUPPORT, source, path], check=False)
    assert child.returncode == -signal.SIGKILL
    eventually(lambda: not is_mounted(str(path)), "the mount is gone")


@trio_test
async def test_mount_is_ended_with_fusermount_unless_root(
    place: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    require(shutil.which("fusermount3"), "fusermount3")
    monkeypatch.setattr("os.geteuid", lambda: 1000)

    async with serving(place):
        await in_thread((place[1] / "f").write_text, "x")
    assert not is_mounted(str(place[1]))


# ---- the host's interface


@trio_test
async def test_pinned_file_stays_open_until_released(place: tuple[Path, Path]) -> None:
    source, path = place

    async with serving(place) as (fs, _):
        (source / "f").write_text("pinned")
        fd = await in_thread(os.open, path / "f", os.O_RDONLY)
        await in_thread(os.unlink, path / "f")  # it need not have a name
        pinned = await fs.pin(fd)
        again = await fs.pin(fd)
        assert pinned.inode == (await in_thread(os.fstat, fd)).st_ino
        assert again.file is pinned.file
        assert list(fs.in_use) == [pinned.file]
        await in_thread(os.close, fd)
        await in_thread(os.listdir, path)
        again.release()
        again.release()
        assert bytes(await in_thread(pinned.file.read, 0, 99)) == b"pinned"
        fs.mapping_changed(pinned.inode)
        pinned.release()
        await in_thread(eventually, lambda: not list(fs.in_use), "the file is closed")


@trio_test
async def test_pinned_file_notices_a_truncation_behind_the_mount(place: tuple[Path, Path]) -> None:
    source, path = place

    async with serving(place) as (fs, _):
        (source / "f").write_bytes(b"a" * 8192)
        fd = await in_thread(os.open, path / "f", os.O_RDONLY)
        pinned = await fs.pin(fd)
        await in_thread(os.close, fd)
        os.truncate(source / "f", 10)
        await in_thread(eventually, lambda: pinned.file.size == 10, "the truncation is noticed")
        pinned.release()


@trio_test
async def test_descriptor_that_is_not_a_file_of_the_mount_is_refused(place: tuple[Path, Path]) -> None:
    source, path = place

    async with serving(place) as (fs, _):
        (source / "f").touch()
        for opened, expected in (
            (partial(os.open, source / "f", os.O_RDONLY), errno.EXDEV),
            (partial(os.open, path, os.O_RDONLY), errno.EINVAL),
        ):
            fd = await in_thread(opened)
            with pytest.raises(OSError, match=f"descriptor {fd}") as caught:
                await fs.pin(fd)
            assert caught.value.errno == expected
            await in_thread(os.close, fd)
        with pytest.raises(OSError, match="Bad file descriptor"):
            await fs.pin(9999)


@trio_test
async def test_truncation_through_the_mount_reaches_the_pinned_file(place: tuple[Path, Path]) -> None:
    source, path = place

    async with serving(place) as (fs, _):
        (source / "f").write_bytes(b"a" * 8192)
        fd = await in_thread(os.open, path / "f", os.O_RDWR)
        pinned = await fs.pin(fd)
        for cut in (partial(os.truncate, path / "f", 100), partial(os.ftruncate, fd, 50)):
            await in_thread(cut)
        assert pinned.file.size == 50
        await in_thread(os.close, await in_thread(os.open, path / "f", os.O_WRONLY | os.O_TRUNC))
        assert pinned.file.size == 0
        assert pinned.file.recheck() == 0
        assert isinstance(pinned.file, native.File)
        pinned.release()
        await in_thread(os.close, fd)
