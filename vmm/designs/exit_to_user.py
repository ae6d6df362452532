# SPDX-License-Identifier: Apache-2.0
"""`exit-to-user`: stop the VM, and let user space decide.

"kvm,x86: Exit to user space in case of page fault error" (June to October 2020).  The host remembers
the page whose asynchronous fault failed and sends "ready"; the retry is synchronous, and KVM_RUN
returns -EFAULT.
"""

from __future__ import annotations

from daxfault.native import Answer, Failure, GuestFlag, Wait
from daxfault.vmm.designs.design import Design, Verdict
from daxfault.vmm.names import DesignName


class ExitToUser(Design):
    """Send "ready", and stop the vCPU at its retry."""

    name: str = DesignName.EXIT_TO_USER
    summary = "the retry is made synchronous, and the VM stops with -EFAULT"

    flags = GuestFlag.TELL_FAILURES | GuestFlag.ERROR_GFNS

    def decide(self, failure: Failure) -> Verdict:
        return Verdict(Answer.STOP if failure.wait is Wait.SYNC else Answer.WAKE)
