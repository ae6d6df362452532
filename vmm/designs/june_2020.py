# SPDX-License-Identifier: Apache-2.0
"""`june-2020`: a flag in the "ready" interrupt.

The second attempt, 16 June 2020, its patch 2/3 alone: no address, SIGBUS for user mode;
guest kernels get no "not present", and so no errors.
"""

from __future__ import annotations

from daxfault.native import Abi, Cpuid
from daxfault.vmm.designs.ready_event import ExtendsReady
from daxfault.vmm.names import DesignName


class June2020(ExtendsReady):
    """Set PAGE_ERROR in ready_flags beside the token."""

    name: str = DesignName.JUNE_2020
    summary = 'a flag in the "ready" interrupt: SIGBUS without an address, user mode only (June 2020)'

    abi = Abi.JUNE_2020
    cpuid = Cpuid.ASYNC_PF | Cpuid.ASYNC_PF_INT | Cpuid.ERROR_JUNE_2020
