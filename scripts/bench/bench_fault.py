#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Time a guest's first touches, compared with the handler of the userfaultfd(2) example.

Owns the order of the measurements: every contender runs once per round, so that noise of the machine
affects all of them.  Shows medians over the rounds; only ratios of medians of one run may be quoted.

    contender        resolves a fault by
    man page         poll, read, UFFDIO_COPY of one page out of one buffer
    man page, file   the same with pread of a warm file first
    engine           the fault engine: a warm file, nothing in its page cache
    engine, cached   the same again: everything in its page cache, nothing mapped

Errors are timed from the access to its end: past EOF under `report`, by a signal to the thread (user) or
by poison (system call), both of which go through Python.

Run it with the interpreter of the tree: .venv/bin/python scripts/bench/bench_fault.py
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Annotated, Any

import trio
import typer
from rich.table import Column, Table

from daxfault import native
from daxfault.vmm.cli import output
from daxfault.vmm.designs import DESIGNS
from daxfault.vmm.host.host import hosting
from daxfault.vmm.host.plain_files import PlainFiles
from daxfault.vmm.study.standin import standin

CONTENDERS = ("man page", "man page, file", "engine", "engine, cached")
BASE = CONTENDERS[0]
# order -> (bytes between touches, seed: 0 ascending, otherwise random).  In the sparse order, pages mapped
# around a fault are never touched: each touch is a fault for every contender, and p50 and p99 are those
# of a fault.
ORDERS = {
    "sequential": (native.PAGE_SIZE, 0),
    "random": (native.PAGE_SIZE, 7),
    "sparse": (16 * native.PAGE_SIZE, 7),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Laps:
    """One guest's first touches.  All times in ns; `faults`: faults of the handler."""

    total: int
    p50: int
    p99: int
    faults: int
    touches: int


def man_page(pages: int, stride: int, seed: int, file: Path | None) -> Laps:
    """One run of the example's handler: every touch is a fault."""
    program = native.program("daxfault-bench-manpage")
    command = [str(program), str(pages), str(stride), str(seed), *([str(file)] if file else [])]
    laps = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return Laps(laps["total"], laps["p50"], laps["p99"], laps["count"], laps["count"])


async def engine(pages: int, stride: int, seed: int, file: Path, cpus: set[int]) -> tuple[Laps, Laps]:
    """One guest of the engine: first cold, then with all pages cached and none mapped."""
    length = pages * native.PAGE_SIZE
    async with (
        hosting(PlainFiles()) as (host, nursery),
        standin(host, nursery, DESIGNS["report"], window=length) as guest,
    ):
        pin(cpus)  # the engine's threads too
        await guest.open("file", file, "ro")
        await guest.map("file", 0, length, 0, "r")
        found = []
        for _ in range(2):
            before = host.engine.counters().faults
            raw = (await guest.access(0, f"laps 0 {length} {stride} {seed}")).raw
            faults = host.engine.counters().faults - before
            found.append(Laps(raw["total"], raw["p50"], raw["p99"], faults, raw["count"]))
            await guest.access(0, f"dontneed 0 {length}")
        return found[0], found[1]


async def errors(count: int, file: Path, cpus: set[int]) -> dict[str, list[int]]:
    """Times in ns of accesses to `count` pages past EOF, each page once, by both kinds of access."""
    length = (2 * count * native.PAGE_SIZE + native.RANGE_SIZE) // native.RANGE_SIZE * native.RANGE_SIZE
    found: dict[str, list[int]] = {"user access, SIGBUS": [], "system call, EFAULT": []}
    file.write_bytes(b"x")  # noqa: ASYNC240 - nobody else is waiting
    async with (
        hosting(PlainFiles()) as (host, nursery),
        standin(host, nursery, DESIGNS["report"], window=length) as guest,
    ):
        pin(cpus)
        await guest.open("file", file, "ro")
        await guest.map("file", 0, length, 0, "r")
        for page in range(1, count + 1):
            for kind, access in zip(found, ("touch {}", "sys_write {} 64"), strict=True):
                offset = page * native.PAGE_SIZE
                found[kind].append((await guest.access(0, access.format(offset))).ns)
    return found


def pin(cpus: set[int]) -> None:
    """Pin every thread of this process, and its children, to these CPUs."""
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), cpus)


