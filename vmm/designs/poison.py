# SPDX-License-Identifier: Apache-2.0
"""`poison`: a memory error.

The host poisons the page (UFFDIO_POISON, Linux 6.6) and wakes the guest; its retry gets the error of a
bad memory cell.  It works for all ways of waiting.
"""

from __future__ import annotations

from daxfault.native import Answer, Failure, GuestFlag
from daxfault.vmm.designs.design import Design, Verdict
from daxfault.vmm.names import DesignName


class Poison(Design):
    """Poison the page, then wake."""

    name: str = DesignName.POISON
    summary = "the page is poisoned; the retry gets a memory error (possible since Linux 6.6)"

    flags = GuestFlag.TELL_FAILURES

    def decide(self, failure: Failure) -> Verdict:
        return Verdict(Answer.POISON)
