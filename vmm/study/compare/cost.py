# SPDX-License-Identifier: Apache-2.0
"""The costs of a failed fault under a design: latency, CPU time, and the work of other tasks.

Owns the cost columns and the pace of tasks during faults of a slow page source.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

import trio

from daxfault.native import PAGE_SIZE
from daxfault.vmm.designs import Design
from daxfault.vmm.study.compare.cell import Cell, Column, Outcome
from daxfault.vmm.study.compare.judge import Wanted, judge
from daxfault.vmm.study.compare.trial import CUT, DEAD, PAGES, Testbed, Trial
from daxfault.vmm.study.cpu_time import cpu_seconds

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
_WORK_MS = 100
_WORK_GUESTS = 3
_PACE_MS = 25
_PACE_SLOW = 0.02  # seconds a page


def percentile(values: Iterable[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


async def latency_and_cpu(testbed: Testbed, design: Design) -> tuple[Cell, Cell, list[float]]:
    """Cause one error per page, one after another; -> two cells, and the latencies in us."""
    async with testbed.trial(design, trace=False) as t:
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
                return without_end(cell, burnt, end.loop.seconds if end.loop else 0.0)
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


def without_end(cell: Cell, burnt: float, seconds: float) -> tuple[Cell, Cell, list[float]]:
    """The cells of a loop or a stopped VM: the error is never delivered."""
    never = Cell(cell.outcome, "never", cell.detail, ok=False, rate=cell.rate)
    if cell.outcome is not Outcome.LOOP:
        return never, Cell(cell.outcome, "-", cell.detail, ok=False), []
    share = burnt / seconds if seconds else 0.0
    text = f"{share:.0%} of a CPU, for ever"
    burns = Cell(cell.outcome, text, cell.detail, ok=False, rate=cell.rate, numbers={"share": share})
    return never, burns, []


async def others(testbed: Testbed, design: Design) -> Cell:
    """The work of task 2 while task 1 touches pages that were cut off: the median of several guests."""
    ratios = []
    for _ in range(_WORK_GUESTS):
        ratio = await _beside_a_failure(testbed, design)
        if ratio is None:
            detail = "the vCPU is not resumed"
            return Cell(Outcome.STOPPED, "none", detail, ok=False, numbers={"ratio": 0.0})
        ratios.append(ratio)
    ratio = statistics.median(ratios)
    return Cell(Outcome.MEASURED, f"{ratio:.0%}", f"{_WORK_MS} ms", numbers={"ratio": ratio})


async def _beside_a_failure(testbed: Testbed, design: Design) -> float | None:
    """The pace of task 2 as a fraction of its pace alone; None: its vCPU is not resumed."""
    async with testbed.trial(design, trace=False, watch=3600.0) as t:
        alone = await t.access(f"work {_WORK_MS}", task=2)
        await t.access(f"touch {DEAD}")
        await t.truncate(CUT)
        await t.begin(f"touch {DEAD}", task=1)
        end = await t.access(f"work {_WORK_MS}", task=2)
        if end.done[0] is None or alone.done[0] is None:
            return None
        return int(end.done[0].value) / max(1, int(alone.done[0].value))


async def pace(testbed: Testbed, design: Design, async_pf: bool) -> dict[str, Any]:
    """The pace of a task while its neighbour repeatedly waits 20 ms for a page.

    -> one series: points are (ms since the start, pace as a fraction of the median pace alone).
    """
    count = max(8, int(testbed.seconds * 1e3 / _PACE_MS))
    async with testbed.trial(design, trace=False, async_pf=async_pf) as t:
        alone = statistics.median(speed for _, speed in await _speeds(t, count))
        t.file.inject(0, PAGES * PAGE_SIZE, delay=_PACE_SLOW)
        for page in _scattered(PAGES):
            await t.begin(f"touch {page * PAGE_SIZE}", task=1)
        points = [(round(ms, 1), round(speed / alone, 3)) for ms, speed in await _speeds(t, count)]
        t.file.inject_clear()
    ratio = statistics.median(ratio for _, ratio in points)
    label = f"{design.name}, async faults {'on' if async_pf else 'off'}"
    return {"label": label, "design": design.name, "async": async_pf, "points": points, "ratio": ratio}


async def _speeds(t: Trial, count: int) -> list[tuple[float, float]]:
    """Task 2 works without a pause; -> for each piece its end in ms, and its units per millisecond."""
    began = last = trio.current_time()
    waits = [await t.begin(f"work {_PACE_MS}", task=2) for _ in range(count)]
    speeds = []
    for wait in waits:
        done = await wait()
        now = trio.current_time()
        speeds.append(((now - began) * 1e3, done.value / ((now - last) * 1e3)))
        last = now
    return speeds


def _scattered(pages: int) -> list[int]:
    """Every page once, never two adjacent ones in sequence, so that read-ahead does not help."""
    return [(i * 61) % pages for i in range(pages)]
