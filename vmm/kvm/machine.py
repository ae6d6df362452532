# SPDX-License-Identifier: Apache-2.0
"""Runs the KVM guest: sends scripts, returns results, and handles every exit.

Owns the machine's lifetime, and the handling of exits: a doorbell is a result, a failed access is
reported to the guest, a loop is rescued, any other exit ends the guest with a dump.

    async with machine(lambda: FileMemory(fd), rescue=Rescue.UNMAP) as guest:
        results = await guest.run(async_pf(), Step(Op.LOAD, offset=4096))
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import ParamSpec, TypeVar

import trio

from daxfault.native.kvm import Exit, ExitKind, Kvm, Ring, unsupported
from daxfault.native.kvm_script import Mailbox, Nonsense, Result, Step
from daxfault.vmm.errors import DaxfaultError, Unsupported
from daxfault.vmm.kvm.detector import Detector, Suspicion
from daxfault.vmm.kvm.fault import Fault, Unknown, locate
from daxfault.vmm.kvm.inject import Injection, Reported, inject
from daxfault.vmm.kvm.window import Memory, Rescue, Window

P = ParamSpec("P")
T = TypeVar("T")

LOOK_SECONDS = 0.001
_REMEMBERED = 16  # exits of a vCPU, for a dump
_DEFERRALS = 10_000
FAILED = (ExitKind.EFAULT, ExitKind.SIGBUS, ExitKind.MMIO, ExitKind.MEMORY)


class GuestEnded(DaxfaultError):
    """The guest was ended: it failed, or broke its limits.  The message has the dump."""


class GuestPanicked(GuestEnded):
    """The guest's kernel panicked: an error at an instruction without an exception table entry."""


class GuestStopped(GuestEnded):
    """An access failed with an exit, and the guest gets no report: its vCPU is not resumed."""


@dataclasses.dataclass(frozen=True, slots=True)
class Rescued:
    """A loop that was ended.  `work`: duration of the rescue in seconds; `at`: its end, in ns of
    CLOCK_MONOTONIC."""

    suspicion: Suspicion
    how: Rescue
    work: float
    at: int


class Vcpu:
    """One vCPU's mailbox, and the script it runs."""

    def __init__(self, kvm: Kvm, number: int) -> None:
        self.number = number
        self.mailbox = Mailbox(kvm, number)
        self.exits: collections.deque[Exit] = collections.deque(maxlen=_REMEMBERED)
        self.detector = Detector(number)
        self.wake = trio.Event()
        self.running = False
        self.deferred = 0
        self.doubted: int | None = None  # the gpa of a doubtful access that the guest repeats


