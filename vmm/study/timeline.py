# SPDX-License-Identifier: Apache-2.0
"""Converts a recorded run to a trace for Perfetto and chrome://tracing.

Owns the translation into the Trace Event Format (JSON Object Format): tracks, slices, flows.  Pure: it
does not record, nor read a clock.  All sources use CLOCK_MONOTONIC, so they need no alignment.

Tracks consist of slices ("X"), which nest by construction.  An instant is a slice of at most a
microsecond, because flow arrows connect only slices.  Faults of one vCPU overlap, because its tasks
wait concurrently, so they are async slices ("b", "e").
"""

from __future__ import annotations

import dataclasses
import errno
import itertools
from collections.abc import Iterable
from typing import Any

from daxfault.fsd.tracing import Request
from daxfault.native import PAGE_SIZE, Reason, Trace, TraceKind, Wait

STORY, GUEST, VCPUS, HOST, FILES = 1, 2, 3, 4, 5  # pids of the trace: places, not processes
_PLACES = {
    STORY: "what is done",
    GUEST: "guest: tasks",
    VCPUS: "guest: vCPUs",
    HOST: "host: engine",
    FILES: "host: file server",
}
_TASKS = 100  # more than a vCPU has
_ANSWERS, _FILLS = 1, 10  # tids of the host's tracks; fills take as many as run at once
_MOMENT = 1000  # ns, the longest slice of an instant
_ALL = 0xFFFFFFFF  # the token of "wake all"

# events that end a fault, and those that end a failure
_RESOLVED = {TraceKind.INSTALL}
_ANSWERED = {
    TraceKind.READY,
    TraceKind.ERROR,
    TraceKind.EVENT,
    TraceKind.WAKE,
    TraceKind.POISON,
    TraceKind.STOP,
}
_SLICES = {TraceKind.FILL_BEGIN, TraceKind.FILL_END}
# events of the guest on the vCPU's track; others are on the task's
_OF_VCPU = {"irq", "ack", "idle", "switch", "deferred", "wake_all", "ready", "error", "early", "not_present"}
_FLOWING = {"not_present", "park", "ready", "error", "early", "wake"}

Json = dict[str, Any]


@dataclasses.dataclass(slots=True)
class Recording:
    """The record of a run.

    `steps` are the actions, with begin and end in ns; `accesses` the commands of each task, by vCPU and
    task number, in order; `lost` counts events that the guest dropped.
    """

    host: list[Trace]
    guest: list[Json]
    requests: list[Request]
    about: dict[str, str]
    steps: list[tuple[int, int, str]] = dataclasses.field(default_factory=list)
    accesses: dict[tuple[int, int], list[str]] = dataclasses.field(default_factory=dict)
    lost: int = 0


@dataclasses.dataclass(slots=True)
class _Slice:
    begin: int
    end: int
    name: str
    args: Json


@dataclasses.dataclass(slots=True)
class _Track:
    """One row.  `slices` nest; `moments` are short, and end where another slice begins or ends."""

    pid: int
    tid: int
    name: str
    slices: list[_Slice] = dataclasses.field(default_factory=list)
    moments: list[_Slice] = dataclasses.field(default_factory=list)

    def moment(self, ns: int, name: str, args: Json) -> None:
        self.moments.append(_Slice(ns, ns, name, args))

    def finished(self) -> list[_Slice]:
        edges = sorted(
            {ns for one in self.slices for ns in (one.begin, one.end)} | {one.begin for one in self.moments}
        )
        following = dict(itertools.pairwise(edges))
        for one in self.moments:
            one.end = min(one.begin + _MOMENT, following.get(one.begin, one.begin + _MOMENT))
        return sorted([*self.slices, *self.moments], key=lambda one: (one.begin, -one.end))


