# SPDX-License-Identifier: Apache-2.0
"""The behaviour columns on a KVM guest.

Owns the access of each column and its right outcome.  A column that the stand-in's comparison also has
is the same access with the same right outcome.  Every result is observed.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable

from daxfault.native import PAGE_SIZE
from daxfault.native.kvm_script import Op, Step
from daxfault.vmm.kvm.uffd_memory import Reply
from daxfault.vmm.study.compare.behaviour import BEHAVIOUR
from daxfault.vmm.study.compare.cell import Cell, Column, Outcome
from daxfault.vmm.study.compare.judge import Wanted, judge
from daxfault.vmm.study.compare.kvm.mechanisms import Mechanism, Under
from daxfault.vmm.study.compare.kvm.trial import KvmTestbed, KvmTrial, Untried, anonymous, without_space
from daxfault.vmm.study.compare.trial import DEAD, End

Run = Callable[[KvmTestbed, Mechanism], Awaitable[Cell]]

_FAR = 96 * PAGE_SIZE  # a page far from all other accesses
_SLOW = 0.02  # seconds
_LOAD = Step(Op.LOAD, offset=DEAD + 5)
_COPY = Step(Op.READ, offset=DEAD - 16, length=64, ring=0, table=True)
_COPIED = Wanted(Outcome.EFAULT, Step(Op.READ, offset=DEAD, ring=0).gva, done=16)

KVM_BEHAVIOUR: dict[str, tuple[Column, Run]] = {}


def column(
    name: str, title: str = "", right: Outcome | None = None, meaning: str = ""
) -> Callable[[Run], Run]:
    """Define a column; with a name only, one that the stand-in's comparison has."""

    def add(run: Run) -> Run:
        of_others = BEHAVIOUR[name][0] if name in BEHAVIOUR else None
        KVM_BEHAVIOUR[name] = (of_others or Column(name, title, "behaviour", right, meaning), run)
        return run

    return add


async def run_cell(place: KvmTestbed, mechanism: Mechanism, name: str) -> Cell:
    """Run one cell; if it is not possible here, it has the reason."""
    try:
        return await KVM_BEHAVIOUR[name][1](place, mechanism)
    except Untried as e:
        return Cell(Outcome.UNTRIED, "not here", str(e))


def _judge(trial: KvmTrial, end: End, *wanted: Wanted) -> Cell:
    cell = judge(end, *wanted)
    done = next((done for done in end.done if done is not None), None)
    if cell.outcome is Outcome.STOPPED and (exit := trial.exit) is not None:
        cell.text = f"VM stopped, {exit.kind.name}"
        cell.detail = "KVM_RUN returns; the vCPU is not resumed"
    elif done is not None and cell.outcome is Outcome.PANIC:
        cell.address_exact = done.address == wanted[0].address
        if not cell.address_exact:
            cell.outcome, cell.ok = Outcome.WRONG, False
            cell.text += ", with another address"
    elif done is not None and "via" in done.raw and cell.outcome in (Outcome.SIGBUS, Outcome.EFAULT):
        cell.detail = f"{cell.detail}, by {done.raw['via']}".strip(", ")
    elif done is not None and "why" in done.raw:
        cell.text, cell.detail = "the guest was ended", done.raw["why"].splitlines()[0]
    if (first := next(iter(trial.guest.reported), None)) is not None and first.why:
        cell.detail += f"; told by {first.how}, since {first.why}"
    cell.events = trial.events()
    return cell


def _sigbus(step: Step) -> Wanted:
    return Wanted(Outcome.SIGBUS, step.gva)


async def _one(trial: KvmTrial, step: Step, wanted: Wanted) -> Cell:
    """The outcome of one access after the truncation."""
    await trial.truncated()
    return _judge(trial, await trial.access(step), wanted)


@column("user-read")
async def _user_read(place: KvmTestbed, mechanism: Mechanism) -> Cell:
    async with place.trial(mechanism) as t:
        return await _one(t, _LOAD, _sigbus(_LOAD))


@column("user-write")
async def _user_write(place: KvmTestbed, mechanism: Mechanism) -> Cell:
    step = Step(Op.STORE, offset=DEAD + 5, arg=0x55)
    async with place.trial(mechanism) as t:
        return await _one(t, step, _sigbus(step))


@column("kernel-entry")
async def _kernel_entry(place: KvmTestbed, mechanism: Mechanism) -> Cell:
    async with place.trial(mechanism) as t:
        return await _one(t, _COPY, _COPIED)


@column("kernel-bare")
async def _kernel_bare(place: KvmTestbed, mechanism: Mechanism) -> Cell:
    step = Step(Op.READ, offset=DEAD - 16, length=64, ring=0)
    async with place.trial(mechanism) as t:
        return await _one(t, step, Wanted(Outcome.PANIC, _COPIED.address))


@column("interrupts-off")
async def _interrupts_off(place: KvmTestbed, mechanism: Mechanism) -> Cell:
    step = Step(Op.READ, offset=DEAD - 16, length=64, ring=0, table=True, interrupts=False)
    async with place.trial(mechanism) as t:
        return await _one(t, step, _COPIED)


