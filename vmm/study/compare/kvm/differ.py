# SPDX-License-Identifier: Apache-2.0
"""The differences between the model and KVM, with reasons.

Owns the reasons, a sentence each; docs/compare.md has more.  An unexpected difference is listed without
a reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from daxfault.vmm.study.compare.cell import Cell, Outcome


@dataclasses.dataclass(frozen=True, slots=True)
class Difference:
    """An access with different outcomes in the model and on KVM."""

    column: str
    design: str
    way: str
    model: str
    kvm: str
    why: str


def differences(
    design: str, model: Mapping[str, Cell], way: str, real: Mapping[str, Cell]
) -> list[Difference]:
    found = []
    for column, of_model in model.items():
        on_kvm = real.get(column)
        if on_kvm is None or Outcome.MEASURED in (of_model.outcome, on_kvm.outcome):
            continue
        if on_kvm.outcome is Outcome.UNTRIED or (of_model.outcome, of_model.ok) == (
            on_kvm.outcome,
            on_kvm.ok,
        ):
            continue
        why = WHY.get((design, column), "")
        found.append(Difference(column, design, way, of_model.text, on_kvm.text, why))
    return found


_EMULATED = (
    "this KVM emulates ring 0 (PVM), and an emulated access that fails is an MMIO exit; "
    "kvm_amd does not, and loops as the model does"
)
_AT_THE_ACCESS = (
    'the model\'s design extends "ready", so it says nothing to a vCPU that has no token; '
    "here the host injects at the access, which needs none"
)
_UNASKED = (
    "the model's host is asked for the page, and told ENOSPC; here a file system refuses within the file's "
    "length, and KVM says neither that nor where: nobody can tell it from a slow page"
)
WHY: dict[tuple[str, str], str] = {
    ("mainline", "kernel-entry"): _EMULATED,
    ("mainline", "kernel-bare"): _EMULATED,
    ("mainline", "io-error"): (
        'the model\'s host answers a fault that failed with "ready"; on KVM it is poisoned, for which KVM '
        "does not wait: SIGBUS to the vCPU's thread"
    ),
    ("rfc-v1", "interrupts-off"): _AT_THE_ACCESS,
    ("rfc-v1", "async-off"): _AT_THE_ACCESS,
    ("rfc-v1", "no-space"): _UNASKED,
    ("exit-to-user", "no-space"): _UNASKED,
    ("inject-on-retry", "no-space"): _UNASKED,
}
