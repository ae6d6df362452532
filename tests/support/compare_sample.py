# SPDX-License-Identifier: Apache-2.0
"""A comparison as `daxfault compare --json` writes it, made by hand: every outcome once at least.

Owns a sample for the page's tests; nothing in it was measured.
"""

import math
from typing import Any

US = 1000

COLUMNS = [
    {"name": "user", "title": "user access", "group": "behaviour", "meaning": "A load of one byte."},
    {"name": "kcopy", "title": "kernel copy, table entry", "group": "behaviour"},
    {"name": "bare", "title": "kernel copy, no entry", "group": "behaviour"},
    {"name": "syscall", "title": "real system call", "group": "behaviour"},
    {"name": "irqoff", "title": "interrupts off", "group": "behaviour"},
    {"name": "async_off", "title": "async off", "group": "behaviour"},
    {"name": "two", "title": "two tasks, one page", "group": "behaviour"},
    {"name": "killed", "title": "killed while parked", "group": "behaviour"},
    {"name": "heal", "title": "the file grows again", "group": "behaviour"},
    {"name": "eio", "title": "I/O error", "group": "behaviour"},
    {"name": "faults", "title": "faults until the end", "group": "cost"},
    {"name": "bytes_late", "title": "good page, slow source", "group": "cost"},
]

_TEXTS = {
    "sigbus": "exact address",
    "efault": "16 of 64 bytes",
    "panic": "says where",
    "stopped": "KVM_RUN -EFAULT",
    "bytes": "zeros",
    "hang": "no end in 5 s",
    "killed": "at its event",
    "wrong": "address 0x0",
}
_WANTED = {
    "user": ("sigbus",),
    "kcopy": ("efault",),
    "bare": ("panic",),
    "syscall": ("efault",),
    "irqoff": ("panic", "sigbus"),
    "async_off": ("sigbus",),
    "two": ("sigbus",),
    "killed": ("killed",),
    "heal": ("bytes",),
    "eio": ("sigbus",),
}
# a letter a column: Sigbus Efault Panic Loop Hang sTopped Bytes Killed Wrong
_LETTERS = {
    "S": "sigbus",
    "E": "efault",
    "P": "panic",
    "L": "loop",
    "H": "hang",
    "T": "stopped",
    "B": "bytes",
    "K": "killed",
    "W": "wrong",
}
_DESIGNS = [
    ("mainline", "the error is dropped and the guest told the page is ready (Linux today)", "LLLETLLKBL"),
    ("rfc-v1", "a third reason beside “not present” and “ready”: error, with the address", "SEPETLSKBW"),
    ("june-2020", "a flag in the “ready” interrupt; SIGBUS for user mode", "SLLETLSHBS"),
    ("exit-to-user", "remember the gfn, make the retry synchronous, stop the VM", "TTTETTTTTT"),
    ("gone-in-wakeup", "the wake-up says “gone”", "SEPETLSKBS"),
    ("inject-on-retry", "say “ready”, then raise a real exception at the retry", "SEPEPSSKBS"),
    ("poison", "poison the page, then wake: hardware's own error", "SEPESSSKWS"),
    ("report", "errno, reason and address, by whichever way is open (daxfault)", "SEPEPSSKBS"),
]


def event(us: float, who: str, to: str | None, what: str, token: int = 0, note: str = "") -> dict[str, Any]:
    return {"ns": int(5_000_000 + us * US), "who": who, "to": to, "what": what, "token": token, "note": note}


def _begin() -> list[dict[str, Any]]:
    return [
        event(0, "task 0.0", "host", "fault", 0, "0x7f2a40205005, past the end of the file"),
        event(14.1, "host", "file", "pread", 0, "0 bytes: end of file"),
        event(22.8, "host", "guest kernel", "not present", 0x1000),
        event(26.0, "guest kernel", "task 0.0", "park", 0x1000),
        event(28.3, "guest kernel", "task 0.1", "switch"),
    ]


def _loop() -> list[dict[str, Any]]:
    events = [event(0, "task 0.0", "guest kernel", "access", 0, "touch 0x5005")]
    for n in range(12):
        at, token = 4 + 41.5 * n, (n + 1) << 12
        events += [
            event(at, "task 0.0", "host", "fault"),
            event(at + 9, "host", "guest kernel", "not present", token),
            event(at + 12, "guest kernel", "task 0.0", "park", token),
            event(at + 20, "host", "file", "pread", 0, "EFAULT, dropped"),
            event(at + 31, "host", "guest kernel", "ready", token),
            event(at + 34, "guest kernel", "task 0.0", "wake", token),
        ]
    return [*events, event(520, "host", None, "the watchdog ends it", 0, "no progress in 0.50 s")]


