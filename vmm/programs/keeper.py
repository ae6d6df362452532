# SPDX-License-Identifier: Apache-2.0
"""The keeper: a process that cleans up if this one dies: programs get errors, and the mount is removed.

Owns the process: starts it, and replaces it when it has died or does not read its messages.  Must not
know what it keeps (native/keeper).
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import logging
import os
import socket
import struct
import subprocess
import termios
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import trio

from daxfault import fsd, native
from daxfault.native import keeping
from daxfault.vmm.programs.leftovers import recorded

log = logging.getLogger(__name__)

PING_SECONDS = 1.0  # between two messages to a keeper
LISTEN_SECONDS = 1.0  # limit for it to receive one
_AGAIN_SECONDS = 0.5  # between two attempts to start one
_END_SECONDS = 5.0


@dataclasses.dataclass(frozen=True, slots=True)
class Left:
    """The things that the keeper removes if this process dies: a mount, files, empty directories."""

    mount: fsd.Mount
    device: int
    paths: tuple[Path, ...]

    @classmethod
    def of(cls, fs: fsd.Filesystem, mount: fsd.Mount, *paths: Path) -> Left:
        """A mount that answers."""
        assert fs.device is not None
        return cls(mount, fs.device, paths)

    def arguments(self) -> list[str | Path]:
        connection = str(os.minor(self.device))
        point = [f"-p{fd}" for fd in self.fds]
        return ["-m", self.mount.path, "-c", connection, *point, "--", *self.paths]

    @property
    def fds(self) -> tuple[int, ...]:
        """Root unmounts by descriptor, as Mount does; other users by fusermount3 and path."""
        return (self.mount.point,) if os.geteuid() == 0 else ()


@contextlib.asynccontextmanager
async def kept(left: Left, *, daemon: bool = False) -> AsyncIterator[None]:
    """A keeper while the body runs.

    If this process dies, programs get SIGBUS, not zeros, and `left` is removed.  With `daemon` the keeper
    has no standard error, because the daemon's waiter may wait for its end.
    """
    with recorded(left.mount.path, left.device, left.paths) as record:
        left = dataclasses.replace(left, paths=(*left.paths, *record))
        keeper = _Keeper(left, subprocess.DEVNULL if daemon else None)
        await keeper.start()
        try:
            with _alive():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(keeper.watch)
                    yield
                    nursery.cancel_scope.cancel()
        finally:
            # only after the body: when the keeper ends, it truncates all page caches
            with trio.CancelScope(shield=True):
                await keeper.end()


@contextlib.contextmanager
def _alive() -> Iterator[None]:
    """Have the keeper notice the death of this thread, which serves the mount."""
    noticed = keeping.live()
    if not noticed:
        log.debug("not the first thread of the process: the keeper notices only the end of the process")
    try:
        yield
    finally:
        if noticed:
            keeping.left()


class _Keeper:
    """The current keeper."""

    def __init__(self, left: Left, stderr: int | None) -> None:
        self._left = left
        self._stderr = stderr
        self._sock: socket.socket | None = None
        self._process: trio.Process | None = None

    async def start(self) -> None:
        """Start a keeper; OSError when that fails."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                self._process = await trio.lowlevel.open_process(
                    [native.keeper(), *self._left.arguments()],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=self._stderr,
                    # nothing that is preloaded: it could not work under the keeper's confinement
                    env={"PATH": os.environ.get("PATH", os.defpath)},
                    start_new_session=True,
                    pass_fds=self._left.fds,
                )
        except BaseException:
            ours.close()
            raise
        self._sock = ours
        keeping.keep_with(ours.fileno())

    async def watch(self) -> None:
        """Replace each keeper that is lost, until cancelled: at once, or after a while if it was lost
        soon after its start."""
        while True:
            started = trio.current_time()
            why = await self._lost()
            log.warning("the keeper %s; another one takes its place", why)
            with trio.CancelScope(shield=True):
                await self._drop()
            if trio.current_time() - started < _AGAIN_SECONDS:
                await trio.sleep(_AGAIN_SECONDS)
            while self._sock is None:
                try:
                    await self.start()
                except OSError as e:
                    log.error("no keeper can be started: %s", e)
                    await trio.sleep(_AGAIN_SECONDS)

    async def _lost(self) -> str:
        """Return when the keeper has died or does not read its messages; -> the reason."""
        why = "does not listen"

        async def died() -> None:
            nonlocal why
            assert self._process is not None
            await self._process.wait()
            why = "has died"
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(died)
            await self._listens()
            nursery.cancel_scope.cancel()
        return why

    async def _listens(self) -> None:
        """Send messages and pings while the keeper receives them in time."""
        assert self._sock is not None
        waiting = keeping.send()
        while waiting >= 0:
            with trio.move_on_after(LISTEN_SECONDS) as late:
                if waiting:
                    await trio.lowlevel.wait_writable(self._sock)
            if late.cancelled_caught:
                return
            if not waiting:
                with trio.move_on_after(PING_SECONDS) as quiet:
                    await trio.lowlevel.wait_readable(keeping.waiting_fd())
                    os.eventfd_read(keeping.waiting_fd())
                if quiet.cancelled_caught:
                    if self._unread():
                        return
                    keeping.ping()
            waiting = keeping.send()

    def _unread(self) -> bool:
        """Whether it has messages to receive (unix(7), SIOCOUTQ)."""
        assert self._sock is not None
        found = fcntl.ioctl(self._sock, termios.TIOCOUTQ, bytes(4))
        return struct.unpack("i", found) != (0,)

    async def _drop(self) -> None:
        """Kill the keeper before its socket closes: it would take that for the death of the host."""
        assert self._process is not None
        assert self._sock is not None
        self._process.kill()
        await self._process.wait()
        keeping.keep_with(-1)
        self._sock.close()
        self._sock = None

    async def end(self) -> None:
        """End the keeper in good order: it must not clean up."""
        if self._sock is None:
            return
        assert self._process is not None
        keeping.end()
        keeping.keep_with(-1)
        self._sock.close()
        with trio.move_on_after(_END_SECONDS):
            await self._process.wait()
            return
        self._process.kill()
        await self._process.wait()
