# SPDX-License-Identifier: Apache-2.0
"""Retrying poisoned pages whose page source failed.

Owns the times of retries.  A poisoned page stays poisoned until its file is read again
(native.File.heal).  A change of the file causes that, but the kernel does not report the end of an I/O
error.  So after each failure the file is retried at growing intervals.  Must not decide the outcome of
a fault.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable

import trio

from daxfault.native import Failure, File, Reason

log = logging.getLogger(__name__)

FIRST_PAUSE = 0.05  # seconds before the first attempt, doubled after each
LONGEST_PAUSE = 5.0


@dataclasses.dataclass(slots=True, eq=False)
class _Ailing:
    """A file that failed recently; `clean`: it had no poisoned page when last checked.  `since`: of
    trio.current_time()."""

    id: int
    since: float
    clean: bool = False


class Healer:
    """Retries files, whoever maps them, while run() runs."""

    def __init__(self, find: Callable[[int], File | None]) -> None:
        """`find` -> the file with this id, None when it is closed."""
        self._find = find
        self._ailing: dict[int, _Ailing] = {}
        self._nursery: trio.Nursery | None = None
        self._token: trio.lowlevel.TrioToken | None = None

    def failed(self, failure: Failure) -> None:
        """Note a failed fault.  Any thread may call it."""
        if failure.reason in (Reason.IO, Reason.TIMEOUT) and self._token is not None:
            self._token.run_sync_soon(self._begin, failure.file)

    async def run(self) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._token = trio.lowlevel.current_trio_token()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = self._token = None

    def _begin(self, id: int) -> None:
        known = self._ailing.get(id)
        now = trio.current_time()
        if self._nursery is None:
            return
        if known is not None and not known.clean and now - known.since < LONGEST_PAUSE:
            return
        self._ailing[id] = _Ailing(id, now)  # starts with the shortest pause
        self._nursery.start_soon(self._heal, self._ailing[id])

    async def _heal(self, ailing: _Ailing) -> None:
        """Retry until the file has been clean for some time: a failed fault may be poisoned as late as
        the deadline of its answer."""
        pause = FIRST_PAUSE
        while pause < 2 * LONGEST_PAUSE or not ailing.clean:
            await trio.sleep(min(pause, LONGEST_PAUSE))
            if self._ailing.get(ailing.id) is not ailing:
                return
            file = self._find(ailing.id)
            if file is None:
                break
            ailing.clean = await trio.to_thread.run_sync(_attempt, file)
            pause *= 2
        if self._ailing.get(ailing.id) is ailing:
            del self._ailing[ailing.id]


def _attempt(file: File) -> bool:
    """Retry the poisoned pages of the file; -> True: none is left."""
    try:
        tried = file.heal()
        state = file.state()
    except ValueError:
        return True  # closed meanwhile
    clean = not state.poisoned and not state.retrying
    if tried and clean:
        log.info("file %d: %d pages are readable again", file.id, tried)
    return clean
