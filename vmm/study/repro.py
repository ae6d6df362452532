# SPDX-License-Identifier: Apache-2.0
"""Runs the stories on the stand-in: a guest maps a file of our mount, the file is truncated, the guest
touches it.

Owns the order of events and the expectations.  Must not print.  A story is one design and one way to
truncate; every observation is measured.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import trio

from daxfault import fsd, native
from daxfault.native import PAGE_SIZE, RANGE_SIZE, Delivery, Wait
from daxfault.vmm.designs import DESIGNS
from daxfault.vmm.host.host import Host, hosting
from daxfault.vmm.host.scratch import scratch
from daxfault.vmm.host.watchdog import Loop, Watchdog
from daxfault.vmm.names import DesignName
from daxfault.vmm.study import story
from daxfault.vmm.study.cpu_time import cpu_seconds
from daxfault.vmm.study.standin import Done, StandIn, standin
from daxfault.vmm.study.story import Progress

STORIES = (DesignName.MAINLINE, DesignName.REPORT)  # the designs that are reproduced


@dataclasses.dataclass(frozen=True, slots=True)
class Access:
    """One access of the guest after the truncation.

    `outcome` is the stand-in's, or "loop", or "stopped": the vCPU is not resumed.  When it looped,
    `cycles` in `seconds` counts fault -> error -> "ready" on that page; `told`: the guest was notified
    each time, otherwise its vCPU was only halted.  `cpu`: CPU time of host and guest, in seconds.
    """

    what: str
    offset: int
    outcome: str
    address: int | None
    expected_address: int | None
    si_code: int | None
    error: str
    done: int
    ns: int
    cycles: int
    seconds: float
    told: bool
    cpu: float
    expected: str
    ok: bool

    @property
    def rate(self) -> float:
        """Cycles per second."""
        return self.cycles / self.seconds if self.seconds else 0.0

    def as_json(self) -> dict[str, Any]:
        """`ns` in nanoseconds, `rate` in cycles per second, `cpu` and `seconds` in seconds."""
        fields = dataclasses.asdict(self) | {"rate": self.rate}
        return story.with_hexadecimal(fields, "address", "expected_address")


Story = story.Story[Access]
Outcome = story.Outcome[Access]


async def run(
    *,
    file: Path | None = None,
    designs: Sequence[str] = STORIES,
    vias: Sequence[str] = story.VIAS,
    seconds: float = 0.5,
    progress: Progress = lambda _: None,
) -> Outcome:
    """Run every story on a copy of `file`.  `seconds` is how long a loop is watched.

    Raises UsageError, Unsupported, fsd.MountError or OSError, possibly in exception groups of one.
    """
    story.check_file(file)
    stories = []
    async with _testbed(file, seconds) as testbed:
        for design in designs:
            for via in vias:
                progress(f"{design}, truncated {story.through(via)}")
                stories.append(await _story(testbed, design, via, progress))
    return Outcome("standin", file, tuple(stories))


@dataclasses.dataclass(slots=True)
class _Testbed:
    """The mount, the host, and the file to copy."""

    backing: Path
    mount: Path
    file: Path | None
    seconds: float
    host: Host
    nursery: trio.Nursery


@contextlib.asynccontextmanager
async def _testbed(file: Path | None, seconds: float) -> AsyncIterator[_Testbed]:
    with scratch() as directories:
        fs = fsd.Filesystem(directories.backing)
        watchdog = Watchdog(seconds=seconds)
        async with fsd.mounted(fs, directories.mount), hosting(fs, watchdog=watchdog) as (host, nursery):
            yield _Testbed(directories.backing, directories.mount, file, seconds, host, nursery)


async def _story(testbed: _Testbed, design: str, via: str, progress: Progress) -> Story:
    name = f"{design}-{via}"
    backing, path = testbed.backing / name, testbed.mount / name
    size = await trio.to_thread.run_sync(story.make_file, backing, testbed.file)
    cut = story.cut_of(size)
    first = cut // RANGE_SIZE * RANGE_SIZE
    async with standin(testbed.host, testbed.nursery, DESIGNS[design], window=2 * RANGE_SIZE) as guest:
        await guest.open("file", path, "rw")
        base = await guest.map("file", first, 2 * RANGE_SIZE, 0, "w")
        recorder = _Recorder(testbed, guest, base, first, progress)
        dead = (cut + PAGE_SIZE - 1) // PAGE_SIZE * PAGE_SIZE
        await recorder.before(backing, cut, dead)
        noticed = await _truncate(testbed, guest, via, name, cut)
        await recorder.after(design, cut, dead)
        os.truncate(backing, size)
        await _noticed(guest, name, size)
        await recorder.regrown(dead)
    return Story(design, via, size, cut, noticed, tuple(recorder.accesses))


async def _truncate(testbed: _Testbed, guest: StandIn, via: str, name: str, cut: int) -> float:
    """Truncate the file; -> milliseconds until the host has applied it."""
    began = trio.current_time()
    path = (testbed.mount if via == "mount" else testbed.backing) / name
    await trio.to_thread.run_sync(os.truncate, path, cut)
    if via == "behind":
        await _noticed(guest, name, cut)
    return (trio.current_time() - began) * 1e3


async def _noticed(guest: StandIn, name: str, size: int) -> None:
    """Wait until the file server has seen a change behind the mount."""
    with trio.fail_after(story.NOTICE_SECONDS):
        file = guest.session.file(name)
        # no event reports that the change was applied
        while (state := file.state()).known_size != size or state.retrying:  # noqa: ASYNC110
            await trio.sleep(0.0005)


class _Recorder:
    """Makes accesses and records their results."""

    def __init__(self, testbed: _Testbed, guest: StandIn, base: int, first: int, progress: Progress) -> None:
        self.accesses: list[Access] = []
        self._testbed = testbed
        self._guest = guest
        self._base = base
        self._first = first
        self._progress = progress

    async def before(self, backing: Path, cut: int, dead: int) -> None:
        """Check that the guest sees the file's bytes, including those to be cut off."""
        with backing.open("rb") as file:
            data = os.pread(file.fileno(), 32, cut - 16)
        await self._access("read", "read across the cut", cut - 16, 32, "ok", value=data.hex())
        await self._access("touch", "touch what will be cut off", dead + 5, 0, "ok")

    async def after(self, design: str, cut: int, dead: int) -> None:
        loops = design == DesignName.MAINLINE
        await self._access("read", "read the tail of the last page", cut, 32, "ok", value="00" * 32)
        await self._access(
            "touch", "user access to a dead page", dead + PAGE_SIZE + 5, 0, "loop" if loops else "sigbus"
        )
        await self._access(
            "kcopy", "guest kernel copy, table entry", dead - 16, 64, "loop" if loops else "efault", done=16
        )
        await self._access(
            "irqoff kcopy",
            "guest kernel, interrupts off",
            dead + 3 * PAGE_SIZE,
            64,
            "stopped" if loops else "efault",
            done=0,
            vcpu=1,  # it is out of use then
        )
        await self._access(
            "sys_write", "real system call", dead + 2 * PAGE_SIZE, 64, "loop" if loops else "efault"
        )

    async def regrown(self, dead: int) -> None:
        await self._access("read", "the file grown again: zeros", dead + PAGE_SIZE, 16, "ok", value="00" * 16)

    async def _access(
        self,
        op: str,
        what: str,
        offset: int,
        length: int,
        expected: str,
        *,
        value: str | None = None,
        done: int | None = None,
        vcpu: int = 0,
    ) -> None:
        self._progress(what)
        at = offset - self._first
        text = f"{op} {at}" + (f" {length}" if length else "")
        self._testbed.host.loops.clear()
        began = cpu_seconds(self._guest.process.pid)
        got = await self._end_of(vcpu, text)
        loops = tuple(self._testbed.host.loops)
        cpu = cpu_seconds(self._guest.process.pid) - began
        self.accesses.append(self._recorded(op, what, offset, expected, got, loops, cpu, value, done))

    async def _end_of(self, vcpu: int, text: str) -> Done:
        """The result of the access; "stopped" when the host does not resume its vCPU."""
        wait = await self._guest.start(vcpu, text)
        began = trio.current_time()
        got: list[Done] = []

        async def take() -> None:
            got.append(await wait())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(take)
            # the policy thread cannot set a trio event
            while not got and not self._stopped(vcpu):  # noqa: ASYNC110
                await trio.sleep(0.001)
            nursery.cancel_scope.cancel()
        if got:
            return got[0]
        ns = int((trio.current_time() - began) * 1e9)
        return Done("stopped", None, None, errno.EFAULT, 0, None, ns, {})

    def _stopped(self, vcpu: int) -> bool:
        pid = self._guest.process.pid
        return any(
            r.pid == pid and r.delivery is Delivery.STOP and r.failure.vcpu == vcpu
            for r in self._testbed.host.records
        )

    def _recorded(
        self,
        op: str,
        what: str,
        offset: int,
        expected: str,
        got: Done,
        loops: tuple[Loop, ...],
        cpu: float,
        value: str | None,
        done: int | None,
    ) -> Access:
        loop = loops[0] if loops else None
        fault = (offset if op == "touch" else (offset + PAGE_SIZE - 1) // PAGE_SIZE * PAGE_SIZE) - self._first
        kernel = op.endswith("kcopy") and got.outcome != "stopped"
        address = self._base + fault if got.outcome == "sigbus" or kernel else None
        outcome = "loop" if loop else got.outcome
        ok = outcome == expected and got.address == address
        ok &= value is None or got.value == value
        ok &= done is None or got.done == done
        if loop is not None:
            # the watchdog detected this access, which made no progress
            ok &= loop.page == (self._base + fault) // PAGE_SIZE * PAGE_SIZE and loop.cycles >= 100
        return Access(
            what=what,
            offset=offset,
            outcome=outcome,
            address=got.address,
            expected_address=address,
            si_code=got.si_code,
            error=errno.errorcode.get(loop.failure.error if loop else got.error, "-"),
            done=got.done,
            ns=got.ns,
            cycles=loop.cycles if loop else 0,
            seconds=loop.seconds if loop else 0.0,
            told=loop is not None and loop.failure.wait is Wait.TOLD,
            cpu=cpu,
            expected=expected,
            ok=ok,
        )


def check_machine() -> None:
    """Raise OSError when faults cannot be served on this machine."""
    native.uffd_probe()
