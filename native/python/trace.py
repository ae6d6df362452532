# SPDX-License-Identifier: Apache-2.0
"""What happened to faults, one entry at a time.

Owns the shape of an entry.  Must not interpret it.
"""

from __future__ import annotations

import dataclasses
import enum


class TraceKind(enum.IntEnum):
    """What happened (enum df_trace_kind, abi.h, which says what `value` is)."""

    FAULT = 1
    FILL_BEGIN = 2
    FILL_END = 3
    INSTALL = 4
    FAIL = 5
    NOT_PRESENT = 6
    HALT = 7
    READY = 8
    ERROR = 9
    EVENT = 10
    ACK = 11
    WAKE = 12
    POISON = 13
    STOP = 14
    WAKE_ALL = 15
    CHANGED = 16
    WITHDRAW = 17


@dataclasses.dataclass(frozen=True, slots=True)
class Trace:
    """One entry of the engine's trace; see struct df_trace in abi.h for the units."""

    time_ns: int
    guest: int
    file: int
    address: int
    offset: int
    token: int
    tid: int
    vcpu: int
    kind: TraceKind
    value: int
    error: int


TRACE_FIELDS = tuple(f.name for f in dataclasses.fields(Trace))
