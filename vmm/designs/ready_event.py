# SPDX-License-Identifier: Apache-2.0
"""The decision of all designs that only extend the "ready" event.

A task that sleeps on a token gets the error.  A halted vCPU has no token and gets mainline's "ready".
A synchronous fault is -EFAULT from KVM_RUN.
"""

from __future__ import annotations

from daxfault.native import Answer, Failure, GuestFlag, Wait
from daxfault.vmm.designs.design import Design, Verdict


class ExtendsReady(Design):
    """Report to tasks that sleep on a token, wake halted vCPUs, stop the others."""

    flags = GuestFlag.TELL_FAILURES

    def decide(self, failure: Failure) -> Verdict:
        match failure.wait:
            case Wait.TOLD:
                # a guest that did not enable errors gets "ready"
                return Verdict(Answer.REPORT, otherwise=Answer.WAKE)
            case Wait.HALTED:
                return Verdict(Answer.WAKE)
            case Wait.SYNC:
                return Verdict(Answer.STOP)