@column(
    "user-masked",
    "user, interrupts off",
    Outcome.SIGBUS,
    "A user load with interrupts disabled, as a vCPU has it that is not let be asynchronous: SIGBUS.",
)
async def _user_masked(place: KvmTestbed, mechanism: Mechanism) -> Cell:
    step = Step(Op.LOAD, offset=DEAD + 5, interrupts=False)
    async with place.trial(mechanism) as t:
        return await _one(t, step, _sigbus(step))


@column("async-off")
async def _async_off(place: KvmTestbed, mechanism: Mechanism) -> Cell:
    async with place.trial(mechanism, apf=False) as t:
        return await _one(t, _LOAD, _sigbus(_LOAD))


@column(
    "no-irqchip",
    "no irqchip in KVM",
    Outcome.SIGBUS,
    "A user load in a machine without KVM's interrupt controllers: nothing is asynchronous; SIGBUS.",
)
async def _no_irqchip(place: KvmTestbed, mechanism: Mechanism) -> Cell:
    async with place.trial(mechanism, apf=False, irqchip=False) as t:
        return await _one(t, _LOAD, _sigbus(_LOAD))


@column(
    "two-vcpus",
    "two vCPUs, one page",
    Outcome.SIGBUS,
    "Two vCPUs touch the same page that was cut off, at once: SIGBUS for each, at its own address.",
)
async def _two_vcpus(place: KvmTestbed, mechanism: Mechanism) -> Cell:
    steps = _LOAD, Step(Op.LOAD, offset=DEAD + 9)
    async with place.trial(mechanism, vcpus=2) as t:
        await t.truncated()
        for vcpu, step in enumerate(steps):
            t.begin(step, vcpu)
        return _judge(t, await t.end(*steps), *map(_sigbus, steps))


@column("grown")
async def _grown(place: KvmTestbed, mechanism: Mechanism) -> Cell:
    step = Step(Op.READ, offset=DEAD, length=16)
    async with place.trial(mechanism) as t:
        await t.truncated()
        end = await t.access(_LOAD)
        if None in end.done and end.loop is None:
            return _judge(t, end, _sigbus(_LOAD))
        if end.loop is not None:
            await t.truncate(DEAD + 16 * PAGE_SIZE)
            end = await t.end(_LOAD)  # it gets its byte
            if None in end.done:
                return _judge(t, end, Wanted(Outcome.BYTES))
        else:
            await t.grow(DEAD + 16 * PAGE_SIZE)
        return _judge(t, await t.access(step), Wanted(Outcome.BYTES, value="00" * 16))


@column("io-error")
async def _io_error(place: KvmTestbed, mechanism: Mechanism) -> Cell:
    step = Step(Op.LOAD, offset=_FAR + 5)
    if mechanism.under is Under.FILE:
        # only a host that serves the faults can report this error: by poison
        async with place.over(mechanism, anonymous(Reply.POISON)) as t:
            return _judge(t, await t.access(step), _sigbus(step))
    async with place.trial(mechanism) as t:
        t.file.inject(_FAR, PAGE_SIZE, error=errno.EIO)
        return _judge(t, await t.access(step), _sigbus(step))


@column("no-space")
async def _no_space(place: KvmTestbed, mechanism: Mechanism) -> Cell:
    step = Step(Op.STORE, offset=_FAR + 5, arg=0x55)
    if mechanism.under is Under.FILE:
        async with place.over(mechanism, without_space()) as t:
            return _judge(t, await t.access(step), _sigbus(step))
    async with place.trial(mechanism) as t:
        t.file.inject(_FAR, PAGE_SIZE, error=errno.ENOSPC, stores=True)
        return _judge(t, await t.access(step), _sigbus(step))


@column("slow-page")
async def _slow_page(place: KvmTestbed, mechanism: Mechanism) -> Cell:
    step = Step(Op.READ, offset=_FAR, length=16)
    if mechanism.under is Under.FILE:
        number = (_FAR // PAGE_SIZE).to_bytes(16, "little").hex()
        async with place.over(mechanism, anonymous(Reply.COPY, _SLOW)) as t:
            return _judge(t, await t.access(step), Wanted(Outcome.BYTES, value=number))
    async with place.trial(mechanism) as t:
        t.file.inject(_FAR, PAGE_SIZE, delay=_SLOW)
        value = t.content[_FAR : _FAR + 16].hex()
        return _judge(t, await t.access(step), Wanted(Outcome.BYTES, value=value))


@column("kernel-after-user")
async def _kernel_after_user(place: KvmTestbed, mechanism: Mechanism) -> Cell:
    step = Step(Op.READ, offset=DEAD + 4 * PAGE_SIZE + 16, length=64, ring=0, table=True)
    async with place.trial(mechanism) as t:
        await t.truncated()
        first = await t.access(_LOAD)
        if None in first.done:
            return _judge(t, first, _sigbus(_LOAD))
        return _judge(t, await t.access(step), Wanted(Outcome.EFAULT, step.gva, done=0))
