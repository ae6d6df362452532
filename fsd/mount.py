# SPDX-License-Identifier: Apache-2.0
"""Mounting a file system, and unmounting it whatever happens.

Owns the FUSE session.  Must not know what the file system does.

The end of a mount has an order.  The kernel may hold pages that clients dirtied through mmap and that
only this process can write.  So a regular unmount comes first, while requests are still answered; if the
mount is busy, syncfs(2) has the kernel send the pages, and the mount is detached.  Then the loop ends,
open files are closed, and the connection is closed, which fails pending requests (ENOTCONN).
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator

import pyfuse3
import trio

from daxfault.fsd import mountpoint as mountpoints
from daxfault.fsd import syscalls
from daxfault.fsd.errors import MountError
from daxfault.fsd.filesystem import Filesystem
from daxfault.fsd.pins import fdinfo

log = logging.getLogger(__name__)

GRACE = 5.0  # seconds for requests in flight to complete

# pyfuse3 has one global session; held while it is in use
_session = threading.Lock()


class Mount:
    """A mount that answers.  `path` is its absolute path, `point` an O_PATH descriptor of the directory
    below it."""

    def __init__(self, path: str, point: int) -> None:
        self.path = path
        self.point = point
        self.ended = trio.Event()
        self.failure: Exception | None = None
        self.session = trio.CancelScope(shield=True)
        self.body: trio.CancelScope | None = None

    def fail(self, exc: Exception) -> None:
        """Part of the server failed: end the body, and with it the mount."""
        log.error("mount %s: the file server failed", self.path, exc_info=exc)
        self.failure = self.failure or exc
        if self.body is not None:
            self.body.cancel()

    @property
    def aborted(self) -> bool:
        """The connection has ended, but not the mount: by a write to /sys/fs/fuse/connections/N/abort, or
        umount2(2) with MNT_FORCE."""
        return self.ended.is_set() and mountpoints.is_mounted(os.readlink(f"/proc/self/fd/{self.point}"))

    async def wait_unmounted(self) -> None:
        """Return when the mount has ended, usually by an unmount."""
        await self.ended.wait()


@contextlib.asynccontextmanager
async def mounted(
    fs: Filesystem,
    mountpoint: str | os.PathLike[str],
    *,
    allow_other: bool = False,
) -> AsyncIterator[Mount]:
    """Mount `fs` on the empty directory `mountpoint` while the body runs.

    The body starts when the mount answers.  At its end, also by an exception, the mount is removed and
    `fs` closed.  `allow_other` allows access by other users; the kernel checks owners, modes and ACLs
    (default_permissions).  The mount is read-only if the backing file system is.

    One mount at a time in a process, as pyfuse3 has one session.

    Raises MountError before anything is mounted, or when mounting fails.
    """
    with contextlib.closing(fs), _opened(mountpoint, fs.backing, allow_other) as mount:
        path = mount.path
        if not _session.acquire(blocking=False):
            raise MountError(f"mount point {path}: this process serves a mount already, and can serve one")
        try:
            _init(fs, mount, allow_other)
            try:
                async with _served(fs, mount):
                    yield mount
            finally:
                fs.close()
                _close(mount)
        finally:
            _session.release()


@contextlib.contextmanager
def _opened(mountpoint: str | os.PathLike[str], backing: str, allow_other: bool) -> Iterator[Mount]:
    """A mount to be made, its directory checked and open."""
    path = mountpoints.check(mountpoint, backing, allow_other=allow_other)
    point = os.open(mountpoint, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if os.readlink(f"/proc/self/fd/{point}") != path:
            raise MountError(f"mount point {path}: was replaced by another directory just now")
        yield Mount(path, point)
    finally:
        os.close(point)


def _target(mount: Mount) -> str:
    """The path for mount(2) and umount(2).  Root uses the descriptor, so that a user who may rename the
    directory cannot choose where root mounts or unmounts."""
    return f"/proc/self/fd/{mount.point}" if os.geteuid() == 0 else mount.path


@contextlib.asynccontextmanager
async def _served(fs: Filesystem, mount: Mount) -> AsyncIterator[None]:
    """Answer requests while the body runs, then unmount.

    Two nurseries: after the body is cancelled, the session must still answer the writes that the kernel
    sends before it unmounts.
    """
    failure: BaseException | None = None
    async with trio.open_nursery() as session:
        session.start_soon(_serve, mount)
        try:
            async with trio.open_nursery() as nursery:
                mount.body = nursery.cancel_scope
                try:
                    await _answers(fs, mount)
                    await nursery.start(_background, fs, mount)
                    yield
                except BaseException as exc:
                    if _is_cancelled(exc):
                        raise  # belongs to a scope, this nursery's or one further out
                    failure = exc
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await _unmount(fs, mount)
            mount.session.cancel()
    if mount.failure is not None:
        raise MountError(f"mount {mount.path}: the file server failed: {mount.failure}") from mount.failure
    if failure is not None:
        # the body's exception is raised as it is, not in an exception group of our nurseries
        raise failure


def _is_cancelled(exc: BaseException) -> bool:
    if isinstance(exc, BaseExceptionGroup):
        return exc.subgroup(trio.Cancelled) is not None
    return isinstance(exc, trio.Cancelled)


def _identity(path: str) -> tuple[int, int]:
    """The device of a mount, and its id."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        return os.fstat(fd).st_dev, fdinfo(fd)[0]
    finally:
        os.close(fd)