class _Timeline:
    """Collects tracks, async slices and flows."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        times = [trace.time_ns for trace in recording.host]
        times += [int(event["ns"]) for event in recording.guest]
        times += [ns for request in recording.requests for ns in (request.begin_ns, request.end_ns)]
        times += [ns for begin, end, _ in recording.steps for ns in (begin, end)]
        self.first, self.last = min(times, default=0), max(times, default=0)
        self.tracks: dict[tuple[int, int], _Track] = {}
        self.spans: list[tuple[int, int, int, str, str, Json]] = []  # id, begin, end, category, name
        self.flows: dict[int, list[tuple[int, int, int]]] = {}  # by token: ns, pid, tid

    def track(self, pid: int, tid: int, name: str) -> _Track:
        return self.tracks.setdefault((pid, tid), _Track(pid, tid, name))

    def flow(self, token: int, ns: int, track: _Track) -> None:
        if token not in (0, _ALL):
            self.flows.setdefault(token, []).append((ns, track.pid, track.tid))

    # ---- the guest

    def guest(self) -> None:
        running: dict[int, _Slice] = {}
        doing: dict[tuple[int, int], list[_Slice]] = {}  # open slices of a task, outermost first
        texts = {who: iter(listed) for who, listed in self.recording.accesses.items()}
        for event in sorted(self.recording.guest, key=lambda event: int(event["ns"])):
            ns, vcpu, task = int(event["ns"]), int(event["vcpu"]), int(event["task"])
            what, token = str(event["what"]), int(event.get("token", 0))
            row = self.track(VCPUS, vcpu, f"vCPU {vcpu}")
            if what in ("switch", "idle"):
                if vcpu in running:
                    self._close(row, running.pop(vcpu), ns)
                if what == "switch":
                    running[vcpu] = _Slice(ns, ns, f"task {vcpu}.{task}", {})
                continue
            args = _shown(token=token, gva=event.get("gva"))
            if task >= 0 and what not in _OF_VCPU:
                row = self.track(GUEST, vcpu * _TASKS + task, f"task {vcpu}.{task}")
                name = next(texts.get((vcpu, task), iter(())), "access") if what == "begin" else "parked"
                self._task(row, doing.setdefault((vcpu, task), []), _Slice(ns, ns, name, args), what)
            if what not in ("begin", "end"):
                row.moment(ns, what.replace("_", " "), args)
            if what in _FLOWING:
                self.flow(token, ns, row)
        for vcpu, one in running.items():
            self._close(self.tracks[VCPUS, vcpu], one, self.last)
        for (vcpu, task), stack in doing.items():
            while stack:
                one = stack.pop()
                one.args["unfinished"] = True
                self._close(self.tracks[GUEST, vcpu * _TASKS + task], one, self.last)

    def _task(self, row: _Track, stack: list[_Slice], new: _Slice, what: str) -> None:
        """An access is a slice, and in it each sleep on a token."""
        if what in ("end", "wake", "killed"):
            while stack and (what == "end" or stack[-1].name == "parked"):
                self._close(row, stack.pop(), new.begin)
        elif what in ("begin", "park"):
            stack.append(new)

    def _close(self, row: _Track, one: _Slice, ns: int) -> None:
        one.end = ns
        row.slices.append(one)

    # ---- the host

    def host(self) -> None:
        faults: dict[tuple[int, int], int] = {}  # by thread and page: when
        failed: dict[tuple[int, int], int] = {}
        by_token: dict[int, tuple[int, int]] = {}
        answers = self.track(HOST, _ANSWERS, "faults and answers")
        traces = sorted(self.recording.host, key=lambda trace: trace.time_ns)
        self._fills(traces)
        for trace in traces:
            kind, ns = TraceKind(trace.kind), trace.time_ns
            if kind in _SLICES:
                continue
            answers.moment(ns, _named(kind), _args(trace))
            if trace.token and kind in (TraceKind.NOT_PRESENT, TraceKind.READY, TraceKind.ERROR):
                self.flow(trace.token, ns, answers)
            key = (trace.tid, trace.address // PAGE_SIZE)
            if kind == TraceKind.FAULT:
                faults[key] = ns
            elif kind in _RESOLVED and key in faults:
                self._span(faults.pop(key), ns, "fault", trace)
            elif kind == TraceKind.FAIL:
                if key in faults:
                    self._span(faults.pop(key), ns, "fault that fails", trace)
                failed[key] = ns
                if trace.token:
                    by_token[trace.token] = key
            elif kind in _ANSWERED:
                key = by_token.pop(trace.token, key) if trace.token else key
                if key in failed:
                    self._span(failed.pop(key), ns, f"failure until {_named(kind)}", trace)
        for (tid, page), ns in [*faults.items(), *failed.items()]:
            self.spans.append(
                (len(self.spans) + 1, ns, self.last, "fault", "unfinished", {"tid": tid, "page": hex(page)})
            )

    def _span(self, begin: int, end: int, name: str, trace: Trace) -> None:
        self.spans.append((len(self.spans) + 1, begin, end, "fault", name, _args(trace)))

    def _fills(self, traces: Iterable[Trace]) -> None:
        """Concurrent reads from the file, each in the first free row."""
        begun: dict[tuple[int, int], Trace] = {}
        whole: list[tuple[int, int, str, Json]] = []
        for trace in traces:
            key = (trace.file, trace.offset)
            if trace.kind == TraceKind.FILL_BEGIN:
                begun[key] = trace
            elif trace.kind == TraceKind.FILL_END and key in begun:
                first = begun.pop(key)
                args = _args(trace) | _shown(wanted=first.value)
                whole.append((first.time_ns, trace.time_ns, f"read {first.value} bytes", args))
        for trace in begun.values():
            whole.append((trace.time_ns, self.last, "read, unfinished", _args(trace)))
        self._side_by_side(HOST, _FILLS, "reads of the source", whole)

    def requests(self) -> None:
        whole = []
        for request in self.recording.requests:
            args: Json = dict(request.about)
            if request.error:
                args["error"] = errno.errorcode.get(request.error, request.error)
            whole.append((request.begin_ns, request.end_ns, request.name, args))
        self._side_by_side(FILES, 1, "requests", whole)

    def _side_by_side(self, pid: int, tid: int, name: str, whole: list[tuple[int, int, str, Json]]) -> None:
        free: list[int] = []  # when each row is free again
        for begin, end, what, args in sorted(whole, key=lambda one: one[:2]):
            row = next((n for n, ns in enumerate(free) if ns <= begin), len(free))
            if row == len(free):
                free.append(end)
            free[row] = end
            self.track(pid, tid + row, f"{name} {row}").slices.append(_Slice(begin, end, what, args))

    # ---- the file

    def events(self) -> list[Json]:
        listed: list[Json] = []
        for pid in sorted({pid for pid, _ in self.tracks}):
            listed.append(_meta("process_name", pid, 0, {"name": _PLACES[pid]}))
            listed.append(_meta("process_sort_index", pid, 0, {"sort_index": pid}))
        for (pid, tid), track in sorted(self.tracks.items()):
            listed.append(_meta("thread_name", pid, tid, {"name": track.name}))
            listed.append(_meta("thread_sort_index", pid, tid, {"sort_index": tid}))
        timed: list[Json] = []
        for track in self.tracks.values():
            for one in track.finished():
                timed.append(self._event("X", one.begin, track, one.name, "daxfault", one.args))
                timed[-1]["dur"] = (one.end - one.begin) / 1e3
        answers = self.tracks.get((HOST, _ANSWERS))
        for ident, begin, end, category, name, args in self.spans:
            assert answers is not None
            for phase, ns in (("b", begin), ("e", end)):
                timed.append(self._event(phase, ns, answers, name, category, args if phase == "b" else {}))
                timed[-1]["id"] = hex(ident)
        for token, steps in self.flows.items():
            timed += self._arrows(token, sorted(steps))
        # of equal times the outer slice first, and an end after its beginning
        timed.sort(key=lambda event: (event["ts"], -event.get("dur", 0), event["ph"] == "e"))
        return listed + timed

    def _arrows(self, token: int, steps: list[tuple[int, int, int]]) -> list[Json]:
        if len(steps) < 2:
            return []
        arrows = []
        for n, (ns, pid, tid) in enumerate(steps):
            phase = "s" if n == 0 else "f" if n == len(steps) - 1 else "t"
            args = {"token": hex(token)}
            arrows.append(self._event(phase, ns, self.tracks[pid, tid], "token", "token", args))
            arrows[-1]["id"] = hex(token)
            if phase == "f":
                arrows[-1]["bp"] = "e"
        return arrows

    def _event(self, phase: str, ns: int, track: _Track, name: str, category: str, args: Json) -> Json:
        return {
            "ph": phase,
            "ts": (ns - self.first) / 1e3,
            "pid": track.pid,
            "tid": track.tid,
            "name": name,
            "cat": category,
            "args": args,
        }


def chrome(recording: Recording) -> Json:
    """The recording in the Trace Event Format: `traceEvents`, times in us since the first of them.

    `otherData` has the description of the recording, and CLOCK_MONOTONIC at time 0.
    """
    timeline = _Timeline(recording)
    for begin, end, name in recording.steps:
        timeline.track(STORY, 1, "steps").slices.append(_Slice(begin, end, name, {}))
    timeline.guest()
    timeline.host()
    timeline.requests()
    about = recording.about | {"clock": "CLOCK_MONOTONIC", "begin_ns": str(timeline.first)}
    if recording.lost:
        about["lost"] = f"{recording.lost} events of the guest"
    return {"traceEvents": timeline.events(), "displayTimeUnit": "ns", "otherData": about}


def _meta(name: str, pid: int, tid: int, args: Json) -> Json:
    return {"ph": "M", "name": name, "pid": pid, "tid": tid, "ts": 0, "args": args}


def _named(kind: TraceKind) -> str:
    return kind.name.lower().replace("_", " ")


def _shown(**values: Any) -> Json:
    """The fields that are not 0, tokens in hexadecimal."""
    shown: Json = {}
    for name, value in values.items():
        if value and value != "0x0":
            shown[name] = hex(value) if name == "token" else value
    return shown


def _args(trace: Trace) -> Json:
    args = _shown(
        token=trace.token,
        address=hex(trace.address),
        offset=hex(trace.offset),
        file=trace.file,
        tid=trace.tid,
    )
    if trace.error:
        args["error"] = errno.errorcode.get(trace.error, trace.error)
    if trace.vcpu >= 0:
        args["vcpu"] = trace.vcpu
    match trace.kind:
        case TraceKind.FAIL:
            args["reason"] = Reason(trace.value).name
        case TraceKind.HALT:
            args["wait"] = Wait(trace.value).name
        case TraceKind.FAULT:
            args["store"] = bool(trace.value)
        case _ if trace.value:
            args["value"] = trace.value
    return args
