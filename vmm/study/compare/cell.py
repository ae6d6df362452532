# SPDX-License-Identifier: Apache-2.0
"""A cell of the comparison: one access under one design, and its outcome.

Owns the names of outcomes and their texts.  Must not run anything.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Any


class Outcome(enum.StrEnum):
    """The outcome of an access."""

    BYTES = "bytes"  # the file's bytes, or the zeros of a file that has grown
    SIGBUS = "sigbus"
    EFAULT = "efault"  # from a system call, or a guest kernel's fixup
    PANIC = "panic"  # of the guest kernel
    LOOP = "loop"  # fault, "ready", the same fault
    STOPPED = "stopped"  # KVM_RUN = -EFAULT: the VM is not resumed
    KILLED = "killed"
    HANG = "hang"  # no result before the deadline
    WRONG = "wrong"  # any other result; see the text
    UNTRIED = "untried"  # not possible here; `detail` has the reason
    MEASURED = "measured"  # of a cost: see `numbers`


@dataclasses.dataclass(frozen=True, slots=True)
class Looped:
    """A detected loop: `cycles` of the same fault in `seconds`.  `page`: guest address; `told`: the guest
    gets "not present" and "ready" each time, otherwise its vCPU is halted."""

    page: int
    told: bool
    cycles: int
    seconds: float


@dataclasses.dataclass(slots=True)
class Cell:
    """One access under one design.

    `ok`: the outcome is right; None: the right error without its address, or untried.  `rate`: of a loop, in
    cycles per second.  `events`: the messages, in the form of daxfault.vmm.study.compare.sequence.
    `numbers`: measurements; times in seconds unless the name says otherwise.
    """

    outcome: Outcome
    text: str
    detail: str = ""
    ok: bool | None = None
    rate: float | None = None
    si_code: int | None = None
    address_exact: bool | None = None
    events: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    numbers: dict[str, Any] = dataclasses.field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"outcome": self.outcome.value}


@dataclasses.dataclass(frozen=True, slots=True)
class Column:
    """An access or a measurement, under every design.  `right` is the only right outcome, None for a cost."""

    name: str
    title: str
    group: str  # behaviour or cost
    right: Outcome | None
    meaning: str  # a sentence: the access, and why that outcome is right
