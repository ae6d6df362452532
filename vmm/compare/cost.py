# SPDX-License-Identifier: Apache-2.0
"""What a failed fault costs under a design, measured alone: time, processor, other tasks' work.

Owns the cost columns and the pace of tasks beside a slow page source.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from native import PAGE_SIZE
from vmm.compare.cell import Cell, Column, Outcome
from vmm.compare.judge import Wanted, judge
from vmm.compare.trial import CUT, DEAD, PAGES, Ground, Trial
from vmm.cpu_time import cpu_seconds
from vmm.designs import Design

LATENCY = Column(
    "latency",
    "fault to delivery",
    "cost",
    None,
    "From the access to its error, as the guest's task sees it: p50 and p99 over as many pages.",
)
CPU = Column(
    "cpu",
    "processor burnt",
    "cost",
    None,
    "Processor time of host and guest: for each error, or as a share of one CPU while it loops.",
)
OTHERS = Column(
    "others",
    "work of another task",
    "cost",
    None,
    "What another task of the same vCPU computes meanwhile, of what it computes alone.",
)
COSTS = (LATENCY, CPU, OTHERS)

_SAMPLES = 80  # pages; all lie past CUT
_WORK_MS = 200
_PACE_MS = 25
_PACE_SLOW = 0.02  # seconds a page
PACE_LEAST = 0.9


def percentile(values: Iterable[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


async def latency_and_cpu(ground: Ground, design: Design) -> tuple[Cell, Cell, list[float]]:
    """One error a page, one after the other; -> two cells, and the times in us."""
    async with ground.trial(design, trace=False) as t:
        await t.access(f"scan 0 {PAGES * PAGE_SIZE} {PAGE_SIZE}")
        await t.truncate(CUT)
        samples: list[float] = []
        began = cpu_seconds(t.guest.process.pid)
        for i in range(_SAMPLES):
            at = DEAD + i * PAGE_SIZE
            end = await t.access(f"touch {at}", task=1)
            cell = judge(end, Wanted(Outcome.SIGBUS))
            if cell.outcome is not Outcome.SIGBUS:
                burnt = cpu_seconds(t.guest.process.pid) - began
                return _without_end(cell, burnt, end.loop.seconds if end.loop else 0.0)
            samples.append(end.done[0].ns / 1e3 if end.done[0] else 0.0)
        burnt = (cpu_seconds(t.guest.process.pid) - began) / _SAMPLES
    p50, p99 = percentile(samples, 0.5), percentile(samples, 0.99)
    delivered = Cell(
        Outcome.MEASURED,
        f"{p50:,.0f} us, p99 {p99:,.0f}",
        f"{_SAMPLES} pages, one error each",
        numbers={"p50_us": p50, "p99_us": p99},
    )
    each = Cell(
        Outcome.MEASURED,
        f"{burnt * 1e3:.2f} ms each",
        "host, its console and guest together",
        numbers={"seconds": burnt},
    )
    return delivered, each, samples


def _without_end(cell: Cell, burnt: float, seconds: float) -> tuple[Cell, Cell, list[float]]:
    """A loop or a stopped VM: nothing is ever delivered."""
    never = Cell(cell.outcome, "never", cell.detail, ok=False, rate=cell.rate)
    if cell.outcome is not Outcome.LOOP:
        return never, Cell(cell.outcome, "-", cell.detail, ok=False), []
    share = burnt / seconds if seconds else 0.0
    text = f"{share:.0%} of a CPU, for ever"
    burns = Cell(cell.outcome, text, cell.detail, ok=False, rate=cell.rate, numbers={"share": share})
    return never, burns, []


async def others(ground: Ground, design: Design) -> Cell:
    """The work of task 2 while task 1 touches what was cut off."""
    async with ground.trial(design, trace=False, watch=3600.0) as t:
        alone = await _units(t, _WORK_MS)
        await t.access(f"touch {DEAD}")
        await t.truncate(CUT)
        await t.begin(f"touch {DEAD}", task=1)
        end = await t.access(f"work {_WORK_MS}", task=2)
        if end.done[0] is None:
            return Cell(Outcome.STOPPED, "none", "the vCPU is not resumed", ok=False, numbers={"ratio": 0.0})
        ratio = int(end.done[0].value) / alone
    return Cell(Outcome.MEASURED, f"{ratio:.0%}", f"{_WORK_MS} ms", numbers={"ratio": ratio})


async def _units(t: Trial, ms: int) -> int:
    """The work of task 2 with nothing beside it."""
    done = (await t.access(f"work {ms}", task=2)).done[0]
    if done is None:
        raise RuntimeError("a task with nothing beside it did not come to an end")
    return max(1, int(done.value))


async def pace(ground: Ground, design: Design, async_pf: bool) -> dict[str, Any]:
    """The pace of a task while its neighbour waits for 20 ms a page, again and again.

    -> one series: points are (ms since the beginning, pace as a part of its pace alone).
    """
    async with ground.trial(design, trace=False, async_pf=async_pf) as t:
        alone = statistics.median([await _units(t, _PACE_MS) for _ in range(5)])
        t.file.inject(0, PAGES * PAGE_SIZE, delay=_PACE_SLOW)
        slow = [await t.begin(f"touch {i * PAGE_SIZE}", task=1) for i in _scattered(PAGES)]
        points: list[tuple[float, float]] = []
        elapsed = 0.0
        for _ in range(max(4, int(ground.seconds * 1e3 / _PACE_MS))):
            done = (await t.access(f"work {_PACE_MS}", task=2)).done[0]
            if done is None:
                break
            took = max(done.ns / 1e6, float(_PACE_MS))
            elapsed += took
            points.append((round(elapsed, 1), round(done.value / alone * _PACE_MS / took, 3)))
        t.file.inject_clear()
        del slow
    ratio = statistics.fmean(ratio for _, ratio in points)
    label = f"{design.name}, async faults {'on' if async_pf else 'off'}"
    return {"label": label, "design": design.name, "async": async_pf, "points": points, "ratio": ratio}


def _scattered(pages: int) -> list[int]:
    """Every page once, none beside the one before: a reader that reads nothing ahead."""
    return [(i * 61) % pages for i in range(pages)]
