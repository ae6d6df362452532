# SPDX-License-Identifier: Apache-2.0
"""What becomes of a fault that the host cannot resolve: one small file a design.

A design is a pure decision: failure in, verdict out.  It owns no I/O and no state;
how an answer reaches the guest is the engine's business (native/deliver.c).
"""

from __future__ import annotations

from vmm.designs.design import Design, Verdict
from vmm.designs.mainline import Mainline
from vmm.designs.report import Report

DESIGNS: dict[str, Design] = {design.name: design for design in (Mainline(), Report())}

__all__ = ["DESIGNS", "Design", "Verdict"]
