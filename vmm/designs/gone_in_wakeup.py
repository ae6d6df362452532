# SPDX-License-Identifier: Apache-2.0
"""`gone-in-wakeup`: the wake-up says "gone".

Andy Lutomirski's first choice in the review of April 2020: one event ends the wait, with the status
"ready" or "gone".  Guest kernels get it too (SEND_ALWAYS).
"""

from __future__ import annotations

from daxfault.native import Abi, Cpuid
from daxfault.vmm.designs.ready_event import ExtendsReady
from daxfault.vmm.names import DesignName


class GoneInWakeup(ExtendsReady):
    """Send "gone" with the token."""

    name: str = DesignName.GONE_IN_WAKEUP
    summary = 'the wake-up says "gone"; the guest knows where its task slept'

    abi = Abi.GONE
    cpuid = Cpuid.ASYNC_PF | Cpuid.ASYNC_PF_INT | Cpuid.ERROR
