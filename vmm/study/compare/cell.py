# SPDX-License-Identifier: Apache-2.0
"""What a cell of the comparison is: one access under one design, and how it ended.

Owns the outcomes' names and the words for them.  Must not run anything.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Any


class Outcome(enum.StrEnum):
    """How an access ended, or that it did not."""

    BYTES = "bytes"  # the file's bytes, or the zeros of a file that has grown
    SIGBUS = "sigbus"
    EFAULT = "efault"  # from a system call, or a guest kernel's fixup
    PANIC = "panic"  # of the guest kernel
    LOOP = "loop"  # fault, "ready", the same fault
    STOPPED = "stopped"  # KVM_RUN = -EFAULT: the VM is not resumed
    KILLED = "killed"
    HANG = "hang"  # nothing within the deadline
    WRONG = "wrong"  # anything else; the text says what
    UNTRIED = "untried"  # it cannot be done here; `detail` says why
    MEASURED = "measured"  # of a cost: see `numbers`


@dataclasses.dataclass(frozen=True, slots=True)
class Looped:
    """The proof of a loop: `cycles` in `seconds` of fault, no page, the same fault.  `page`: guest
    address; `told`: the guest gets "not present" and "ready" each time, else its vCPU is halted."""

    page: int
    told: bool
    cycles: int
    seconds: float


@dataclasses.dataclass(slots=True)
class Cell:
    """One access under one design.

    `ok`: it is the right end; None: the right error, but without its address, or untried.  `rate`: cycles a
    second of a loop.  `events`: the messages, as daxfault.vmm.study.compare.sequence has them.
    `numbers`: what was measured; times in seconds unless the name says otherwise.
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
    """An access or a measurement, under every design.  `right` is the only right end, None for a cost."""

    name: str
    title: str
    group: str  # behaviour or cost
    right: Outcome | None
    meaning: str  # a sentence: the access, and why that end is right