class Machine:
    """Made by machine().  `reported` and `rescued` list the reports and rescues, oldest first; `helpless`
    counts suspicions without a rescue, because no part of the window was known to be dead."""

    def __init__(self, kvm: Kvm, window: Window, rescue: Rescue | None, injection: Injection | None) -> None:
        self.kvm = kvm
        self.window = window
        self.rescue = rescue
        self.injection = injection
        self.reported: list[Reported] = []
        self.rescued: list[Rescued] = []
        self.helpless = 0
        self.deferred = 0
        self.ended: GuestEnded | None = None
        # held while the window is changed or read, so that a report follows the rescue that caused it;
        # a lock for threads, because its holder may wait for our own mount
        self._changing = threading.Lock()
        self.vcpus = tuple(Vcpu(kvm, number) for number in range(kvm.vcpus))

    async def boot(self) -> None:
        """Start every vCPU, until it waits for its first script.  Unsupported if one fails before that: this
        KVM cannot run the guest, although it reports the needed abilities."""
        for vcpu in self.vcpus:
            self._go(vcpu.number)
            try:
                await self.finish(0, vcpu=vcpu.number)
            except GuestEnded as e:
                raise Unsupported(f"/dev/kvm: the guest's CPU cannot run the guest: {e}") from e

    async def run(self, *steps: Step, vcpu: int = 0, seconds: float = 10.0) -> list[Result]:
        """Run a script; -> a result for each step.  GuestEnded when the guest fails, or does not finish in
        `seconds`."""
        self.start(*steps, vcpu=vcpu)
        return await self.finish(len(steps), vcpu=vcpu, seconds=seconds)

    def start(self, *steps: Step, vcpu: int = 0) -> None:
        """Start a script; finish() must be called."""
        self._alive()
        self.vcpus[vcpu].mailbox.write(steps)
        self._go(vcpu)

    async def finish(self, count: int, *, vcpu: int = 0, seconds: float = 10.0) -> list[Result]:
        """Wait for the script of `count` steps that was started."""
        me = self.vcpus[vcpu]
        with trio.move_on_after(seconds) as limit:
            while me.running:
                await me.wake.wait()
        if limit.cancelled_caught:
            await self._stop(me)
            self._alive()
            if me.running or me.exits[-1].kind is ExitKind.STOPPED:
                raise self._end(me, f"no answer in {seconds:g} s")
        self._alive()
        try:
            return me.mailbox.results(count)
        except Nonsense as e:
            raise self._end(me, f"its mailbox makes no sense: {e}") from None

    @contextlib.asynccontextmanager
    async def paused(self, vcpu: int = 0) -> AsyncIterator[bool]:
        """Stop a vCPU during its script while the body runs, so that the counts of guest and KVM can be
        compared.  False: the script has ended."""
        me = self.vcpus[vcpu]
        await self._stop(me)
        self._alive()
        stopped = me.exits[-1].kind is ExitKind.STOPPED
        try:
            yield stopped
        finally:
            if stopped:
                self._go(vcpu)

    async def revive(self) -> None:
        """Map the file again after it has grown.  ValueError when a vCPU runs."""
        if any(vcpu.running for vcpu in self.vcpus):
            raise ValueError("a vCPU runs")
        await trio.to_thread.run_sync(self._locked, self.window.revive)

    def dump(self, vcpu: int) -> str:
        """The state of a vCPU as text."""
        return _dump(self.kvm, self.vcpus[vcpu])

    # ------------------------------------------------------------- the machinery

    def _alive(self) -> None:
        if self.ended is not None:
            raise self.ended

    def _go(self, vcpu: int) -> None:
        me = self.vcpus[vcpu]
        me.running, me.wake = True, trio.Event()
        me.detector.reset()
        self.kvm.resume(vcpu)

    async def _stop(self, me: Vcpu) -> None:
        self.kvm.stop(me.number)
        with trio.move_on_after(5):  # a vCPU in an uninterruptible wait cannot be stopped
            while me.running:
                await me.wake.wait()

    def _halt(self, me: Vcpu) -> None:
        me.running = False
        me.wake.set()

    def _end(self, me: Vcpu, why: str, kind: type[GuestEnded] = GuestEnded) -> GuestEnded:
        """End the machine: tasks that wait for it fail."""
        if self.ended is None:
            self.ended = kind(f"vCPU {me.number}: {why}\n{_dump(self.kvm, me)}")
        for vcpu in self.vcpus:
            self._halt(vcpu)
        return self.ended

    async def serve(self) -> None:
        """Answer exits until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(self.kvm.exits_fd())
            for exit in self.kvm.exits():
                me = self.vcpus[exit.vcpu]
                me.exits.append(exit)
                await self._answer(me, exit)

    def _locked(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        with self._changing:
            return call(*args, **kwargs)

    async def watch(self) -> None:
        """Detect loops until cancelled; does nothing without KVM's statistics.

        Runs in a separate thread: a rescue may wait for our own mount, and must not wait for a thread.
        """
        stop = threading.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, self._look, stop)
            try:
                await trio.sleep_forever()
            finally:
                stop.set()

    def _look(self, stop: threading.Event) -> None:
        while not stop.wait(LOOK_SECONDS):
            for me in self.vcpus:
                if not me.running or self.rescue is None:
                    continue
                suspicion = me.detector.look(time.monotonic(), *self.kvm.faults(me.number))
                if suspicion is not None:
                    self._rescue(me, suspicion, self.rescue)

    def _rescue(self, me: Vcpu, suspicion: Suspicion, how: Rescue) -> None:
        me.detector.reset()
        began = time.perf_counter()
        with self._changing:
            if self.window.rescue(how):
                work = time.perf_counter() - began
                self.rescued.append(Rescued(suspicion, how, work, time.monotonic_ns()))
            elif self.window.rescued is None:
                self.helpless += 1

    async def _answer(self, me: Vcpu, exit: Exit) -> None:
        ring = exit.value if exit.kind is ExitKind.DOORBELL else None
        if self.ended is not None or ring == Ring.READY:
            self._halt(me)
        elif ring == Ring.PANIC:
            self._end(me, f"the guest's kernel panicked: {_shown(me.mailbox.panic())}", GuestPanicked)
        elif exit.kind in FAILED:
            await self._failed(me, exit)
        elif exit.kind is ExitKind.STOPPED:
            self._halt(me)
        else:
            self._end(me, f"it ended with {exit.kind.name}")

    async def _failed(self, me: Vcpu, exit: Exit) -> None:
        if self.injection is None:
            self._end(me, f"{exit.kind.name}, and nothing is reported to the guest", GuestStopped)
            return
        found = await trio.to_thread.run_sync(self._locked, locate, self.kvm, self.window, exit)
        if isinstance(found, Unknown) and not found.elsewhere:
            self._end(me, f"an access failed, but it is unknown which: {found.why}")
            return
        report = None
        if isinstance(found, Fault):
            if found.doubtful and me.doubted != found.gpa:
                me.doubted = found.gpa
                self.kvm.set_registers(me.number, found.registers)
            else:
                me.doubted = None
                report = inject(self.kvm, found, self.injection)
        if report is None:
            # the guest repeats the access, which fails again if the page is still dead
            self.deferred += 1
            me.deferred += 1
            if me.deferred > _DEFERRALS:
                self._end(me, f"an error could not be delivered in {me.deferred} attempts")
                return
        else:
            me.deferred = 0
            now = time.monotonic_ns()
            self.reported.append(dataclasses.replace(report, ns=now - exit.time_ns, at=now))
        me.detector.reset()
        self.kvm.resume(me.number)


@contextlib.asynccontextmanager
async def machine(
    memory: Callable[[], Memory],
    *,
    vcpus: int = 1,
    irqchip: bool = True,
    spin: bool = False,
    rescue: Rescue | None = Rescue.UNMAP,
    injection: Injection | None = Injection.AREA,
) -> AsyncIterator[Machine]:
    """A machine whose vCPUs wait for their first script.  `memory` is called in a thread, because it may
    open files of our own mount.  Without a rescue a loop does not end; without an injection the first
    access that fails with an exit ends the guest (GuestStopped).

    Unsupported when this machine has no KVM that can run it.
    """
    why = unsupported()
    if why is not None:
        raise Unsupported(f"{why}; the KVM guest cannot run here")
    under = await trio.to_thread.run_sync(memory)
    kvm: Kvm | None = None
    try:
        kvm = await trio.to_thread.run_sync(lambda: Kvm(vcpus=vcpus, irqchip=irqchip, spin=spin))
        made = Machine(kvm, Window(kvm, under), rescue, injection)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(under.serve)
            nursery.start_soon(made.serve)
            if kvm_has_stats(kvm):
                nursery.start_soon(made.watch)
            await made.boot()
            yield made
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            # in a thread: a vCPU may wait for a page of our own mount, which must still be served
            await trio.to_thread.run_sync(under.release)
            if kvm is not None:
                await trio.to_thread.run_sync(kvm.close)
            await trio.to_thread.run_sync(under.close)


def kvm_has_stats(kvm: Kvm) -> bool:
    """KVM_GET_STATS_FD, Linux 5.14.  Without it a loop is not noticed."""
    try:
        return "pf_fixed" in kvm.stats(0)
    except OSError:
        return False


def _shown(record: object) -> str:
    fields = dataclasses.fields(record)  # type: ignore[arg-type]
    return " ".join(f"{f.name} {getattr(record, f.name):#x}" for f in fields)


def _dump(kvm: Kvm, me: Vcpu) -> str:
    lines = []
    try:
        registers = kvm.registers(me.number)
        names = [f.name for f in dataclasses.fields(registers)]
        shown = [f"{name} {getattr(registers, name):#x}" for name in names]
        lines += ["  " + "  ".join(shown[i : i + 6]) for i in range(0, len(shown), 6)]
    except OSError as e:
        lines.append(f"  registers: {e}")
    lines.append(f"  mailbox: {_shown(me.mailbox.counts())}")
    lines.append(f"  last exits, of {me.exits[-1].serial if me.exits else 0}:")
    lines += [f"    {exit_line(exit)}" for exit in me.exits]
    return "\n".join(lines)


def exit_line(exit: Exit) -> str:
    """An exit as text."""
    parts = [f"{exit.time_ns / 1e9:.6f} {exit.kind.name}"]
    parts += [f"{name} {getattr(exit, name):#x}" for name in ("gpa", "hva", "value") if getattr(exit, name)]
    if exit.error:
        parts.append(f"errno {exit.error}")
    parts.append(f"exit_reason {exit.exit_reason}")
    return ", ".join(parts)
