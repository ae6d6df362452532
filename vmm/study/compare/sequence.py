# SPDX-License-Identifier: Apache-2.0
"""The messages of one access, merged from the traces of host and guest in order of time.

Both traces use CLOCK_MONOTONIC.  Pure.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import Any

from daxfault.native import Trace, TraceKind, Wait

Event = dict[str, Any]

KERNEL, HOST, FILE = "guest kernel", "host", "file"
_FIRST, _LAST = 48, 8  # kept of a long sequence

# the engine's events: sender, receiver, message; None: the task on that vCPU
_HOST: dict[TraceKind, tuple[str | None, str | None, str]] = {
    TraceKind.FAULT: (None, HOST, "fault"),
    TraceKind.FILL_BEGIN: (HOST, FILE, "read"),
    TraceKind.FILL_END: (FILE, HOST, "bytes"),
    TraceKind.INSTALL: (HOST, None, "page"),
    TraceKind.FAIL: (FILE, HOST, "no page"),
    TraceKind.NOT_PRESENT: (HOST, KERNEL, "not present"),
    TraceKind.HALT: (HOST, KERNEL, "halt"),
    TraceKind.READY: (HOST, KERNEL, "ready"),
    TraceKind.ERROR: (HOST, KERNEL, "error"),
    TraceKind.EVENT: (HOST, KERNEL, "error event"),
    TraceKind.ACK: (KERNEL, HOST, "ack"),
    TraceKind.WAKE: (HOST, None, "wake"),
    TraceKind.POISON: (HOST, None, "poison"),
    TraceKind.STOP: (HOST, KERNEL, "stop"),
    TraceKind.WAKE_ALL: (HOST, HOST, "wake all queued"),
    TraceKind.CHANGED: (FILE, HOST, "changed"),
    TraceKind.WITHDRAW: (HOST, KERNEL, "withdraw"),
}

# the guest kernel's events, except those that the engine's trace already has
_GUEST: dict[str, tuple[str | None, str | None, str]] = {
    "park": (KERNEL, None, "park"),
    "wake": (KERNEL, None, "wake"),
    "early": (KERNEL, KERNEL, "early"),
    "error": (KERNEL, None, "error"),
    "sigbus": (KERNEL, None, "sigbus"),
    "fixup": (KERNEL, KERNEL, "fixup"),
    "panic": (KERNEL, KERNEL, "panic"),
    "deferred": (KERNEL, KERNEL, "deferred"),
    "killed": (KERNEL, None, "killed"),
    "poison": (KERNEL, None, "bus error"),
    "begin": (None, None, "begin"),
    "end": (None, None, "end"),
}
_RUNS = ("begin", "switch", "sigbus", "fixup", "end")  # of the task that runs


def merged(host: Iterable[Trace], guest: Iterable[Event]) -> list[Event]:
    """Both traces merged; only the beginning and the end of a long one."""
    host = list(host)
    vcpus = {trace.tid: trace.vcpu for trace in host if trace.vcpu >= 0}
    running: dict[int, int] = {}
    sleepers: dict[int, tuple[int, int]] = {}  # by token: the task that sleeps on it
    lines: list[tuple[int, Trace | Event]] = [(trace.time_ns, trace) for trace in host]
    lines += [(int(event["ns"]), event) for event in guest]
    lines.sort(key=lambda line: line[0])
    events = []
    for ns, line in lines:
        if isinstance(line, Trace):
            # "ready" wakes the task that sleeps on a token
            if line.kind != TraceKind.WAKE or not line.token:
                events.append(_of_host(ns, line, vcpus, running, sleepers))
        else:
            vcpu, task = int(line["vcpu"]), int(line["task"])
            if task < 0:
                task = running.get(vcpu, 0)
            if line["what"] in _RUNS:
                running[vcpu] = task
            if token := line.get("token"):
                sleepers[token] = (vcpu, task)
            if line["what"] in _GUEST:
                events.append(_of_guest(ns, line, vcpu, task))
    if len(events) <= _FIRST + _LAST:
        return events
    left = len(events) - _FIRST - _LAST
    gap = {"ns": events[_FIRST]["ns"], "who": HOST, "to": None, "what": "...", "token": 0}
    return [*events[:_FIRST], gap | {"note": f"{left} more events"}, *events[-_LAST:]]


def _task(vcpu: int, task: int) -> str:
    return f"task {vcpu}.{task}"


def _of_host(
    ns: int,
    trace: Trace,
    vcpus: dict[int, int],
    running: dict[int, int],
    sleepers: dict[int, tuple[int, int]],
) -> Event:
    who, to, what = _HOST[TraceKind(trace.kind)]
    if trace.kind == TraceKind.HALT and trace.value == Wait.SYNC:
        what = "waits in its fault"
    vcpu = trace.vcpu if trace.vcpu >= 0 else vcpus.get(trace.tid, 0)
    task = _task(*sleepers.get(trace.token, (vcpu, running.get(vcpu, 0))))
    note = f"{trace.address:#x}" if trace.address else ""
    if trace.error:
        note = f"{note} {errno.errorcode.get(trace.error, trace.error)}".strip()
    return {
        "ns": ns,
        "who": who or task,
        "to": None if who == to else to or task,
        "what": what,
        "token": trace.token,
        "note": note,
    }


def _of_guest(ns: int, event: Event, vcpu: int, task: int) -> Event:
    who, to, what = _GUEST[event["what"]]
    name = _task(vcpu, task)
    gva = event.get("gva")
    return {
        "ns": ns,
        "who": who or name,
        "to": None if who == to else to or name,
        "what": what,
        "token": event.get("token", 0),
        "note": gva if gva and int(gva, 16) else "",
    }
