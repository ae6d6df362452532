# SPDX-License-Identifier: Apache-2.0
"""A recording as Trace Event Format: what viewers insist on, and that nothing is lost on the way."""

import json
from collections import defaultdict
from typing import Any

import pytest

from daxfault.fsd.tracing import Request
from daxfault.native import Reason, Trace, TraceKind
from daxfault.vmm.study.timeline import Recording, chrome

Json = dict[str, Any]
NEEDED = {
    "M": {"name", "pid", "tid", "args"},
    "X": {"name", "cat", "pid", "tid", "ts", "dur", "args"},
    "b": {"name", "cat", "pid", "tid", "ts", "id"},
    "e": {"name", "cat", "pid", "tid", "ts", "id"},
    "s": {"name", "cat", "pid", "tid", "ts", "id"},
    "t": {"name", "cat", "pid", "tid", "ts", "id"},
    "f": {"name", "cat", "pid", "tid", "ts", "id", "bp"},
}


def us(microseconds: float) -> int:
    """CLOCK_MONOTONIC, ns, since some boot."""
    return 17_000_000_000_000 + round(microseconds * 1000)


def host(at: float, kind: TraceKind, token: int = 0, **fields: int) -> Trace:
    values = {"address": 0x7F00_0000_5005, "offset": 0x5000, "file": 1, "tid": 77, "vcpu": 0} | fields
    return Trace(
        time_ns=us(at),
        guest=1,
        file=values["file"],
        address=values["address"],
        offset=values["offset"],
        token=token,
        tid=values["tid"],
        vcpu=values["vcpu"],
        kind=kind,
        value=fields.get("value", 0),
        error=fields.get("error", 0),
    )


def guest(at: float, what: str, task: int = 0, token: int = 0, vcpu: int = 0) -> Json:
    gva = "0x7f0000005005" if what in ("begin", "end", "sigbus") else "0x0"
    return {"ns": us(at), "vcpu": vcpu, "task": task, "what": what, "token": token, "gva": gva}


def told() -> Recording:
    """A fault that is told, fails, and ends in SIGBUS; another task works meanwhile."""
    return Recording(
        host=[
            host(5, TraceKind.FAULT, vcpu=-1),
            host(9, TraceKind.NOT_PRESENT, 0x1000),
            host(10, TraceKind.FILL_BEGIN, value=4096),
            host(40, TraceKind.FILL_END, error=5),
            host(41, TraceKind.FAIL, 0x1000, value=Reason.IO, error=5),
            host(60, TraceKind.ERROR, 0x1000, error=5),
            host(66, TraceKind.ACK),
        ],
        guest=[
            guest(0, "switch"),
            guest(1, "begin"),
            guest(8, "not_present", token=0x1000),
            guest(8.2, "park", token=0x1000),
            guest(9, "switch", task=1),
            guest(9.5, "begin", task=1),
            guest(61, "irq", task=-1, token=0x1000),
            guest(61.2, "error", task=-1, token=0x1000),
            guest(61.4, "wake", token=0x1000),
            guest(61.4, "ack", task=-1, token=0x1000),
            guest(70, "end", task=1),
            guest(70.1, "switch"),
            guest(72, "sigbus"),
            guest(73, "end"),
            guest(74, "idle", task=-1),
        ],
        requests=[
            Request("getattr", us(2), us(30), 0, {"inode": 3}),
            Request("lookup", us(10), us(20), 2, {"name": "gone"}),
            Request("statfs", us(30), us(31), 0, {}),
        ],
        about={"design": "report"},
        steps=[(us(0), us(75), "one access")],
        accesses={(0, 0): ["touch 0x5005"], (0, 1): ["work 20"]},
    )


def check(made: Json) -> None:
    """What the format, Perfetto and chrome://tracing want."""
    events = json.loads(json.dumps(made))["traceEvents"]
    for event in events:
        assert event["ph"] in NEEDED, event
        assert NEEDED[event["ph"]] <= event.keys(), event
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        assert event["ts"] >= 0
        assert event.get("dur", 0) >= 0
    named = {(e["pid"], e["tid"]) for e in events if e["name"] == "thread_name"}
    places = {e["pid"] for e in events if e["name"] == "process_name"}
    used = {(e["pid"], e["tid"]) for e in events if e["ph"] != "M"}
    assert used <= named
    assert {pid for pid, _ in used} <= places
    check_nesting([e for e in events if e["ph"] == "X"])
    check_pairs([e for e in events if e["ph"] in "be"])
    check_flows([e for e in events if e["ph"] in "stf"], [e for e in events if e["ph"] == "X"])


def span(event: Json) -> tuple[int, int]:
    begin = round(event["ts"] * 1000)
    return begin, begin + round(event["dur"] * 1000)


