# SPDX-License-Identifier: Apache-2.0
"""Reports files in use that may have been changed behind the mount.

Owns the inotify descriptor and its watches.  Must not decide whether a file has changed, nor react to it:
it only reports which files to check.

inotify also reports our own writes, because it works on inodes.  The first event after a quiet time is
reported at once.  While events continue but no file has changed, files are reported at increasing
intervals, up to LONGEST, so that a busy writer costs little.

Stores to a mapping of the backing file raise no event (inotify(7)), so files in use are also polled, in
turn, POLL_MOST of them per POLL_INTERVAL.  If the system has no watch or inotify instance left, files
without one are reported in each interval.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Sequence

import trio
from inotify_simple import INotify, flags, parse_events

from daxfault.fsd.inodes import Inode, proc_path

log = logging.getLogger(__name__)

SHORTEST = 0.001  # seconds between two reports
LONGEST = 0.016
POLL_INTERVAL = 1.0
POLL_MOST = 1000  # watched files polled at a time: about 5 ms of work

ATTRIBUTES: int = flags.ATTRIB
_EVENTS: int = flags.MODIFY | ATTRIBUTES
_BUFFER = 1 << 16

# Gets inodes, each with its events, or 0 for one that is polled; returns whether any file had changed.
Changed = Callable[[Sequence[tuple[Inode, int]]], Awaitable[bool]]


class Watch:
    """The watches of one mount, on inodes that have a native.File."""

    def __init__(self) -> None:
        self._by_wd: dict[int, Inode] = {}
        self._wd: dict[Inode, int] = {}
        self._polled: set[Inode] = set()
        self._some = trio.Event()
        self._inotify: INotify | None = None
        try:
            self._inotify = INotify(nonblocking=True)
        except OSError as exc:
            log.warning("no inotify instance (%s): see fs.inotify.max_user_instances; "
                        "files are checked every %g s instead", exc.strerror, POLL_INTERVAL)  # fmt: skip

    def add(self, inode: Inode) -> None:
        """Watch `inode`, through the descriptor of its file, because the name may belong to another file
        now."""
        assert inode.file is not None
        self._some.set()
        if self._inotify is not None:
            try:
                wd = self._inotify.add_watch(proc_path(inode.file.fileno()), _EVENTS)
            except OSError as exc:
                if not self._polled:
                    log.warning("no inotify watch (%s): see fs.inotify.max_user_watches; files without one "
                                "are checked every %g s instead", exc.strerror, POLL_INTERVAL)  # fmt: skip
            else:
                self._by_wd[wd] = inode
                self._wd[inode] = wd
                return
        self._polled.add(inode)

    def remove(self, inode: Inode) -> None:
        """Stop watching `inode`; its file is still open."""
        self._polled.discard(inode)
        wd = self._wd.pop(inode, None)
        if wd is not None and self._by_wd.pop(wd, None) is not None and self._inotify is not None:
            with contextlib.suppress(OSError):  # EINVAL: removed already, its event not yet read
                self._inotify.rm_watch(wd)

    async def run(self, changed: Changed) -> None:
        """Await `changed` with the inodes to be checked and their events, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._poll, changed)
            if self._inotify is not None:
                nursery.start_soon(self._read, self._inotify, changed)

    async def _read(self, inotify: INotify, changed: Changed) -> None:
        interval = SHORTEST
        while True:
            with trio.move_on_after(LONGEST) as waited:
                await trio.lowlevel.wait_readable(inotify)
            if waited.cancelled_caught:
                interval = SHORTEST
                await trio.lowlevel.wait_readable(inotify)
            found: dict[Inode, int] = {}
            for event in parse_events(os.read(inotify.fileno(), _BUFFER)):
                if event.mask & flags.Q_OVERFLOW:
                    found = dict.fromkeys(self._wd, _EVENTS)
                elif event.mask & flags.IGNORED and event.wd in self._by_wd:
                    # The kernel drops the watches of a file when its last name goes (dentry_unlink_inode
                    # in fs/dcache.c), even if it is open by another name.
                    inode = self._by_wd.pop(event.wd)
                    self.add(inode)
                    found[inode] = _EVENTS
                elif event.wd in self._by_wd:
                    inode = self._by_wd[event.wd]
                    found[inode] = found.get(inode, 0) | event.mask & _EVENTS
            if found and not await changed(list(found.items())):
                interval = min(2 * interval, LONGEST)
            else:
                interval = SHORTEST
            await trio.sleep(interval)

    async def _poll(self, changed: Changed) -> None:
        begin = 0
        while True:
            await self._some.wait()
            await trio.sleep(POLL_INTERVAL)
            if not self._wd and not self._polled:
                self._some = trio.Event()
                continue
            watched = list(self._wd)[begin : begin + POLL_MOST]
            begin = begin + POLL_MOST if len(watched) == POLL_MOST else 0
            await changed([*((inode, 0) for inode in watched), *((inode, _EVENTS) for inode in self._polled)])

    def close(self) -> None:
        """Close the inotify instance."""
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None
