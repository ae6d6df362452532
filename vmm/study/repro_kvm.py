# SPDX-License-Identifier: Apache-2.0
"""Runs the stories on a KVM guest: a file of our mount is the guest's memory, it is truncated, the guest
touches it.

Owns the order of events and the expectations.  Must not print.  Each loop is first watched without a
rescue, then ended, and the error is reported to the guest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import trio

from daxfault import fsd
from daxfault.native import PAGE_SIZE, RANGE_SIZE
from daxfault.native.kvm import Via, unsupported
from daxfault.native.kvm_script import Got, Op, Result, Step, async_pf
from daxfault.vmm.errors import Unsupported
from daxfault.vmm.host.scratch import scratch
from daxfault.vmm.kvm.inject import Injection
from daxfault.vmm.kvm.machine import Machine, machine
from daxfault.vmm.kvm.window import FileMemory, Rescue
from daxfault.vmm.study import story
from daxfault.vmm.study.story import Progress

MANY = 20  # faults without one resolved, for a loop
_SLOW_SECONDS = 5.0  # additional time to watch, on a busy machine


@dataclasses.dataclass(frozen=True, slots=True)
class Watched:
    """A loop, watched without a rescue.  `faults`: KVM's count (pf_guest with async page faults, otherwise
    pf_taken); `fixed`: those that it resolved; `guest`: the guest's count of pages not present, None
    when it cannot count them; `cpu`: CPU time of the vCPU's thread in seconds."""

    seconds: float
    faults: int
    fixed: int
    guest: int | None
    exits: int
    cpu: float

    @property
    def rate(self) -> float:
        """Faults per second."""
        return self.faults / self.seconds


@dataclasses.dataclass(frozen=True, slots=True)
class Access:
    """One access.  `address`: the gva that was reported to the guest; `detect_ms`: from the first observed
    fault to the suspicion; `rescue_ms`: the rescue; `answer_us`: from the exit to the resume."""

    what: str
    got: str
    expected: str
    address: int | None
    expected_address: int | None
    done: int
    watched: Watched | None = None
    via: str = ""
    known_by: str = ""
    rescue: str = ""
    detect_ms: float | None = None
    rescue_ms: float | None = None
    answer_us: float | None = None
    ok: bool = False

    def as_json(self) -> dict[str, Any]:
        """Addresses are gvas."""
        fields = story.with_hexadecimal(dataclasses.asdict(self), "address", "expected_address")
        if self.watched is not None:
            fields["watched"]["rate"] = self.watched.rate
        return fields


Story = story.Story[Access]
Outcome = story.Outcome[Access]


def check_machine() -> None:
    """Unsupported when there is no KVM that can run the guest."""
    why = unsupported()
    if why is not None:
        raise Unsupported(f"{why}; --guest standin reproduces the same without KVM")


async def run(
    *,
    file: Path | None = None,
    vias: Sequence[str] = story.VIAS,
    seconds: float = 0.5,
    progress: Progress = lambda _: None,
) -> Outcome:
    """Run the stories on a copy of `file`.  `seconds` is how long each loop is watched.

    Raises UsageError, Unsupported, GuestEnded, fsd.MountError or OSError, possibly in exception groups
    of one.
    """
    stories = []
    with scratch() as directories:
        backing, mount = directories.backing, directories.mount
        async with fsd.mounted(fsd.Filesystem(backing), mount):
            for via in vias:
                progress(f"a KVM guest, truncated {story.through(via)}")
                size = await trio.to_thread.run_sync(story.make_file, backing / via, file)
                play = _Play(backing / via, mount / via, via, size, seconds, progress)
                stories.append(await play.run())
    return Outcome("kvm", file, tuple(stories))


