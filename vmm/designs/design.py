# SPDX-License-Identifier: Apache-2.0
"""The base class of all designs.

Owns the interface: what a design offers to its guests, and the answers it may give.
"""

from __future__ import annotations

import dataclasses

from daxfault.native import Abi, Answer, Cpuid, Failure, GuestFlag, Posted


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to a failed fault, and the one to use if a REPORT cannot be delivered."""

    answer: Answer
    otherwise: Answer = Answer.POISON


class Design:
    """Decides about failed faults.  `name` is its name on the command line, `summary` is one line.

    `abi` and `cpuid` are offered to its guests; `flags` selects KVM behaviour that the engine models;
    `posted` are the defects of RFC v1 to keep.
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
        """The CPUID bits, of those that a guest of `abi` requests, that it gets.

        A guest of another ABI gets the bits common to all ABIs that report "ready" by interrupt; RFC
        v1 has none in common with the others.
        """
        if abi == self.abi:
            return cpuid & self.cpuid
        if Abi.RFC_V1 in (abi, self.abi):
            return 0
        return cpuid & self.cpuid & (Cpuid.ASYNC_PF | Cpuid.ASYNC_PF_INT)
