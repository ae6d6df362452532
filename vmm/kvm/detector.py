# SPDX-License-Identifier: Apache-2.0
"""Detects a vCPU in a fault loop, from KVM's statistics alone.

Owns the rule.  Must not act on the vCPU.

`pf_taken` counts the faults that KVM took, `pf_fixed` those it resolved (arch/x86/kvm/mmu/mmu.c,
kvm_mmu_do_page_fault()).  A vCPU that makes progress has one fixed for each one or two taken.  In the
loop none is fixed, with async page faults (1,000 to 6,000 faults per second) or without, when KVM halts
and wakes it repeatedly (10,000 to 40,000).  A slow page can look the same for a while.  So this is a
suspicion, and a reaction to it must not harm a guest that only waits.
"""

from __future__ import annotations

import dataclasses

FAULTS = 4


@dataclasses.dataclass(frozen=True, slots=True)
class Suspicion:
    """`faults` in `seconds`, none of them resolved."""

    vcpu: int
    faults: int
    seconds: float


class Detector:
    """The rule for one vCPU.  Its input is the time in seconds and the fault counts of Kvm.faults()."""

    def __init__(self, vcpu: int, faults: int = FAULTS) -> None:
        self._vcpu = vcpu
        self._most = faults
        self._fixed = self._taken = -1
        self._since = 0.0

    def reset(self) -> None:
        """Start again: the vCPU was stopped, or runs a new script."""
        self._fixed = -1

    def look(self, now: float, taken: int, fixed: int) -> Suspicion | None:
        if fixed != self._fixed:
            self._fixed, self._taken, self._since = fixed, taken, now
            return None
        if taken - self._taken < self._most:
            return None
        return Suspicion(self._vcpu, taken - self._taken, now - self._since)
