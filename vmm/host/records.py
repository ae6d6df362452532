# SPDX-License-Identifier: Apache-2.0
"""Records of failed faults: file, address, reason, and delivery.

Owns their fields and JSON form, and a bound on their number.
"""

from __future__ import annotations

import collections
import dataclasses
import errno
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from daxfault.native import Delivery, Failure

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One failed fault and its answer.  `delivery` None: the fault had ended before the answer."""

    failure: Failure
    pid: int
    name: str
    design: str
    delivery: Delivery | None

    def as_json(self) -> dict[str, Any]:
        """Stable keys; times in ns of CLOCK_MONOTONIC, addresses in hexadecimal."""
        f = self.failure
        return {
            "time_ns": f.time_ns,
            "wait_ns": f.wait_ns,
            "pid": self.pid,
            "tid": f.tid,
            "file": self.name,
            "offset": f.offset,
            "address": hex(f.address),
            "write": f.write,
            "errno": errno.errorcode.get(f.error, str(f.error)),
            "reason": f.reason.name.lower(),
            "attempts": f.attempts,
            "design": self.design,
            "delivered": None if self.delivery is None else self.delivery.name.lower(),
        }


class Newest(Generic[T]):
    """The newest `keep` items that were added, and the number of all."""

    def __init__(self, keep: int = 4096) -> None:
        self._kept: collections.deque[T] = collections.deque(maxlen=keep)
        self.total = 0

    def add(self, one: T) -> None:
        self._kept.append(one)
        self.total += 1

    def __iter__(self) -> Iterator[T]:
        return iter(tuple(self._kept))

    def __len__(self) -> int:
        return len(self._kept)
