# SPDX-License-Identifier: Apache-2.0
"""Trying again to read what a page source refused.

Owns when: a poisoned page stays poisoned until somebody reads its file anew
(native.File.heal), and while a change of the file does that by itself, an I/O error
that has gone away tells nobody.  So after each one the file is asked again, less and
less often.  It must not decide what becomes of a fault.
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
    """A file with an error lately; `clean` when it had no poisoned page at the last look."""

    id: int
    clean: bool = False


class Healer:
    """Mends the files of one guest while `run` runs."""

    def __init__(self, find: Callable[[int], File | None]) -> None:
        """`find`: the file with this id, None when the guest has let it go."""
        self._find = find
        self._ailing: dict[int, _Ailing] = {}
        self._nursery: trio.Nursery | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        # held during an attempt: a file may only be closed under it
        self.lock = trio.Lock()

    def failed(self, failure: Failure) -> None:
        """A fault has failed; from any thread."""
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
        if self._nursery is None or (known is not None and not known.clean):
            return
        self._ailing[id] = _Ailing(id)
        self._nursery.start_soon(self._mend, self._ailing[id])

    async def _mend(self, ailing: _Ailing) -> None:
        """Until it has long been clean: a page may be poisoned later than its failure, at the deadline
        of an answer."""
        pause = FIRST_PAUSE
        while pause < 2 * LONGEST_PAUSE or not ailing.clean:
            await trio.sleep(min(pause, LONGEST_PAUSE))
            if self._ailing.get(ailing.id) is not ailing:
                return
            async with self.lock:
                file = self._find(ailing.id)
                if file is None:
                    break
                ailing.clean = await trio.to_thread.run_sync(_attempt, file)
            pause *= 2
        if self._ailing.get(ailing.id) is ailing:
            del self._ailing[ailing.id]


def _attempt(file: File) -> bool:
    """Whether no page of the file is poisoned, after an attempt if some were."""
    tried = file.heal()
    state = file.state()
    clean = not state.poisoned and not state.retrying
    if tried and clean:
        log.info("file %d: %d pages are readable again", file.id, tried)
    return clean