class _Play:
    """A running story."""

    def __init__(
        self, backing: Path, path: Path, via: str, size: int, seconds: float, progress: Progress
    ) -> None:
        self._backing = backing
        self._path = path
        self._via = via
        self._size = size
        self._seconds = seconds
        self._progress = progress
        self._cut = story.cut_of(size)
        self._first = self._cut // RANGE_SIZE * RANGE_SIZE  # where in the file the window begins
        self._dead = (self._cut + PAGE_SIZE - 1) // PAGE_SIZE * PAGE_SIZE - self._first
        self._accesses: list[Access] = []

    async def run(self) -> Story:
        async with self._guest() as guest:
            await self._before(guest)
            noticed = await self._truncate()
            (tail,) = await guest.run(Step(Op.READ, offset=self._cut - self._first, length=32))
            self._note("read the tail of the last page", tail, Got.OK, right=tail.data == bytes(32))
            await self._loops(guest)
            copy = Step(Op.READ, offset=self._dead - 16, length=64, ring=0, table=True)
            (result,) = await guest.run(copy)
            self._note("guest kernel copy, table entry", result, Got.FIXUP, done=16, guest=guest)
            await trio.to_thread.run_sync(os.truncate, self._backing, self._size)
            await self._noticed(self._size)
            await guest.revive()
            (grown,) = await guest.run(Step(Op.READ, offset=self._dead + PAGE_SIZE, length=32))
            self._note("the file grown again: zeros", grown, Got.OK, right=grown.data == bytes(32))
        return Story(None, self._via, self._size, self._cut, noticed, tuple(self._accesses))

    @contextlib.asynccontextmanager
    async def _guest(self) -> AsyncIterator[Machine]:
        def memory() -> FileMemory:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            return FileMemory(fd, self._first, writable=False)

        async with machine(memory, rescue=None, injection=Injection.AREA) as guest:
            yield guest

    async def _before(self, guest: Machine) -> None:
        at = self._cut - 16
        data = await trio.to_thread.run_sync(self._backing.read_bytes)
        across, dead = await guest.run(
            Step(Op.READ, offset=at - self._first, length=32), Step(Op.LOAD, offset=self._dead)
        )
        self._note("read across the cut", across, Got.OK, right=across.data == data[at : at + 32])
        right = dead.data[0] == data[self._first + self._dead]
        self._note("touch what will be cut off", dead, Got.OK, right=right)

    async def _truncate(self) -> float:
        began = trio.current_time()
        path = self._path if self._via == "mount" else self._backing
        await trio.to_thread.run_sync(os.truncate, path, self._cut)
        await self._noticed(self._cut)
        return (trio.current_time() - began) * 1e3

    async def _noticed(self, size: int) -> None:
        """Wait until the kernel uses `size` for the mount's file: fsd notifies it of changes behind the
        mount, and it asks for the size at the next call."""
        with trio.fail_after(story.NOTICE_SECONDS):
            # no event reports it
            while (await trio.to_thread.run_sync(os.stat, self._path)).st_size != size:  # noqa: ASYNC110
                await trio.sleep(0.0005)

    async def _loops(self, guest: Machine) -> None:
        step = Step(Op.LOAD, offset=self._dead + PAGE_SIZE + 5)
        await self._loop(guest, "user access, async page faults off", step, Rescue.POISON, counts=False)
        await guest.run(async_pf())
        await self._loop(guest, "user access, async page faults on", step, Rescue.UNMAP, counts=True)

    async def _loop(self, guest: Machine, what: str, step: Step, rescue: Rescue, *, counts: bool) -> None:
        self._progress(f"{what}: watching")
        watched, runs = await self._watch(guest, step, counts=counts)
        loops = runs and watched.faults >= MANY and watched.fixed < watched.faults // 10
        if counts:
            # it was stopped at any time: KVM may have counted a fault that the guest has not seen yet
            loops &= watched.guest is not None and watched.faults - watched.guest in (0, 1)
        at = step.gva
        self._accesses.append(
            Access(
                what,
                "loop" if loops else "no loop",
                "loop",
                None,
                None,
                0,
                watched,
                ok=loops,
            )
        )
        began = len(guest.rescued)
        guest.rescue = rescue
        (result,) = await guest.finish(1)
        guest.rescue = None
        self._note("the same, with a rescue", result, Got.SIGBUS, address=at, guest=guest, rescued=began)
        # the next loop needs the tail as the truncation left it
        await guest.revive()

    async def _watch(self, guest: Machine, step: Step, *, counts: bool) -> tuple[Watched, bool]:
        """Start the step, and watch it for the requested time, longer if it is slow.  The vCPU is stopped
        while the counts are read; -> the counts, and whether the step was still running."""
        kvm, box = guest.kvm, guest.vcpus[0].mailbox
        name = "pf_guest" if counts else "pf_taken"
        before, seen, cpu = kvm.stats(0), box.counts().not_present, kvm.cpu_seconds(0)
        began = trio.current_time()
        guest.start(step)
        with trio.move_on_after(self._seconds + _SLOW_SECONDS):
            await trio.sleep(self._seconds)
            while guest.vcpus[0].running and kvm.stats(0)[name] - before[name] < MANY:  # noqa: ASYNC110
                await trio.sleep(0.001)  # a loop causes no event
        async with guest.paused() as runs:
            now, seconds = kvm.stats(0), trio.current_time() - began
            watched = Watched(
                seconds=seconds,
                faults=now[name] - before[name],
                fixed=now["pf_fixed"] - before["pf_fixed"],
                guest=box.counts().not_present - seen if counts else None,
                exits=now["exits"] - before["exits"],
                cpu=kvm.cpu_seconds(0) - cpu,
            )
        return watched, runs

    def _note(
        self,
        what: str,
        result: Result,
        expected: Got,
        *,
        right: bool = True,
        address: int | None = None,
        done: int | None = None,
        guest: Machine | None = None,
        rescued: int | None = None,
    ) -> None:
        failed = result.got in (Got.SIGBUS, Got.FIXUP)
        if expected is Got.FIXUP:
            address = Step(Op.READ, offset=self._dead, ring=0).gva
        told = guest.reported[-1] if guest is not None and guest.reported else None
        rescue = guest.rescued[rescued] if guest and rescued is not None and guest.rescued[rescued:] else None
        ok = right and result.got is expected and (done is None or result.done == done)
        ok &= (result.address if failed else None) == address
        ok &= rescued is None or rescue is not None
        self._accesses.append(
            Access(
                what=what,
                got=result.got.name.lower(),
                expected=expected.name.lower(),
                address=result.address if failed else None,
                expected_address=address,
                done=result.done,
                via=result.via.name.lower() if result.via is not Via.NONE else "",
                known_by=told.fault.by if told else "",
                rescue=rescue.how.value if rescue else "",
                detect_ms=rescue.suspicion.seconds * 1e3 if rescue else None,
                rescue_ms=rescue.work * 1e3 if rescue else None,
                answer_us=told.ns / 1e3 if told else None,
                ok=ok,
            )
        )
