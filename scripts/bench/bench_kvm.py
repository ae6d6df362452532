#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Time the end of a KVM guest's loop: detection, rescue, report to the guest.

Owns the order of the measurements: every contender runs once per round, so that noise of the machine
affects all of them.  Shows medians and 99th percentiles over the rounds; only ratios of medians of one
run may be quoted.

    noticed     from the call that truncates the file to the detector's suspicion, while the
                guest goes on touching what is cut off; with and without async page faults
    rescued     from the suspicion to the end of the rescue
    exited      from the suspicion to the return of KVM_RUN
    told        from the guest's access to its error handler and back, in a tail that fails
                openly already: by the guest's TSC, for each injection
    COPY, POISON  the same for a page that userfaultfd brings, or poisons

Run it with the interpreter of the tree: .venv/bin/python scripts/bench/bench_kvm.py
"""

from __future__ import annotations

import contextlib
import os
import platform
import statistics
import time
from collections.abc import AsyncIterator, Callable
from typing import Annotated

import trio
import typer
from rich.table import Column, Table

from daxfault.native import PAGE_SIZE
from daxfault.native.kvm_script import Got, Op, Step, async_pf
from daxfault.vmm.cli import output
from daxfault.vmm.errors import DaxfaultError
from daxfault.vmm.kvm.inject import Injection
from daxfault.vmm.kvm.machine import Machine, machine
from daxfault.vmm.kvm.uffd_memory import AnonymousMemory, Reply
from daxfault.vmm.kvm.window import FileMemory, Memory, Rescue
from daxfault.vmm.study.compare.cost import percentile

PAGES = 128  # of the file
CUT = 64  # of them are left
PER_ROUND = 16  # errors per injection, one per page
TARGETS_MS = {"noticed": 10.0, "rescued": 1.0}
_FOR_EVER = 1 << 31

Samples = dict[str, list[float]]  # what -> ms


def note(samples: Samples, what: str, ms: float) -> None:
    samples.setdefault(what, []).append(ms)


@contextlib.asynccontextmanager
async def over_file(rescue: Rescue, injection: Injection) -> AsyncIterator[tuple[Machine, int]]:
    """A guest over a memfd, and a descriptor to truncate it by."""
    fd = os.memfd_create("window", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, PAGES * PAGE_SIZE)
        async with machine(lambda: FileMemory(os.dup(fd)), rescue=rescue, injection=injection) as guest:
            yield guest, fd
    finally:
        os.close(fd)


async def loop(rescue: Rescue, samples: Samples, *, apf: bool) -> None:
    """Truncate the file under a guest that touches it repeatedly."""
    async with over_file(rescue, Injection.AREA) as (guest, fd):
        if apf:
            await guest.run(async_pf())
        dead = CUT * PAGE_SIZE
        guest.start(Step(Op.LOAD, offset=dead, repeat=_FOR_EVER))
        await touching(guest)
        began = time.monotonic_ns()
        os.ftruncate(fd, dead)
        with trio.fail_after(10):
            while not guest.reported:  # noqa: ASYNC110 - nobody else waits for this
                await trio.sleep(0.002)
        (rescued,), told = guest.rescued, guest.reported[0]
        seen = rescued.at - int(rescued.work * 1e9)
        note(samples, f"noticed, async page faults {'on' if apf else 'off'}", (seen - began) / 1e6)
        note(samples, f"rescued, {rescue}", rescued.work * 1e3)
        note(samples, f"exited, {rescue}", (told.at - told.ns - seen) / 1e6)


async def touching(guest: Machine) -> None:
    """Wait until the guest has started."""
    before = guest.kvm.cpu_seconds(0)
    with trio.fail_after(10):
        while guest.kvm.cpu_seconds(0) - before < 0.002:  # noqa: ASYNC110
            await trio.sleep(0.0005)


async def errors(injection: Injection, samples: Samples) -> None:
    """Errors in a tail whose accesses cause exits."""
    async with over_file(Rescue.UNMAP, injection) as (guest, fd):
        os.ftruncate(fd, CUT * PAGE_SIZE)
        await touched(guest, f"told, {injection}", samples, first=CUT, wanted=Got.SIGBUS)


async def faults(reply: Reply, samples: Samples) -> None:
    """Pages of memory that userfaultfd serves, page by page."""

    def memory() -> Memory:
        return AnonymousMemory(reply)

    wanted = Got.OK if reply is Reply.COPY else Got.SIGBUS
    async with machine(memory, injection=Injection.AREA) as guest:
        await touched(guest, f"uffd {reply.name}", samples, first=0, wanted=wanted)


async def touched(guest: Machine, what: str, samples: Samples, *, first: int, wanted: Got) -> None:
    await guest.run(async_pf())
    # the first one may wait for a rescue, and is not counted
    await guest.run(Step(Op.LOAD, offset=first * PAGE_SIZE))
    steps = [Step(Op.LOAD, offset=(first + 1 + n) * PAGE_SIZE) for n in range(PER_ROUND)]
    results = await guest.run(*steps)
    khz = guest.kvm.tsc_khz(0)
    for result in results:
        if result.got is not wanted:
            raise DaxfaultError(f"{what}: the guest got {result.got.name}")
        note(samples, what, result.tsc / khz)


async def one_round(samples: Samples, tick: Callable[[], None]) -> None:
    for rescue in Rescue:
        for apf in (True, False):
            await loop(rescue, samples, apf=apf)
            tick()
    for injection in Injection:
        await errors(injection, samples)
        tick()
    for reply in Reply:
        await faults(reply, samples)
        tick()


STEPS = 2 * len(Rescue) + len(Injection) + len(Reply)


def summary(samples: Samples) -> dict[str, dict[str, float | bool | None]]:
    """Medians and percentiles; `met`: below the target, null where there is none."""
    found = {}
    for what, ms in sorted(samples.items()):
        target = TARGETS_MS.get(what.split(",")[0])
        p50, p99 = statistics.median(ms), percentile(ms, 0.99)
        met = None if target is None else max(p50, p99) < target
        found[what] = {"p50_ms": p50, "p99_ms": p99, "count": len(ms), "target_ms": target, "met": met}
    base = found["uffd COPY"]["p50_ms"]
    for what, row in found.items():
        row["of_copy"] = row["p50_ms"] / base if what.startswith(("told", "uffd")) else None
    return found


def table(found: dict[str, dict[str, float | bool | None]]) -> Table:
    numbers = ("p50 ms", "p99 ms", "samples", "target", "of a COPY")
    shown = output.table(
        Column("", no_wrap=True),
        *(Column(name, justify="right", no_wrap=True, min_width=len(name)) for name in numbers),
    )
    for what, row in found.items():
        target = ""
        if row["target_ms"] is not None:
            target = f"< {row['target_ms']:g} ms {'✓' if row['met'] else '✗'}"
        ratio = "" if row["of_copy"] is None else f"{row['of_copy']:.2f} x"
        shown.add_row(what, f"{row['p50_ms']:.3f}", f"{row['p99_ms']:.3f}", f"{row['count']}", target, ratio)
    return shown


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of every contender.")] = 30,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """How long a KVM guest's loop is noticed after, ended in, and told of.

    Medians and 99th percentiles; a target is met when both are below it.
    """
    samples: Samples = {}

    async def all_rounds(tick: Callable[[], None]) -> None:
        for _ in range(rounds):
            await one_round(samples, tick)

    with output.measuring(rounds * STEPS) as advance:
        trio.run(all_rounds, advance)
    found = summary(samples)
    if as_json:
        run = {"kernel": platform.release(), "rounds": rounds, "cpus": len(os.sched_getaffinity(0))}
        output.show_json({**run, "results": found})
    else:
        output.show(table(found))


if __name__ == "__main__":
    typer.run(main)
