# SPDX-License-Identifier: Apache-2.0
"""`report`: the error reaches the code that made the access.

In the spirit of "kvm,x86,async_pf: Add capability to return page fault error" (RFC, March 2020), with
the changes that its reviewers requested: the event carries errno, reason and address; it is not final,
since the next access requests the page again; and if it cannot be delivered (inside a system call,
signal blocked, a guest that did not enable errors), the page is poisoned.
"""

from __future__ import annotations

from daxfault.native import Abi, Answer, Cpuid, Failure
from daxfault.vmm.designs.design import Design, Verdict
from daxfault.vmm.names import DesignName


class Report(Design):
    """Report the error: SIGBUS, an exception table fixup, or EFAULT from a system call."""

    name: str = DesignName.REPORT
    summary = "the error is reported: SIGBUS at the exact address, EFAULT, or a fixup (daxfault)"

    abi = Abi.REPORT
    cpuid = Cpuid.ASYNC_PF | Cpuid.ASYNC_PF_INT | Cpuid.ERROR

    def decide(self, failure: Failure) -> Verdict:
        return Verdict(Answer.REPORT)
