# SPDX-License-Identifier: Apache-2.0
"""Entries of the engine's trace.

Owns their fields.  Must not interpret them.
"""

from __future__ import annotations

import dataclasses
import enum

from daxfault.native._daxfault import lib


class TraceKind(enum.IntEnum):
    """The kind of an entry (enum df_trace_kind, abi/host.h, which explains `value`)."""

    FAULT = lib.DF_TRACE_FAULT
    FILL_BEGIN = lib.DF_TRACE_FILL_BEGIN
    FILL_END = lib.DF_TRACE_FILL_END
    INSTALL = lib.DF_TRACE_INSTALL
    FAIL = lib.DF_TRACE_FAIL
    NOT_PRESENT = lib.DF_TRACE_NOT_PRESENT
    HALT = lib.DF_TRACE_HALT
    READY = lib.DF_TRACE_READY
    ERROR = lib.DF_TRACE_ERROR
    EVENT = lib.DF_TRACE_EVENT
    ACK = lib.DF_TRACE_ACK
    WAKE = lib.DF_TRACE_WAKE
    POISON = lib.DF_TRACE_POISON
    STOP = lib.DF_TRACE_STOP
    WAKE_ALL = lib.DF_TRACE_WAKE_ALL
    CHANGED = lib.DF_TRACE_CHANGED
    WITHDRAW = lib.DF_TRACE_WITHDRAW


@dataclasses.dataclass(frozen=True, slots=True)
class Trace:
    """One entry of the engine's trace; see struct df_trace in abi/host.h for the units."""

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