def _events(outcome: str) -> list[dict[str, Any]]:
    if outcome == "loop":
        return _loop()
    if outcome == "hang":
        return [*_begin(), event(5_000_000, "task 0.0", None, "still asleep", 0x1000)]
    if outcome == "stopped":
        return [
            event(0, "task 0.0", "host", "fault", 0, "interrupts are off: not told"),
            event(12, "host", None, "KVM_RUN fails", 0, "-EFAULT"),
        ]
    if outcome in ("measured", "untried"):
        return []
    if outcome == "bytes":
        return [
            event(0, "task 0.0", "host", "fault"),
            event(11, "host", "file", "pread", 0, "4096 bytes"),
            event(25, "host", "task 0.0", "install", 0, "the thread goes on"),
        ]
    ends = {
        "sigbus": event(63, "guest kernel", "task 0.0", "SIGBUS", 0, "BUS_ADRERR, si_addr 0x7f2a40205005"),
        "efault": event(63, "guest kernel", "task 0.0", "fixup", 0, "16 of 64 bytes, then EFAULT"),
        "panic": event(63, "guest kernel", None, "panic", 0, "unhandled page fault at 0x7f2a40205005"),
        "killed": event(63, "guest kernel", "task 0.0", "killed", 0, "SIGKILL was pending"),
        "wrong": event(63, "guest kernel", "task 0.0", "SIGBUS", 0, "si_addr 0x0"),
    }
    told = event(49, "host", "guest kernel", "error", 0x1000, "EFAULT, gva 0x7f2a40205005, reason EOF")
    return [*_begin(), told, event(55, "guest kernel", "task 0.0", "wake", 0x1000), ends[outcome]]


def cell(outcome: str, ok: bool | None, text: str = "", **more: Any) -> dict[str, Any]:
    found = {
        "outcome": outcome,
        "text": text or _TEXTS.get(outcome, ""),
        "detail": f"The sample's access ended in {outcome}.",
        "ok": ok,
        "rate": None,
        "si_code": None,
        "address_exact": None,
        "events": _events(outcome),
        "numbers": {"end_ns": 63_000, "faults": 1},
    }
    if outcome in ("sigbus", "wrong"):
        found |= {"si_code": 2, "address_exact": outcome == "sigbus"}
    return found | more


def _looping(n: int) -> dict[str, Any]:
    per_second = 24_690 - 911.0 * n
    cycles = int(per_second / 2)
    return cell(
        "loop",
        False,
        f"{per_second:,.0f}/s",
        rate=per_second,
        numbers={"cycles": cycles, "cpu_percent": 101},
        detail=f"{cycles:,} times fault, EFAULT, ready in 0.50 s; no progress.",
    )


def _row(n: int, name: str, summary: str, letters: str) -> dict[str, Any]:
    cells = {}
    for k, (column, letter) in enumerate(zip(COLUMNS, letters, strict=False)):
        outcome = _LETTERS[letter]
        wanted = outcome in _WANTED[column["name"]]
        cells[column["name"]] = _looping(n + k) if letter == "L" else cell(outcome, wanted)
    loops = letters[0] == "L"
    cells["faults"] = cell("loop", False, "12,345") if loops else cell("measured", None, "1")
    if name != "exit-to-user":
        cells["bytes_late"] = cell("measured", None, f"{61 + 4 * n} µs")
    if name == "gone-in-wakeup":
        cells["two"] |= {"ok": None, "text": "no address", "address_exact": False}
    if name == "june-2020":
        cells["bytes_late"] = cell("untried", None, "not here", detail="It takes another kernel.")
    return {"design": name, "title": name, "summary": summary, "cells": cells}


def _samples(middle: float) -> list[float]:
    logs = (0.35 * math.sin(7.1 * k) * math.sin(k * k) + (1.2 if k % 41 == 0 else 0) for k in range(200))
    return [round(middle * math.exp(log), 2) for log in logs]


def _latency(n: int, name: str) -> dict[str, Any]:
    samples = sorted(_samples(58 + 9 * n))
    return {"design": name, "p50_us": samples[100], "p99_us": samples[198], "samples": samples}


def _pace(label: str, design: str, on: bool, low: float) -> dict[str, Any]:
    points = [[5 * k, round((low if 12 <= k < 34 else 1.0) + 0.03 * math.sin(1.7 * k), 3)] for k in range(49)]
    return {"label": label, "design": design, "async": on, "points": points, "ratio": low}


def sample() -> dict[str, Any]:
    """A new copy, to change at will."""
    return {
        "version": 1,
        "kernel": "6.18.5",
        "seconds": 0.5,
        "date": "2026-11-23T11:40:00+00:00",
        "versions": {"daxfault": "0.1.0", "Python": "3.11.7", "libfuse": "3.14.0"},
        "columns": [dict(column) for column in COLUMNS],
        "rows": [_row(n, *design) for n, design in enumerate(_DESIGNS)],
        "pace": {
            "series": [
                _pace("report, async on", "report", True, 0.96),
                _pace("report, async off", "report", False, 0.04),
                _pace("mainline, async on", "mainline", True, 0.52),
                _pace("mainline, async off", "mainline", False, 0.03),
            ]
        },
        "nested": [
            {"design": "mainline", "outcome": "loop", "detail": "L1 is told “ready” and so is L2"},
            {"design": "report", "outcome": "sigbus", "detail": "L1 reports to L2 what it was told"},
        ],
        "differences": [
            {
                "column": "irqoff",
                "design": "rfc-v1",
                "way": "unmap+area",
                "model": "VM stopped",
                "kvm": "EFAULT after 16 bytes",
                "why": "It is told at the access.",
            },
            {"column": "eio", "design": "x", "way": "y", "model": "a", "kvm": "b", "why": ""},
        ],
        "latency": [_latency(n, name) for n, (name, _, letters) in enumerate(_DESIGNS) if letters[0] == "S"],
    }