async def _answers(fs: Filesystem, mount: Mount) -> None:
    try:
        fs.pins.device, fs.pins.mount_id = await fs.threads.kernel(_identity, mount.path)
    except OSError as exc:
        raise MountError(f"mount {mount.path}: does not answer: {exc.strerror}") from exc


async def _serve(mount: Mount) -> None:
    try:
        with mount.session:
            await pyfuse3.main()
    except Exception as exc:
        mount.fail(exc)
    finally:
        mount.ended.set()


async def _background(
    fs: Filesystem, mount: Mount, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    try:
        await fs.background(mount.path, task_status=task_status)
    except Exception as exc:
        mount.fail(exc)


def _init(fs: Filesystem, mount: Mount, allow_other: bool) -> None:
    # No max_read: libfuse requires the same value from the init handler (do_init in
    # lib/fuse_lowlevel.c), where pyfuse3 cannot set it.  Without it a request has up to 256 pages, 1 MiB.
    options = {"fsname=daxfault", "subtype=daxfault", "default_permissions"}
    if allow_other:
        options.add("allow_other")
    if fs.attributes.read_only():
        options.add("ro")
    try:
        pyfuse3.init(fs, _target(mount), options)
    except RuntimeError as exc:
        if "fuse_session_mount" in str(exc):  # the session was made, and must be destroyed
            pyfuse3.close(unmount=False)
        raise MountError(
            f"mount point {mount.path}: mounting failed ({exc}); libfuse gave the reason on stderr"
        ) from exc


async def _unmount(fs: Filesystem, mount: Mount) -> None:
    """Unmount while requests are still answered, and end the loop."""
    if mount.ended.is_set():
        return
    with trio.move_on_after(GRACE):
        if not await fs.threads.kernel(_try_unmount, mount):
            await _write_back(fs, mount.path)
            pyfuse3.terminate()
        await mount.wait_unmounted()
        return
    if not _is_there(mount):  # umount(2) took its time, on a busy machine
        return
    log.warning("mount %s: requests were still in flight after %g s", mount.path, GRACE)
    _detach(mount)


def _try_unmount(mount: Mount) -> bool:
    """Unmount; False when the mount is in use."""
    path = mount.path
    if os.geteuid() == 0:
        try:
            syscalls.umount(os.fsencode(_target(mount)))
        except OSError as exc:
            log.debug("umount %s: %s", path, exc.strerror)
            return False
        return True
    return subprocess.run(["fusermount3", "-u", "-q", "--", path], check=False).returncode == 0


async def _write_back(fs: Filesystem, path: str) -> None:
    """Have the kernel send the pages that clients dirtied through mmap, and write them all.

    When syncfs(2) returns, the requests are queued, but it does not wait for a file server's replies
    (fs/fs-writeback.c, wait_sb_inodes(); on 6.18 one mount in six lost a page that way).  The queue is in
    order: if no write began between a request of ours and its reply, none was queued before it.
    """
    await fs.threads.kernel(_sync, path)
    while True:
        begun = fs.files.writes_begun
        try:
            await fs.threads.kernel(os.statvfs, path)
        except OSError as exc:
            log.warning("mount %s: does not answer: %s", path, exc)
            return
        if fs.files.writes_begun == begun and fs.files.writes_ended == begun:
            return


def _sync(path: str) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            syscalls.syncfs(fd)
        finally:
            os.close(fd)
    except OSError as exc:
        log.warning("mount %s: could not be synced: %s", path, exc)


def _close(mount: Mount) -> None:
    """Close the connection, and detach the mount if it still exists."""
    pyfuse3.close(unmount=True)
    # libfuse leaves a mount whose connection was aborted (/sys/fs/fuse/connections) where it is
    if _is_there(mount):
        _detach(mount)


def _is_there(mount: Mount) -> bool:
    return mountpoints.is_mounted(os.readlink(f"/proc/self/fd/{mount.point}"))


def _detach(mount: Mount) -> None:
    try:
        if os.geteuid() == 0:
            syscalls.umount(os.fsencode(_target(mount)), detach=True)
        else:
            subprocess.run(["fusermount3", "-u", "-z", "-q", "--", mount.path], check=True)
    except (OSError, subprocess.SubprocessError) as exc:
        if _is_there(mount):
            log.error("mount %s: could not be removed: %s", mount.path, exc)