def check_nesting(slices: list[Json]) -> None:
    tracks: dict[tuple[int, int], list[Json]] = defaultdict(list)
    for event in slices:
        tracks[event["pid"], event["tid"]].append(event)
    for track in tracks.values():
        around: list[int] = []
        assert [event["ts"] for event in track] == sorted(event["ts"] for event in track)
        for event in track:
            begin, end = span(event)
            while around and around[-1] <= begin:
                around.pop()
            assert not around or end <= around[-1], event
            around.append(end)


def check_pairs(events: list[Json]) -> None:
    open_: dict[tuple[str, str], Json] = {}
    for event in events:
        key = (event["cat"], event["id"])
        if event["ph"] == "b":
            assert key not in open_
            open_[key] = event
        else:
            assert open_.pop(key)["name"] == event["name"]
    assert not open_


def check_flows(events: list[Json], slices: list[Json]) -> None:
    flows: dict[str, list[Json]] = defaultdict(list)
    begins = {(one["pid"], one["tid"], one["ts"]) for one in slices}
    for event in events:
        flows[event["id"]].append(event)
        assert (event["pid"], event["tid"], event["ts"]) in begins, f"{event} hangs in the air"
    for steps in flows.values():
        assert [e["ph"] for e in steps] == ["s", *"t" * (len(steps) - 2), "f"]


def slices(made: Json, track: str) -> list[Json]:
    names = {
        (e["pid"], e["tid"]): e["args"]["name"] for e in made["traceEvents"] if e["name"] == "thread_name"
    }
    return [e for e in made["traceEvents"] if e["ph"] == "X" and names[e["pid"], e["tid"]] == track]


def test_timeline_of_a_told_fault_is_well_formed() -> None:
    check(chrome(told()))


def test_timeline_has_everything_that_was_recorded() -> None:
    made = chrome(told())
    access, parked, *moments = slices(made, "task 0.0")
    assert (access["name"], access["dur"]) == ("touch 0x5005", 72.0)
    assert parked["name"] == "parked"
    assert parked["dur"] == pytest.approx(53.2)
    assert parked["args"]["token"] == "0x1000"
    assert [one["name"] for one in moments] == ["park", "wake", "sigbus"]
    running = [one["name"] for one in slices(made, "vCPU 0") if one["name"].startswith("task")]
    assert running == ["task 0.0", "task 0.1", "task 0.0"]
    (read,) = slices(made, "reads of the source 0")
    assert (read["ts"], read["dur"], read["args"]["error"]) == (10.0, 30.0, "EIO")
    spans = {e["name"] for e in made["traceEvents"] if e["ph"] == "b"}
    assert spans == {"fault that fails", "failure until error"}


def test_timeline_follows_a_token_from_host_to_the_woken_task() -> None:
    made = chrome(told())
    arrows = [e for e in made["traceEvents"] if e["ph"] in "stf"]
    assert {e["id"] for e in arrows} == {"0x1000"}
    assert (arrows[0]["ts"], arrows[-1]["ts"]) == (8.0, 61.4)
    assert {e["pid"] for e in arrows} == {2, 3, 4}


def test_timeline_of_overlapping_requests_has_a_row_for_each_and_shows_errors() -> None:
    made = chrome(told())
    assert [one["name"] for one in slices(made, "requests 0")] == ["getattr", "statfs"]
    (lookup,) = slices(made, "requests 1")
    assert lookup["args"] == {"name": "gone", "error": "ENOENT"}


def test_timeline_of_an_access_that_never_ends_shows_it_to_the_last() -> None:
    recording = told()
    recording.guest = recording.guest[:6]
    recording.host = recording.host[:3]
    made = chrome(recording)
    check(made)
    access, parked, *_ = slices(made, "task 0.0")
    assert access["args"]["unfinished"]
    assert parked["args"]["unfinished"]
    assert access["ts"] + access["dur"] == 75.0
    assert "unfinished" in {e["name"] for e in made["traceEvents"] if e["ph"] == "b"}


def test_timeline_of_a_wake_all_draws_no_arrows() -> None:
    recording = told()
    recording.host = [host(1, TraceKind.WAKE_ALL, 0xFFFFFFFF), host(2, TraceKind.READY, 0xFFFFFFFF)]
    recording.guest = [guest(3, "wake_all", task=-1, token=0xFFFFFFFF)]
    made = chrome(recording)
    check(made)
    assert not [e for e in made["traceEvents"] if e["ph"] in "stf"]


def test_timeline_of_moments_at_one_time_stays_nested() -> None:
    recording = told()
    recording.host += [host(9, TraceKind.HALT), host(9.0001, TraceKind.STOP), host(9.5, TraceKind.WAKE)]
    check(chrome(recording))


def test_timeline_of_nothing_is_empty() -> None:
    made = chrome(Recording([], [], [], {}))
    check(made)
    assert [e for e in made["traceEvents"] if e["ph"] != "M"] == []
