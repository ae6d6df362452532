# SPDX-License-Identifier: Apache-2.0
"""`inject-on-retry`: send "ready", then raise a real exception when the guest retries.

The reviewers' other choice of 2020: the failed page is remembered, its retry is synchronous, and its
error becomes an exception at the access.  It needs no token, so all ways of waiting end the same.
"""

from __future__ import annotations

from daxfault.native import Abi, Answer, Cpuid, Failure, GuestFlag, Wait
from daxfault.vmm.designs.design import Design, Verdict
from daxfault.vmm.names import DesignName


class InjectOnRetry(Design):
    """Send "ready", and raise an exception at the retry."""

    name: str = DesignName.INJECT_ON_RETRY
    summary = 'the guest gets "ready", and its retry an exception'

    abi = Abi.RETRY
    cpuid = Cpuid.ASYNC_PF | Cpuid.ASYNC_PF_INT | Cpuid.ERROR
    flags = GuestFlag.TELL_FAILURES | GuestFlag.ERROR_GFNS

    def decide(self, failure: Failure) -> Verdict:
        if failure.wait is not Wait.SYNC:
            return Verdict(Answer.WAKE)
        # if the context cannot take an exception, KVM_RUN returns -EFAULT
        return Verdict(Answer.REPORT, otherwise=Answer.STOP)
