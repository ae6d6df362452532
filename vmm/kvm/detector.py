# SPDX-License-Identifier: Apache-2.0
"""A vCPU that faults without end, detected from KVM's statistics alone.

Owns the rule.  Must not act on the vCPU.

`pf_taken` counts the faults KVM took, `pf_fixed` those it resolved (arch/x86/kvm/mmu/mmu.c,
kvm_mmu_do_page_fault()).  A vCPU that makes progress has one fixed for each one or two taken;
one in the loop has none, with async page faults (1,000 to 6,000 a second) or without, halted by
KVM and woken over and over (10,000 to 40,000).  A slow page can look the same for a while: this is
a suspicion, and an action upon it must not harm a guest that only waits.
"""

from __future__ import annotations

import dataclasses

FAULTS = 4


@dataclasses.dataclass(frozen=True, slots=True)
class Suspicion:
    """`faults` in `seconds`, none of them fixed."""

    vcpu: int
    faults: int
    seconds: float


class Detector:
    """The rule for one vCPU.  Fed with time in seconds and the vCPU's faults so far (Kvm.faults())."""

    def __init__(self, vcpu: int, faults: int = FAULTS) -> None:
        self._vcpu = vcpu
        self._most = faults
        self._fixed = self._taken = -1
        self._since = 0.0

    def reset(self) -> None:
        """The vCPU was stopped, or starts something new."""
        self._fixed = -1

    def look(self, now: float, taken: int, fixed: int) -> Suspicion | None:
        if fixed != self._fixed:
            self._fixed, self._taken, self._since = fixed, taken, now
            return None
        if taken - self._taken < self._most:
            return None
        return Suspicion(self._vcpu, taken - self._taken, now - self._since)
