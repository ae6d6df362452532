# SPDX-License-Identifier: Apache-2.0
"""Turns the end of an access into a cell: its outcome, its text, and whether it is right.  Pure."""

from __future__ import annotations

import dataclasses

from daxfault.vmm.study.compare.cell import Cell, Looped, Outcome
from daxfault.vmm.study.compare.trial import End
from daxfault.vmm.study.standin import Done

_BUS_ADRERR = 2  # the si_code with a valid si_addr (sigaction(2))

_OUTCOMES = {
    "ok": Outcome.BYTES,
    "sigbus": Outcome.SIGBUS,
    "efault": Outcome.EFAULT,
    "short": Outcome.EFAULT,
    "panic": Outcome.PANIC,
    "killed": Outcome.KILLED,
}
# the worst outcome first
_WORST = (
    Outcome.HANG,
    Outcome.LOOP,
    Outcome.STOPPED,
    Outcome.WRONG,
    Outcome.PANIC,
    Outcome.SIGBUS,
    Outcome.EFAULT,
    Outcome.KILLED,
    Outcome.BYTES,
)


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """The right outcome of one access.

    `address` is the exact address of its error, None if it has none; `value` the bytes that it reads,
    None for any; `done` the number of bytes before an error.
    """

    outcome: Outcome
    address: int | None = None
    value: object = None
    done: int | None = None


def judge(end: End, *wanted: Wanted) -> Cell:
    """The cell of accesses that were started together, each with its right outcome: the worst of them."""
    cells = []
    for done, right in zip(end.done, wanted, strict=True):
        cells.append(_ended(done, right) if done is not None else _unended(end))
    if end.loop is not None:
        # the watchdog ends a loop when it detects it, so the access has ended
        cells.append(looping(end.loop))
    worst = min(cells, key=lambda cell: _WORST.index(cell.outcome))
    if len(wanted) > 1 and worst.ok is not False and any(cell.ok is not True for cell in cells):
        worst.ok = None
    return worst


def looping(loop: Looped) -> Cell:
    rate = loop.cycles / loop.seconds
    detail = (
        'the guest is told "not present" and "ready" each time'
        if loop.told
        else "the vCPU is halted and resumed each time; the guest sees nothing of it"
    )
    return Cell(
        Outcome.LOOP,
        f"LOOP {rate:,.0f}/s, {'told' if loop.told else 'halted'}",
        f"{loop.cycles} cycles in {loop.seconds:.2f} s on page {loop.page:#x}: {detail}",
        ok=False,
        rate=rate,
        numbers={"cycles": loop.cycles},
    )


def stopped(detail: str = "") -> Cell:
    words = detail or "KVM_RUN fails with -EFAULT; without help of user space no vCPU task runs again"
    return Cell(Outcome.STOPPED, "VM stopped", words, ok=False)


def _unended(end: End) -> Cell:
    if end.stopped:
        return stopped()
    if end.loop is not None:
        return looping(end.loop)
    return Cell(Outcome.HANG, "HANG", "neither an end nor a sign of life", ok=False)


def _ended(done: Done, wanted: Wanted) -> Cell:
    outcome = _OUTCOMES.get(done.outcome, Outcome.WRONG)
    cell = Cell(outcome, outcome.value, si_code=done.si_code, ok=outcome == wanted.outcome)
    cell.numbers["ns"] = done.ns
    match outcome:
        case Outcome.SIGBUS:
            cell.text = "SIGBUS"
            _judge_address(cell, done, wanted)
        case Outcome.EFAULT:
            cell.text = "EFAULT" if not done.done else f"EFAULT after {done.done} bytes"
            if wanted.done is not None and done.done != wanted.done:
                cell.outcome, cell.ok = Outcome.WRONG, False
                cell.text += f", not {wanted.done}"
            _judge_address(cell, done, wanted)
        case Outcome.PANIC:
            cell.text = "guest panics"
            cell.detail = f"at {int(done.raw.get('instruction', '0'), 16):#x}, and it says so"
        case Outcome.BYTES:
            if wanted.value is not None and wanted.outcome is Outcome.BYTES and done.value != wanted.value:
                cell.outcome, cell.ok = Outcome.WRONG, False
                cell.text = "wrong bytes"
        case Outcome.WRONG:
            cell.text, cell.ok = f"{done.outcome}, errno {done.error}", False
    return cell


def _judge_address(cell: Cell, done: Done, wanted: Wanted) -> None:
    """A wrong address is wrong; a SIGBUS without an address is half right.  EFAULT has no address."""
    if wanted.address is None or done.address is None:
        return
    known = done.address or cell.si_code == _BUS_ADRERR
    if not known:
        if cell.outcome is Outcome.SIGBUS:
            cell.text += ", no address"
            cell.ok = None if cell.ok else cell.ok
        return
    cell.address_exact = done.address == wanted.address
    cell.detail = f"address {done.address:#x}"
    if cell.si_code is not None:
        cell.detail += f", si_code {cell.si_code}"
    if cell.address_exact:
        cell.text += ", exact address" if cell.outcome is Outcome.SIGBUS else ""
    else:
        cell.outcome, cell.ok = Outcome.WRONG, False
        cell.text += ", address of another access" if done.address else ", address 0"
        cell.detail += f"; the access was to {wanted.address:#x}"
