# SPDX-License-Identifier: Apache-2.0
"""The decision of every design that only extends the "ready" event.

Owns what they share: who sleeps on a token can be told, a halted vCPU knows of no
token and gets mainline's "ready", and a synchronous fault is -EFAULT from KVM_RUN.
"""

from __future__ import annotations

from daxfault.native import Answer, Failure, GuestFlag, Wait
from daxfault.vmm.designs.design import Design, Verdict


class ExtendsReady(Design):
    """Report what was told, wake what is halted, stop the rest."""

    flags = GuestFlag.TELL_FAILURES

    def decide(self, failure: Failure) -> Verdict:
        match failure.wait:
            case Wait.TOLD:
                # a guest that did not ask for errors is told "ready"
                return Verdict(Answer.REPORT, otherwise=Answer.WAKE)
            case Wait.HALTED:
                return Verdict(Answer.WAKE)
            case Wait.SYNC:
                return Verdict(Answer.STOP)
