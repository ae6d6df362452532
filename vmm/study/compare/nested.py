# SPDX-License-Identifier: Apache-2.0
"""Nested guests: does a design deliver an error from the lowest level to the innermost task?

Owns three levels and one access for every design.  The host (L0) serves a file of a mount to a stand-in
(L1), and the host in L1 serves it to another stand-in (L2).  The file is truncated on L0, and a task in
L2 touches a page past its new end.  Every result is observed, with a deadline.  docs/nested.md has a
drawing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import trio

from daxfault import fsd
from daxfault.native import PAGE_SIZE, RANGE_SIZE, Delivery
from daxfault.vmm.designs import DESIGNS, Design
from daxfault.vmm.host.host import Host, hosting
from daxfault.vmm.host.scratch import Scratch, scratch
from daxfault.vmm.study.level1 import Level1, level1
from daxfault.vmm.study.standin import Done, StandIn, standin

Progress = Callable[[str], None]

_PAGES = 64
_CUT = 33 * PAGE_SIZE
_TOUCHED = 40 * PAGE_SIZE + 5
_PATIENCE = 1.0  # seconds until an access that has not ended is examined; L1's deadlines are longer
_LOOK = 0.5  # seconds over which failures are counted
_LOOKS = 20  # at most: a vCPU may be runnable for seconds before a busy machine runs it
_LOOP_RATE = 50  # failures a second of one access; a deadline causes one in ten seconds
_LIMIT = 30.0  # seconds for a design, whatever happens


@dataclasses.dataclass(slots=True)
class Nest:
    """L1, its host, L2, and the address of L2's window; offset 0 of the file is at its start."""

    l1: StandIn
    level: Level1
    l2: StandIn
    base: int


@contextlib.asynccontextmanager
async def nest(host: Host, nursery: trio.Nursery, design: Design, path: Path) -> AsyncIterator[Nest]:
    """Two levels over `path`, a file on the mount that `host` serves, under one design at both."""
    async with standin(host, nursery, design, window=2 * RANGE_SIZE) as l1:
        await l1.open("file", path, "rw")
        await l1.map("file", 0, RANGE_SIZE, 0, "w")
        async with level1(l1, 0, RANGE_SIZE) as level, guest_of(level, design) as l2:
            yield Nest(l1, level, l2, await l2.map("file", 0, RANGE_SIZE, 0, "r"))


@contextlib.asynccontextmanager
async def guest_of(level: Level1, design: Design) -> AsyncIterator[StandIn]:
    """A guest of the host in L1 that has opened the only file."""
    async with standin(level.host, level.guests, design, window=2 * RANGE_SIZE) as l2:
        await l2.open("file", os.devnull, "ro")
        yield l2


@dataclasses.dataclass(frozen=True, slots=True)
class _Count:
    """The number of failures so far, at each level."""

    time: float
    l0: int
    l1: int

    @classmethod
    def now(cls, l0: Host, l1: Host) -> _Count:
        return cls(trio.current_time(), l0.records.total, l1.records.total)


async def run(progress: Progress) -> list[dict[str, Any]]:
    """Run every design, each for a few seconds at most: {design, outcome, detail, rate, address_exact}.

    `outcome`: sigbus, loop, stopped, hang, bytes, or another outcome of L2's access; `rate`: of a loop, in
    failures per second, otherwise None; `address_exact`: None without an address to compare.
    """
    results = []
    with scratch() as place:
        fs = fsd.Filesystem(place.backing)
        async with fsd.mounted(fs, place.mount):
            for name, design in DESIGNS.items():
                progress(f"nested guests: {name}")
                # a new host for each, so that failures of one do not count for another
                async with hosting(fs) as (host, nursery):
                    results.append({"design": name} | await _bounded(host, nursery, design, place))
    return results


async def _bounded(host: Host, nursery: trio.Nursery, design: Design, place: Scratch) -> dict[str, Any]:
    with trio.move_on_after(_LIMIT):
        return await observe(host, nursery, design, place.backing / design.name, place.mount / design.name)
    return _result("hang", f"not even the set-up ended in {_LIMIT:.0f} s")


async def observe(
    host: Host, nursery: trio.Nursery, design: Design, backing: Path, path: Path
) -> dict[str, Any]:
    """Make the file, map it at both levels, truncate it, touch it; see run()."""
    data = os.urandom(_PAGES * PAGE_SIZE)
    await trio.Path(backing).write_bytes(data)
    async with nest(host, nursery, design, path) as n:
        before = await n.l2.access(0, "read 0 16")
        if before.outcome != "ok" or before.value != data[:16].hex():
            return _result("wrong", f"before the truncation L2 read {before.raw}")
        await trio.to_thread.run_sync(os.truncate, path, _CUT, abandon_on_cancel=True)
        wait = await n.l2.start(1, f"touch {_TOUCHED}")
        with trio.move_on_after(_PATIENCE):
            return _ended(await wait(), n.base + _TOUCHED)
        return await _unended(host, n.level.host)


def _result(
    outcome: str, detail: str, rate: float | None = None, address_exact: bool | None = None
) -> dict[str, Any]:
    return {"outcome": outcome, "detail": detail, "rate": rate, "address_exact": address_exact}


def _ended(done: Done, address: int) -> dict[str, Any]:
    took = f"after {done.ns / 1e6:.1f} ms"
    if done.outcome == "ok":
        return _result("bytes", f"L2 read {done.value} where the file has nothing, {took}")
    if done.outcome != "sigbus":
        return _result(done.outcome, f"{done.raw}, {took}")
    exact = done.address == address
    where = "at the exact address" if exact else f"without the address (si_addr {done.address or 0:#x})"
    return _result("sigbus", f"L2's task got SIGBUS {where}, {took}", address_exact=exact)


async def _unended(l0: Host, l1: Host) -> dict[str, Any]:
    """Why L2's access has not ended: the level that loops or has stopped."""
    for _ in range(_LOOKS):
        first = _Count.now(l0, l1)
        await trio.sleep(_LOOK)
        last = _Count.now(l0, l1)
        seconds = last.time - first.time
        at_l0, at_l1 = (last.l0 - first.l0) / seconds, (last.l1 - first.l1) / seconds
        if at_l0 > _LOOP_RATE:
            detail = f"at L0: L1's kernel faults {at_l0:,.0f} times a second on the page, L2 waits for it"
            return _result("loop", detail, rate=at_l0)
        if at_l1 > _LOOP_RATE:
            detail = f"at L1: L2 faults {at_l1:,.0f} times a second on the page"
            return _result("loop", detail, rate=at_l1)
        if _stopped(l0):
            return _result("stopped", "at L0: L1's vCPU is not resumed, L2 waits for it")
        if _stopped(l1):
            return _result("stopped", "at L1: L2's vCPU is not resumed")
    return _result("hang", f"no loop in {_LOOKS * _LOOK:.1f} s, and nothing ended")


def _stopped(host: Host) -> bool:
    return any(record.delivery is Delivery.STOP for record in host.records)
