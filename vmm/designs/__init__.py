# SPDX-License-Identifier: Apache-2.0
"""Designs: how to answer a fault that the host cannot resolve.  One small file per design.

A design is a pure function from a failure to a verdict, without I/O or state.  The engine delivers the
answer to the guest (native/engine/deliver.c).
docs/designs/ has a page for each.
"""

from __future__ import annotations

from daxfault.vmm.designs.design import Design, Verdict
from daxfault.vmm.designs.exit_to_user import ExitToUser
from daxfault.vmm.designs.gone_in_wakeup import GoneInWakeup
from daxfault.vmm.designs.inject_on_retry import InjectOnRetry
from daxfault.vmm.designs.june_2020 import June2020
from daxfault.vmm.designs.mainline import Mainline
from daxfault.vmm.designs.poison import Poison
from daxfault.vmm.designs.report import Report
from daxfault.vmm.designs.rfc_v1 import POSTED, RfcV1, as_posted

DESIGNS: dict[str, Design] = {
    design.name: design
    for design in (
        Mainline(),
        RfcV1(),
        June2020(),
        ExitToUser(),
        GoneInWakeup(),
        InjectOnRetry(),
        Poison(),
        Report(),
    )
}

__all__ = ["DESIGNS", "POSTED", "Design", "Verdict", "as_posted"]
