# SPDX-License-Identifier: Apache-2.0
"""What every design is made of.

Owns the shape: what a design offers to its guests, and what it may answer.
"""

from __future__ import annotations

import dataclasses

from daxfault.native import Abi, Answer, Cpuid, Failure, GuestFlag, Posted


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to a failed fault, and the answer where a REPORT cannot be delivered."""

    answer: Answer
    otherwise: Answer = Answer.POISON


class Design:
    """Decides failed faults.  `name` is what the command line calls it, `summary` one line.

    `abi` and `cpuid` are what its guests are offered, `flags` what the engine does as KVM
    does it, `posted` the defects of RFC v1 that are left in.
    """

    name: str
    summary: str
    abi: Abi = Abi.MAINLINE
    cpuid: Cpuid = Cpuid.ASYNC_PF | Cpuid.ASYNC_PF_INT
    flags: GuestFlag = GuestFlag(0)
    posted: Posted = Posted(0)

    def decide(self, failure: Failure) -> Verdict:
        raise NotImplementedError

    def grants(self, abi: Abi, cpuid: int) -> int:
        """The CPUID bits that a guest of `abi` gets of those it asks for.

        Of another ABI than ours it gets what all have that tell "ready" by interrupt; RFC v1
        shares nothing with the others.
        """
        if abi == self.abi:
            return cpuid & self.cpuid
        if Abi.RFC_V1 in (abi, self.abi):
            return 0
        return cpuid & self.cpuid & (Cpuid.ASYNC_PF | Cpuid.ASYNC_PF_INT)
