# SPDX-License-Identifier: Apache-2.0
"""A KVM guest under one mechanism with new memory: the environment of each cell on KVM.

Owns the machine and its file for each trial, and observing how accesses end.  Must not judge the
outcome.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import mmap
import os
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import trio

from daxfault import native
from daxfault.native import PAGE_SIZE, Engine, File
from daxfault.native.kvm import WINDOW_LENGTH, Abilities, Exit
from daxfault.native.kvm_script import Got, Op, Result, Step, async_pf
from daxfault.vmm.host.uffd_features import has
from daxfault.vmm.kvm.inject import Injection
from daxfault.vmm.kvm.machine import (
    FAILED,
    GuestEnded,
    GuestPanicked,
    GuestStopped,
    Machine,
    Vcpu,
    kvm_has_stats,
    machine,
)
from daxfault.vmm.kvm.uffd_memory import AnonymousMemory, CachedMemory, Reply
from daxfault.vmm.kvm.window import FileMemory, Memory, Rescue
from daxfault.vmm.study.compare.cell import Looped
from daxfault.vmm.study.compare.kvm import events
from daxfault.vmm.study.compare.kvm.mechanisms import Mechanism, Under
from daxfault.vmm.study.compare.trial import CUT, DEAD, DEADLINE, PAGES, End, Testbed, make_file
from daxfault.vmm.study.standin import Done

_LOOP_FAULTS = 50
_OUTCOMES = {Got.OK: "ok", Got.SIGBUS: "sigbus", Got.FIXUP: "efault"}


class Untried(Exception):
    """This is not possible here; the message has the reason."""


@dataclasses.dataclass(slots=True)
class KvmTestbed:
    """The mount, shared with the stand-in's trials, and the abilities of this KVM; None: there is no KVM,
    and every cell is untried."""

    place: Testbed
    can: Abilities | None

    @property
    def seconds(self) -> float:
        """How long a loop is watched."""
        return self.place.seconds

    def check(self, mechanism: Mechanism, *, apf: bool, irqchip: bool) -> None:
        """Raise Untried when this machine lacks a requirement."""
        can = self.can
        if mechanism.impossible:
            raise Untried(mechanism.impossible)
        if can is None:
            raise Untried("there is no KVM")
        if irqchip and not can.irqchip:
            raise Untried("KVM has no irqchip here")
        if apf and not can.async_pf:
            raise Untried("KVM offers the guest no asynchronous page faults by interrupt")
        if mechanism.under is Under.FILE and not can.stats:
            raise Untried("a loop is noticed by KVM's statistics, which came with Linux 5.14")
        if mechanism.injection is Injection.MC and not can.mce:
            raise Untried("KVM cannot inject a machine check here")
        if mechanism.injection is Injection.EVENT and irqchip and not can.msi:
            raise Untried("KVM has no KVM_SIGNAL_MSI here")
        if mechanism.rescue is Rescue.POISON or mechanism.under is Under.ENGINE:
            check_poison()

    @contextlib.asynccontextmanager
    async def trial(
        self, mechanism: Mechanism, *, apf: bool = True, vcpus: int = 1, irqchip: bool = True
    ) -> AsyncIterator[KvmTrial]:
        """A guest whose window is a new file on the mount: mapped, or served by the engine."""
        self.check(mechanism, apf=apf, irqchip=irqchip)
        place = self.place
        place.trials += 1
        path = place.mount / f"file{place.trials}"
        content = await trio.to_thread.run_sync(make_file, place.backing / path.name, PAGES)
        async with contextlib.AsyncExitStack() as stack:
            file = None
            memory: Callable[[], Memory] = functools.partial(_mapped, path)
            if mechanism.under is Under.ENGINE:
                fd = await trio.to_thread.run_sync(os.open, path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    pinned = await place.fs.pin(fd)
                finally:
                    await _in_thread(functools.partial(os.close, fd))
                stack.callback(pinned.release)
                file, engine = pinned.file, Engine()
                stack.push_async_callback(_in_thread, engine.close)
                memory = functools.partial(CachedMemory, engine, file)
            options: dict[str, Any] = {"vcpus": vcpus, "irqchip": irqchip}
            guest = await stack.enter_async_context(_guest(mechanism, memory, apf, options))
            yield KvmTrial(guest, self.seconds, content, file, functools.partial(os.truncate, path))

    @contextlib.asynccontextmanager
    async def over(self, mechanism: Mechanism, memory: Callable[[], Memory]) -> AsyncIterator[KvmTrial]:
        """A guest over other memory."""
        self.check(mechanism, apf=True, irqchip=True)
        async with _guest(mechanism, memory, True, {}) as guest:
            yield KvmTrial(guest, self.seconds)


def _mapped(path: Path) -> Memory:
    return FileMemory(os.open(path, os.O_RDWR | os.O_CLOEXEC))


async def _in_thread(call: Callable[[], None]) -> None:
    """Run a call that may block, in a thread."""
    with trio.CancelScope(shield=True):
        await trio.to_thread.run_sync(call)


def check_poison() -> None:
    """Raise Untried without UFFDIO_POISON."""
    try:
        features = native.uffd_probe()
    except OSError as e:
        raise Untried(f"userfaultfd: {e.strerror}") from e
    if not has(features, "POISON"):
        raise Untried("UFFDIO_POISON came with Linux 6.6")


def anonymous(reply: Reply, delay: float = 0.0) -> Callable[[], Memory]:
    """Memory, each page of which is copied or poisoned, `delay` seconds after the fault."""
    check_poison()
    return lambda: AnonymousMemory(reply, delay=delay)


def without_space() -> Callable[[], Memory]:
    """A file without space for its pages: on hugetlbfs without a free huge page."""
    try:
        fd = _huge_file()
    except OSError as e:
        raise Untried(f"a file of hugetlbfs: {e.strerror}") from e
    try:
        mmap.mmap(fd, WINDOW_LENGTH).close()  # which reserves the pages
    except OSError as e:
        if e.errno != errno.ENOMEM:
            raise Untried(f"a mapping of hugetlbfs: {e.strerror}") from e
    else:
        raise Untried("this machine has huge pages to spare, so hugetlbfs has space")
    finally:
        os.close(fd)
    return lambda: FileMemory(_huge_file())


def _huge_file() -> int:
    fd = os.memfd_create("window", os.MFD_CLOEXEC | os.MFD_HUGETLB)
    os.ftruncate(fd, WINDOW_LENGTH)
    return fd


@contextlib.asynccontextmanager
async def _guest(
    mechanism: Mechanism, memory: Callable[[], Memory], apf: bool, options: dict[str, Any]
) -> AsyncIterator[Machine]:
    async with machine(memory, rescue=mechanism.rescue, injection=mechanism.injection, **options) as guest:
        if apf:
            for vcpu in range(guest.kvm.vcpus):
                await guest.run(async_pf(), vcpu=vcpu)
        yield guest


class KvmTrial:
    """A guest, and operations on its file."""

    def __init__(
        self,
        guest: Machine,
        seconds: float,
        content: bytes = b"",
        file: File | None = None,
        truncate: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.guest = guest
        self.content = content
        self._seconds = seconds
        self._file = file
        self._truncate = truncate
        self._counted = kvm_has_stats(guest.kvm)
        self._log = events.Log(guest)

    @property
    def file(self) -> File:
        """The file's data, of a window that the engine serves."""
        assert self._file is not None
        return self._file

    async def truncate(self, size: int) -> None:
        """truncate(2) through the mount."""
        await trio.to_thread.run_sync(self._truncate, size)

    async def truncated(self) -> None:
        """Let the guest touch a page, then cut it off."""
        await self.guest.run(Step(Op.LOAD, offset=DEAD))
        await self.truncate(CUT)
        self._log.forget()

    async def grow(self, size: int) -> None:
        """Let the file grow, and undo the rescue; no vCPU may run."""
        await self.truncate(size)
        await self.guest.revive()

    def begin(self, step: Step, vcpu: int = 0) -> None:
        self._log.begin(step, step.gva, vcpu)
        self.guest.start(step, vcpu=vcpu)

    async def access(self, step: Step) -> End:
        self.begin(step)
        return await self.end(step)

    async def end(self, *steps: Step, seconds: float = DEADLINE) -> End:
        """Wait until step n, started on vCPU n, has ended, loops, or is stopped; at most `seconds`."""
        guest, vcpus = self.guest, self.guest.vcpus[: len(steps)]
        began = trio.current_time()
        before = [self._counts(vcpu) for vcpu in vcpus]
        loop = None
        while guest.ended is None and (running := [vcpu for vcpu in vcpus if vcpu.running]):
            elapsed = trio.current_time() - began
            if elapsed >= self._seconds:
                loop = self._loop(steps, before, elapsed)
            if loop is not None or elapsed > seconds:
                break
            # no event reports a loop
            with trio.move_on_after(0.001):
                await running[0].wake.wait()
        done = [await self._done(n, step) for n, step in enumerate(steps)]
        stopped = isinstance(guest.ended, GuestStopped)
        if loop is not None:
            self._log.looped(loop)
        return End(tuple(done), loop, stopped)

    def events(self) -> list[dict[str, Any]]:
        """All observed events of the last access."""
        return self._log.events()

    @property
    def exit(self) -> Exit | None:
        """The exit that stopped the guest."""
        if not isinstance(self.guest.ended, GuestStopped):
            return None
        exits = [exit for vcpu in self.guest.vcpus for exit in vcpu.exits if exit.kind in FAILED]
        return max(exits, key=lambda exit: exit.time_ns)

    def _counts(self, vcpu: Vcpu) -> tuple[int, int, int]:
        """Faults taken and fixed, by KVM's count, and those not present, by the guest's."""
        taken, fixed = self.guest.kvm.faults(vcpu.number) if self._counted else (0, 0)
        return taken, fixed, vcpu.mailbox.counts().not_present

    def _loop(
        self, steps: Sequence[Step], before: list[tuple[int, int, int]], seconds: float
    ) -> Looped | None:
        """The evidence that a vCPU loops and no rescue can end it, or None."""
        if self.guest.rescue is not None and not self.guest.helpless:
            return None
        for vcpu, step, then in zip(self.guest.vcpus, steps, before, strict=False):
            if not vcpu.running:
                continue
            taken, fixed, told = (a - b for a, b in zip(self._counts(vcpu), then, strict=True))
            if taken >= _LOOP_FAULTS and fixed <= taken // 10:
                page = step.gva // PAGE_SIZE * PAGE_SIZE
                return Looped(page, told >= taken // 2, taken, seconds)
        return None

    async def _done(self, vcpu: int, step: Step) -> Done | None:
        guest = self.guest
        if isinstance(guest.ended, GuestPanicked) and vcpu == 0:
            panic = guest.vcpus[vcpu].mailbox.panic()
            return _end("panic", panic.address, raw={"instruction": hex(panic.rip)})
        if isinstance(guest.ended, GuestStopped) or guest.vcpus[vcpu].running:
            return None
        try:
            (result,) = await guest.finish(1, vcpu=vcpu)
        except GuestEnded as e:
            return _end("ended", None, raw={"why": str(e)})
        return _of_result(result, step, guest.kvm.tsc_khz(vcpu))


def _of_result(result: Result, step: Step, tsc_khz: int) -> Done:
    failed = result.got in (Got.SIGBUS, Got.FIXUP)
    return _end(
        _OUTCOMES.get(result.got, "error"),
        result.address if failed else None,
        done=result.done if step.op in (Op.READ, Op.WRITE) else 0,
        value=result.data[: step.length].hex() if step.op is Op.READ else None,
        ns=result.tsc * 1_000_000 // tsc_khz,
        raw={"via": result.via.name.lower()},
    )


def _end(
    outcome: str,
    address: int | None,
    *,
    done: int = 0,
    value: str | None = None,
    ns: int = 0,
    raw: dict[str, Any],
) -> Done:
    return Done(outcome, address, si_code=None, error=0, done=done, value=value, ns=ns, raw=raw)
