# SPDX-License-Identifier: Apache-2.0
"""Detecting that a guest makes no progress.

Owns the rule: the same page of the same guest fails repeatedly while its file does not change, so the
guest cannot end the loop.  Pure.  Must not answer faults.
"""

from __future__ import annotations

import collections
import dataclasses

from daxfault.native import PAGE_SIZE, Failure


@dataclasses.dataclass(frozen=True, slots=True)
class Loop:
    """Fault -> error -> "ready" -> the same fault, without progress.

    `cycles` in `seconds` on `page` (guest address) of guest `guest`.
    """

    guest: int
    page: int
    cycles: int
    seconds: float
    failure: Failure

    @property
    def rate(self) -> float:
        """Cycles per second."""
        return self.cycles / self.seconds if self.seconds > 0 else 0.0


@dataclasses.dataclass(slots=True)
class _Track:
    generation: int
    began: int
    cycles: int = 0


class Watchdog:
    """Counts cycles per page.  A loop is at least `cycles` of them lasting at least `seconds`."""

    def __init__(self, *, seconds: float = 1.0, cycles: int = 100, keep: int = 4096) -> None:
        """`keep`: the number of tracked pages, the most recently failed ones; it bounds the memory that
        a guest with many failing pages can use."""
        self.seconds = seconds
        self.cycles = cycles
        self.keep = keep
        self._tracks: collections.OrderedDict[tuple[int, int], _Track] = collections.OrderedDict()

    def saw(self, failure: Failure) -> Loop | None:
        """Count one failed fault; -> the loop that it completes, or None.

        The count restarts with a page's first failure in a row, and when its file has changed.
        """
        key = (failure.guest, failure.address & ~(PAGE_SIZE - 1))
        track = self._tracks.get(key)
        if track is None or failure.attempts == 1 or track.generation != failure.generation:
            track = self._tracks[key] = _Track(failure.generation, failure.time_ns)
        self._tracks.move_to_end(key)
        if len(self._tracks) > self.keep:
            self._tracks.popitem(last=False)
        track.cycles += 1
        elapsed = (failure.time_ns - track.began) / 1e9
        if track.cycles < self.cycles or elapsed < self.seconds:
            return None
        del self._tracks[key]
        return Loop(*key, track.cycles, elapsed, failure)
