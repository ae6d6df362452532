# SPDX-License-Identifier: Apache-2.0
"""The messages between host, KVM and guest about one access, in order of time.

Owns their texts; the form is that of daxfault.vmm.study.compare.sequence.  The host cannot observe the
times of KVM's messages to the guest; it shows their number with the loop.
"""

from __future__ import annotations

import time
from typing import Any

from daxfault.native.kvm_script import Step
from daxfault.vmm.kvm.inject import Injection
from daxfault.vmm.kvm.machine import Machine
from daxfault.vmm.kvm.window import Rescue
from daxfault.vmm.study.compare.cell import Looped

Event = dict[str, Any]

KERNEL, KVM, HOST = "guest kernel", "KVM", "host"
_TOLD = {
    Injection.AREA: "#PF, error in the area",
    Injection.PF: "#PF, bit 15",
    Injection.MC: "#MC error",
    Injection.EVENT: "MSI, error in the area",
}
_RESCUED = {
    Rescue.UNMAP: "unmap",
    Rescue.FORBID: "PROT_NONE",
    Rescue.SHRINK: "shorter memslot",
    Rescue.POISON: "poison",
}


def _event(ns: int, who: str, to: str | None, what: str, note: str = "") -> Event:
    return {"ns": ns, "who": who, "to": to, "what": what, "token": 0, "note": note}


class Log:
    """The events of a machine since the last forget()."""

    def __init__(self, guest: Machine) -> None:
        self._guest = guest
        self.forget()

    def forget(self) -> None:
        self._begun: list[Event] = []
        self._who: dict[int, str] = {}
        self._since = time.monotonic_ns()

    def begin(self, step: Step, gva: int, vcpu: int) -> None:
        self._who[vcpu] = f"task {vcpu}.0" if step.ring == 3 else KERNEL
        what = f"access, {step.op.name.lower()}"
        self._begun.append(_event(time.monotonic_ns(), self._who[vcpu], KVM, what, f"{gva:#x}"))

    def looped(self, loop: Looped) -> None:
        now = time.monotonic_ns()
        self._begun.append(_event(now, KVM, None, "faults, none fixed", f"{loop.cycles:,}, by its own count"))
        if loop.told:
            note = "each time"
            self._begun += [
                _event(now, KVM, KERNEL, "not present", note),
                _event(now, KVM, KERNEL, "ready", note),
            ]

    def events(self) -> list[Event]:
        guest = self._guest
        found = list(self._begun)
        for rescued in guest.rescued:
            faults = rescued.suspicion.faults
            began = rescued.at - int(rescued.work * 1e9)
            found.append(_event(began, KVM, HOST, "faults, none fixed", f"{faults}, seen by the detector"))
            found.append(
                _event(rescued.at, HOST, KVM, _RESCUED[rescued.how], f"in {rescued.work * 1e6:.0f} us")
            )
        for vcpu in guest.vcpus:
            who = self._who.get(vcpu.number, KERNEL)
            for exit in vcpu.exits:
                if exit.kind.name == "DOORBELL":
                    found.append(_event(exit.time_ns, who, HOST, "end"))
                elif exit.kind.name != "STOPPED":
                    where = exit.gpa or exit.hva
                    note = f"{'gpa' if exit.gpa else 'hva'} {where:#x}" if where else "nowhere"
                    found.append(_event(exit.time_ns, KVM, HOST, f"exit {exit.kind.name}", note))
        for told in guest.reported:
            note = f"gva {told.fault.gva:#x}, by {told.fault.by}"
            found.append(_event(told.at, HOST, KERNEL, _TOLD[told.how], note))
        return sorted((e for e in found if e["ns"] >= self._since), key=lambda e: int(e["ns"]))
