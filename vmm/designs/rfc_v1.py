# SPDX-License-Identifier: Apache-2.0
"""`rfc-v1`: a third reason, "error", with the address, in addition to "not present" and "ready".

"kvm,x86,async_pf: Add capability to return page fault error", RFC, 31 March 2020.
RfcV1() is the RFC as intended; as_posted() adds chosen defects.
"""

from __future__ import annotations

from collections.abc import Iterable

from daxfault.native import Abi, Cpuid, Posted
from daxfault.vmm.designs.ready_event import ExtendsReady
from daxfault.vmm.names import Defect, DesignName

POSTED: dict[str, Posted] = {name: Posted[name.name] for name in Defect if name is not Defect.ALL}


class RfcV1(ExtendsReady):
    """Deliver reason 3 to the task that sleeps on the token."""

    name: str = DesignName.RFC_V1
    summary = "reason 3, PAGE_FAULT_ERROR, with the address, for sleeping tasks (March 2020)"

    abi = Abi.RFC_V1
    cpuid = Cpuid.ASYNC_PF | Cpuid.ERROR_RFC_V1


def as_posted(names: Iterable[str]) -> RfcV1:
    """`rfc-v1` with the defects in `names` (keys of POSTED); KeyError for an unknown one."""
    chosen = sorted(set(names), key=lambda name: POSTED[name])
    design = RfcV1()
    for name in chosen:
        design.posted |= POSTED[name]
    if chosen:
        design.name = f"{RfcV1.name} as posted: {', '.join(chosen)}"
        design.summary = "RFC v1 with its defects"
    return design
