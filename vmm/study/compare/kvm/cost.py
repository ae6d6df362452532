# SPDX-License-Identifier: Apache-2.0
"""The costs of an error for a KVM guest and its host.

Owns the cost columns on KVM.  The guest measures times by its TSC.
"""

from __future__ import annotations

import time

from daxfault.native import PAGE_SIZE
from daxfault.native.kvm_script import Op, Step
from daxfault.vmm.study.compare.cell import Cell, Outcome
from daxfault.vmm.study.compare.cost import CPU, LATENCY, percentile, without_end
from daxfault.vmm.study.compare.judge import Wanted, judge
from daxfault.vmm.study.compare.kvm.mechanisms import Mechanism
from daxfault.vmm.study.compare.kvm.trial import KvmTestbed, Untried
from daxfault.vmm.study.compare.trial import DEAD

COSTS = (LATENCY, CPU)

_SAMPLES = 80  # pages; all lie past what the truncation leaves


async def latency_and_cpu(place: KvmTestbed, mechanism: Mechanism) -> tuple[dict[str, Cell], list[float]]:
    """Cause one error per page, one after another; -> a cell for each of COSTS, and the times in us.  The
    first error is reported separately, because it may include detecting and ending the loop."""
    try:
        cells, samples = await _measure(place, mechanism)
    except Untried as e:
        untried = Cell(Outcome.UNTRIED, "not here", str(e))
        cells, samples = (untried, untried), []
    return {column.name: cell for column, cell in zip(COSTS, cells, strict=True)}, samples


async def _measure(place: KvmTestbed, mechanism: Mechanism) -> tuple[tuple[Cell, Cell], list[float]]:
    async with place.trial(mechanism) as t:
        await t.guest.run(Step(Op.LOAD, offset=DEAD, repeat=_SAMPLES, stride=PAGE_SIZE))
        await t.truncated()
        samples: list[float] = []
        began, burnt = time.perf_counter(), time.process_time()
        for page in range(_SAMPLES + 1):
            step = Step(Op.LOAD, offset=DEAD + page * PAGE_SIZE)
            end = await t.access(step)
            cell = judge(end, Wanted(Outcome.SIGBUS, step.gva))
            if cell.outcome is not Outcome.SIGBUS:
                seconds = time.perf_counter() - began
                never, burns, _ = without_end(cell, time.process_time() - burnt, seconds)
                return (never, burns), []
            samples.append(end.done[0].ns / 1e3 if end.done[0] else 0.0)
            if not page:
                burnt = time.process_time()  # do not count the detection of the loop
        each = (time.process_time() - burnt) / _SAMPLES
    first, *samples = samples
    p50, p99 = percentile(samples, 0.5), percentile(samples, 0.99)
    delivered = Cell(
        Outcome.MEASURED,
        f"{p50:,.0f} us, p99 {p99:,.0f}",
        f"{_SAMPLES} pages, one error each; the one before them {first / 1e3:,.1f} ms",
        numbers={"p50_us": p50, "p99_us": p99, "first_us": first},
    )
    burns = Cell(
        Outcome.MEASURED,
        f"{each * 1e3:.2f} ms each",
        "host and guest together, which are one process",
        numbers={"seconds": each},
    )
    return (delivered, burns), samples