def measure(pages: int, rounds: int, cpus: set[int], tick: Any) -> dict[str, dict[str, list[Laps]]]:
    """order -> contender -> laps of each round."""
    results: dict[str, dict[str, list[Laps]]] = {o: {c: [] for c in CONTENDERS} for o in ORDERS}
    with tempfile.TemporaryDirectory(prefix="daxfault-") as top:
        file = Path(top, "file")
        file.write_bytes(os.urandom(pages * native.PAGE_SIZE))
        pin(cpus)
        for _ in range(rounds):
            for order, (stride, seed) in ORDERS.items():
                found = results[order]
                found["man page"].append(man_page(pages, stride, seed, None))
                found["man page, file"].append(man_page(pages, stride, seed, file))
                cold, cached = trio.run(engine, pages, stride, seed, file, cpus)
                found["engine"].append(cold)
                found["engine, cached"].append(cached)
                tick()
    return results


def summary(laps: list[Laps]) -> dict[str, float]:
    """Medians over the rounds; times in ns, rates per second."""
    total = statistics.median(lap.total for lap in laps)
    return {
        "touch_ns": total / laps[0].touches,
        "p50_ns": statistics.median(lap.p50 for lap in laps),
        "p99_ns": statistics.median(lap.p99 for lap in laps),
        "touches_per_second": laps[0].touches / total * 1e9,
        "faults": statistics.median(lap.faults for lap in laps),
        "faults_per_second": statistics.median(lap.faults for lap in laps) / total * 1e9,
    }


def table(order: str, rows: dict[str, dict[str, float]]) -> Table:
    numbers = ("p50 us", "p99 us", "us/touch", "faults", "faults/s", "speed")
    shown = output.table(
        Column("handler", no_wrap=True),
        *(Column(name, justify="right", no_wrap=True) for name in numbers),
        title=f"{order} order",
    )
    for name, row in rows.items():
        shown.add_row(
            name,
            f"{row['p50_ns'] / 1e3:.2f}",
            f"{row['p99_ns'] / 1e3:.2f}",
            f"{row['touch_ns'] / 1e3:.2f}",
            f"{row['faults']:,.0f}",
            f"{row['faults_per_second']:,.0f}",
            f"{row['speedup']:.2f} x",
        )
    return shown


def main(
    pages: Annotated[int, typer.Option(min=512, help="Pages touched per run; a multiple of 512.")] = 16384,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; medians are shown.")] = 5,
    spread: Annotated[bool, typer.Option(help="Guest and handler on any CPU, not on one.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Per-fault latency and faults per second, compared with the userfaultfd(2) example's handler.

    `speed` is the time of all touches with the man page's handler, divided by that of the contender.
    """
    pages = (pages + 511) // 512 * 512
    allowed = os.sched_getaffinity(0)
    cpus = allowed if spread else {min(allowed)}
    with output.measuring(rounds * len(ORDERS)) as advance:
        results = measure(pages, rounds, cpus, advance)
        with tempfile.TemporaryDirectory(prefix="daxfault-") as top:
            latencies = trio.run(errors, 500, Path(top, "file"), cpus)
    ended = {
        kind: {"p50_ns": statistics.median(ns), "p99_ns": sorted(ns)[len(ns) * 99 // 100]}
        for kind, ns in latencies.items()
    }
    shown: dict[str, dict[str, dict[str, float]]] = {}
    for order, found in results.items():
        rows = {name: summary(laps) for name, laps in found.items()}
        base = rows[BASE]["touch_ns"]
        for row in rows.values():
            row["speedup"] = base / row["touch_ns"]
        shown[order] = rows
    if as_json:
        where = "any CPU" if spread else "one CPU"
        run = {"kernel": platform.release(), "pages": pages, "rounds": rounds, "cpus": where}
        output.show_json({**run, "orders": shown, "errors": ended})
        return
    output.show(*(table(order, rows) for order, rows in shown.items()))
    for kind, row in ended.items():
        print(f"{kind}: p50 {row['p50_ns'] / 1e3:.0f} us, p99 {row['p99_ns'] / 1e3:.0f} us")


if __name__ == "__main__":
    typer.run(main)
