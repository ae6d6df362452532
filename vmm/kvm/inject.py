# SPDX-License-Identifier: Apache-2.0
"""Reporting a failed access to the guest.

Owns the choice of the mechanism; native/kvm/report.c implements it.  The vCPU must be stopped at the
access, because an exception is taken at the current rip.
"""

from __future__ import annotations

import dataclasses
import enum
import errno

from daxfault.native.kvm import Kvm, Via
from daxfault.vmm.kvm.fault import Fault


class Injection(enum.StrEnum):
    """The mechanism of a report to the guest."""

    AREA = "area"  # reason and gva in the async_pf area, and #PF: RFC v1 of the series
    PF = "pf"  # #PF with a bit in its error code
    MC = "mc"  # machine check, with the gpa
    EVENT = "event"  # reason and gva in the area, and an interrupt


_VIA: dict[Injection, Via] = {
    Injection.AREA: Via.AREA,
    Injection.PF: Via.PF,
    Injection.MC: Via.MC,
    Injection.EVENT: Via.EVENT,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Reported:
    """A report; `how` differs from `asked` when that could not be delivered, for the reason `why`."""

    fault: Fault
    asked: Injection
    how: Injection
    why: str = ""
    ns: int = 0  # from the exit to the resume
    at: int = 0  # the resume, in ns of CLOCK_MONOTONIC


def inject(kvm: Kvm, fault: Fault, asked: Injection) -> Reported | None:
    """Report to the guest; None when another event is pending, or the guest has not read the last report:
    the vCPU then goes on, and repeats the access."""
    now = kvm.registers(fault.vcpu)
    if now.exception:
        return None
    how, why = asked, ""
    if asked is Injection.EVENT and not (kvm.irqchip and fault.registers.interrupts):
        how = Injection.AREA
        why = "an interrupt would not be taken: " + ("IF is clear" if kvm.irqchip else "there is no irqchip")
    if now != fault.registers:
        kvm.set_registers(fault.vcpu, fault.registers)
    try:
        user = fault.ring == 3
        kvm.report(fault.vcpu, _VIA[how], gva=fault.gva, gpa=fault.gpa, write=fault.write, user=user)
    except OSError as e:
        if e.errno != errno.EAGAIN:
            raise
        return None
    return Reported(fault, asked, how, why)
