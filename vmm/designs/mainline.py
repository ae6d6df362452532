# SPDX-License-Identifier: Apache-2.0
"""`mainline`: the behaviour of Linux today.

async_pf_execute() in virt/kvm/async_pf.c ignores the result of get_user_pages_remote() and always
queues "page ready".  The guest repeats the access, and faults again.  Only a synchronous fault fails:
KVM_RUN returns -EFAULT (kvm_handle_error_pfn(), arch/x86/kvm/mmu/mmu.c).
"""

from __future__ import annotations

from daxfault.native import Answer, Failure, GuestFlag, Wait
from daxfault.vmm.designs.design import Design, Verdict
from daxfault.vmm.names import DesignName


class Mainline(Design):
    """Drop the error and send "ready"."""

    name: str = DesignName.MAINLINE
    summary = 'the error is dropped, and the guest gets "page ready" (Linux today)'

    flags = GuestFlag.TELL_FAILURES

    def decide(self, failure: Failure) -> Verdict:
        return Verdict(Answer.STOP if failure.wait is Wait.SYNC else Answer.WAKE)
