# SPDX-License-Identifier: Apache-2.0
"""What becomes of a fault that the host cannot resolve: one small file a design.

A design is a pure decision: failure in, answer out.  It owns no I/O and no state;
how an answer reaches the guest is the engine's business (native/deliver.c).
"""

from __future__ import annotations

from typing import Protocol

from native import Answer, Failure
from vmm.designs.mainline import Mainline
from vmm.designs.report import Report


class Design(Protocol):
    """Decides one failed fault.  `name` is what the command line calls it, `summary` one line."""

    @property
    def name(self) -> str: ...

    @property
    def summary(self) -> str: ...

    def decide(self, failure: Failure) -> Answer: ...


DESIGNS: dict[str, Design] = {design.name: design for design in (Mainline(), Report())}
