# SPDX-License-Identifier: Apache-2.0
"""Telling the guest of an access that failed.

Owns what is written into the vCPU and the async_pf area.  Must be called only with the vCPU
stopped at the access: an exception hits whatever stands at rip.
"""

from __future__ import annotations

import dataclasses
import enum
import errno

from native import ffi, lib
from native.kvm import Kvm
from vmm.kvm.fault import Fault

PF, MC = 14, 18
# what a #PF of a present page says; and MCi_STATUS: valid, uncorrected, enabled, misc and address
# valid, signalled, action required; a data load (Intel SDM 3B, 15.9.3.2)
_PRESENT, _WRITE, _USER = 1, 2, 4
_MC_STATUS = 0xBD80_0000_0000_0134
_MC_MISC = 2 << 6 | 12  # a physical address, of a page
_MCG_STATUS = 7  # restart ip valid, error ip valid, in progress


class Injection(enum.StrEnum):
    """How the guest is told."""

    AREA = "area"  # reason and gva in the async_pf area, and #PF: RFC v1 of the series
    PF = "pf"  # #PF with a bit in its error code
    MC = "mc"  # machine check, with the gpa
    EVENT = "event"  # reason and gva in the area, and an interrupt


@dataclasses.dataclass(frozen=True, slots=True)
class Told:
    """What was done; `asked` differs from `how` when that could not be delivered."""

    fault: Fault
    asked: Injection
    how: Injection
    why: str = ""
    ns: int = 0  # from the exit to the resume


def inject(kvm: Kvm, fault: Fault, asked: Injection) -> Told | None:
    """Tell the guest; None when something else is still to be delivered to it, or it has not read what it
    was told last: then the vCPU goes on, and repeats the access."""
    now = kvm.registers(fault.vcpu)
    if now.exception:
        return None
    how, why = asked, ""
    if asked is Injection.EVENT and not (kvm.irqchip and fault.registers.interrupts):
        how = Injection.AREA
        why = "an interrupt would not be taken: " + ("IF is clear" if kvm.irqchip else "there is no irqchip")
    if how in (Injection.AREA, Injection.EVENT) and not _write_area(kvm, fault):
        return None
    if now != fault.registers:
        kvm.set_registers(fault.vcpu, fault.registers)
    try:
        _deliver(kvm, fault, how)
    except OSError as e:
        if e.errno != errno.EAGAIN:
            raise
        return None
    return Told(fault, asked, how, why)


def _deliver(kvm: Kvm, fault: Fault, how: Injection) -> None:
    code = _PRESENT | (_WRITE if fault.write else 0) | (_USER if fault.ring == 3 else 0)
    if how is Injection.AREA:
        kvm.exception(fault.vcpu, PF, code, fault.gva)
    elif how is Injection.PF:
        kvm.exception(fault.vcpu, PF, code | 1 << lib.DF_KVM_PF_HOST_BIT, fault.gva)
    elif how is Injection.MC:
        kvm.machine_check(
            fault.vcpu, status=_MC_STATUS, address=fault.gpa, misc=_MC_MISC, mcg_status=_MCG_STATUS, bank=1
        )
    else:
        kvm.msi(fault.vcpu, lib.DF_KVM_VECTOR_ERROR)


def _write_area(kvm: Kvm, fault: Fault) -> bool:
    page = kvm.ram(lib.DF_KVM_AREA + lib.DF_PAGE_SIZE * fault.vcpu, lib.DF_PAGE_SIZE)
    area = ffi.from_buffer("struct df_kvm_area *", page, require_writable=True)
    if area.reason not in (lib.DF_KVM_REASON_NONE, lib.DF_KVM_REASON_ERROR):
        return False  # a page not present that the guest has not seen yet
    area.gva = fault.gva
    area.reason = lib.DF_KVM_REASON_ERROR
    return True
