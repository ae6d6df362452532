# SPDX-License-Identifier: Apache-2.0
"""The counterparts of the designs on a stock kernel: memory, rescue, injection.

Owns their names, and the design of the model that each corresponds to.  A design that needs another
kernel has one too, with that reason.  Must not run anything.
"""

from __future__ import annotations

import dataclasses
import enum

from daxfault.vmm.kvm.inject import Injection
from daxfault.vmm.kvm.window import Rescue
from daxfault.vmm.names import DesignName


class Under(enum.StrEnum):
    """The memory under the window's memslot."""

    FILE = "file"  # a mapping of the file: the kernel resolves the faults, as in the 2020 series
    ENGINE = "engine"  # the file's page cache, whose faults the engine serves


@dataclasses.dataclass(frozen=True, slots=True)
class Mechanism:
    """`models`: a name of daxfault.vmm.designs, or empty.  `impossible`: why no stock kernel can do it.

    Without a rescue a loop does not end; without an injection the guest gets no report, and its vCPU is
    not resumed.
    """

    name: str
    summary: str
    under: Under = Under.FILE
    rescue: Rescue | None = None
    injection: Injection | None = None
    models: str = ""
    impossible: str = ""

    @property
    def promises(self) -> bool:
        """Every access has its right outcome: daxfault's promise if the engine serves the memory."""
        return self.under is Under.ENGINE


_RESCUES = {
    Rescue.UNMAP: "the dead tail is unmapped",
    Rescue.FORBID: "the dead tail is made PROT_NONE",
    Rescue.SHRINK: "the memslot ends before the dead tail",
    Rescue.POISON: "poison is moved over the dead tail",
}
_INJECTIONS = {
    Injection.AREA: "#PF, with reason and address in the async_pf area",
    Injection.PF: "#PF, with a bit in its error code",
    Injection.MC: "#MC, with the gpa in a bank",
    Injection.EVENT: "an MSI, with reason and address in the area",
}
# the design that each mechanism corresponds to
_MODELS = {
    "unmap+area": DesignName.RFC_V1,
    "unmap+pf": DesignName.INJECT_ON_RETRY,
    "engine+mc": DesignName.POISON,
    "engine+event": DesignName.REPORT,
}
_KERNELS = 'KVM itself writes what comes with "ready": user space cannot add a word, it takes another kernel'


def _mechanisms() -> list[Mechanism]:
    mechanisms = [
        Mechanism("kernel", "nobody helps: what this kernel does by itself", models=DesignName.MAINLINE),
        Mechanism(
            "ready-flag",
            'a flag beside the token of "ready"',
            models=DesignName.JUNE_2020,
            impossible=_KERNELS,
        ),
        Mechanism(
            "unmap+stop",
            f"{_RESCUES[Rescue.UNMAP]}; KVM_RUN fails, and the vCPU is not resumed",
            rescue=Rescue.UNMAP,
            models=DesignName.EXIT_TO_USER,
        ),
        Mechanism(
            "ready-gone",
            '"ready" says that the page is gone',
            models=DesignName.GONE_IN_WAKEUP,
            impossible=_KERNELS,
        ),
    ]
    for rescue, does in _RESCUES.items():
        for injection, told in _INJECTIONS.items():
            name = f"{rescue}+{injection}"
            models = _MODELS.get(name, "")
            mechanisms.append(Mechanism(name, f"{does}; {told}", Under.FILE, rescue, injection, models))
    for injection, told in _INJECTIONS.items():
        name = f"engine+{injection}"
        summary = f"the engine serves the memory and poisons; {told}"
        mechanisms.append(Mechanism(name, summary, Under.ENGINE, None, injection, _MODELS.get(name, "")))
    return mechanisms


MECHANISMS: dict[str, Mechanism] = {mechanism.name: mechanism for mechanism in _mechanisms()}


def of_designs(names: list[str]) -> list[Mechanism]:
    """The mechanisms of these designs, in their order."""
    return [mechanism for name in names for mechanism in MECHANISMS.values() if mechanism.models == name]
