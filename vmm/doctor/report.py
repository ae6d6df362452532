# SPDX-License-Identifier: Apache-2.0
"""The requirements of daxfault that this machine meets, and the features that work on it.

Owns the report.  Must not print, nor change anything on the machine.

    probe() -> Report       inspects the machine
    conclude(Machine)       decides, from its argument alone
    as_json(Report)         the report as plain values

The JSON form is a promise: keys are added, never renamed or removed, as long as
"schema" stays the same.

    schema        1
    daxfault      version of this package
    repro         whether `daxfault repro` can run: the exit status is 0, else 3
    kernel        release, as uname -r gives it
    machine       architecture, as uname -m gives it
    user          {uid, root}
    native        null, or why the compiled part cannot be loaded
    userfaultfd   {bits, kernel_faults, problem}; bits is null when userfaultfd is not available;
                  kernel_faults: faults inside system calls are served too
    features      [{bit, name, since, use, needed, here}]; here is null when not known
    devices       [{path, use, present, openable, owner, problem, mend}]
    settings      [{name, value, use, enough, mend}]
    abilities     [{name, what, works, reason}]
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from daxfault.vmm.doctor import devices, settings
from daxfault.vmm.doctor.devices import Device
from daxfault.vmm.doctor.settings import Setting
from daxfault.vmm.host.uffd_features import FEATURES, has, needed_but_missing

SCHEMA = 1


@dataclass(frozen=True)
class Userfaultfd:
    """The result of UFFDIO_API."""

    bits: int | None  # the kernel's feature bits; None when userfaultfd is not available
    kernel_faults: bool  # not limited to UFFD_USER_MODE_ONLY
    problem: str | None


@dataclass(frozen=True)
class Machine:
    """The findings, without conclusions."""

    kernel: str
    machine: str
    uid: int
    native: str | None  # None, or why the compiled part cannot be loaded
    userfaultfd: Userfaultfd
    devices: tuple[Device, ...]
    settings: tuple[Setting, ...]

    def device(self, path: str) -> Device:
        return next(device for device in self.devices if device.path == path)

    def setting(self, name: str) -> Setting:
        return next(setting for setting in self.settings if setting.name == name)


@dataclass(frozen=True)
class Ability:
    """A feature of daxfault, and whether it works here."""

    name: str
    what: str
    works: bool
    reason: str  # why not, with a remedy; or the mechanism that makes it work


@dataclass(frozen=True)
class Report:
    """The machine, and the conclusions."""

    machine: Machine
    abilities: tuple[Ability, ...]

    @property
    def repro(self) -> bool:
        return self.ability("repro").works

    def ability(self, name: str) -> Ability:
        return next(ability for ability in self.abilities if ability.name == name)


def probe() -> Report:
    """Inspect this machine.  Never raises: the report includes failed inspections."""
    machine = _look()
    return Report(machine, tuple(conclude(machine)))


def conclude(machine: Machine) -> Iterator[Ability]:
    """The abilities on `machine`: "repro" first, the others in the order of the README."""
    mounting = _mounting(machine)
    guest = _guest(machine)
    trouble = "; and ".join(problem for problem in (guest, mounting) if problem) or None
    uffd = machine.userfaultfd
    bits = uffd.bits or 0

    def ability(name: str, what: str, problem: str | None, by: str) -> Ability:
        return Ability(name, what, problem is None, problem or by)

    yield ability("repro", "reproduce the loop, with the stand-in guest", trouble, "userfaultfd and FUSE")
    yield ability("mount", "serve a directory", mounting, "FUSE")
    yield ability("report", "report a page error to the guest", trouble, "a signal to the faulting thread")

    poison = trouble
    if not poison and not has(bits, "POISON"):
        poison = "the kernel lacks UFFD_FEATURE_POISON, which Linux 6.6 brought"
    yield ability("poison", "fail accesses inside system calls (EFAULT)", poison, "UFFDIO_POISON")

    fork = trouble
    if not fork and not has(bits, "EVENT_FORK"):
        fork = "the kernel lacks UFFD_FEATURE_EVENT_FORK"
    elif not fork and machine.uid != 0:
        # userfaultfd_api() in fs/userfaultfd.c requires CAP_SYS_PTRACE for it
        fork = "EVENT_FORK requires CAP_SYS_PTRACE; run as root"
    yield ability("fork", "serve the children of a guest", fork, "UFFD_FEATURE_EVENT_FORK")

    watches = machine.setting("fs.inotify.max_user_watches")
    unnoticed = mounting
    if not unnoticed and not watches.enough:
        unnoticed = (
            f"{watches.name} is {watches.value}: files beyond that are checked "
            f"only when they are used; {watches.mend}"
        )
    yield ability("behind", "notice truncation behind the mount at once", unnoticed, "inotify")


def as_json(report: Report) -> dict[str, Any]:
    """The report as values for json.dumps, in the form of this module's docstring."""
    from importlib.metadata import version

    machine = report.machine
    bits = machine.userfaultfd.bits
    return {
        "schema": SCHEMA,
        "daxfault": version("daxfault"),
        "repro": report.repro,
        "kernel": machine.kernel,
        "machine": machine.machine,
        "user": {"uid": machine.uid, "root": machine.uid == 0},
        "native": machine.native,
        "userfaultfd": asdict(machine.userfaultfd),
        "features": [
            asdict(feature) | {"here": None if bits is None else has(bits, feature.name)}
            for feature in FEATURES
        ],
        "devices": [asdict(device) for device in machine.devices],
        "settings": [asdict(setting) for setting in machine.settings],
        "abilities": [asdict(ability) for ability in report.abilities],
    }


# ---- deciding


def _mounting(machine: Machine) -> str | None:
    """Why nothing can be mounted; None when it can."""
    device = machine.device("/dev/fuse")
    if not device.openable:
        return _why(device)
    program = machine.setting("fusermount3")
    if not program.enough:
        return f"only root can mount without fusermount3; {program.mend}"
    return None


def _guest(machine: Machine) -> str | None:
    """Why no guest can be served; None when it can."""
    if machine.native is not None:
        return f"the compiled part does not load: {machine.native}"
    if machine.machine != "x86_64":
        return f"the guest stand-in is x86-64 code, and this is {machine.machine}"
    uffd = machine.userfaultfd
    device = machine.device("/dev/userfaultfd")
    if uffd.bits is None or not uffd.kernel_faults:
        problem = uffd.problem or "userfaultfd is limited to faults outside system calls here"
        return f"{problem}; {device.mend}" if device.mend else problem
    missing = needed_but_missing(uffd.bits)
    if missing:
        names = ", ".join(f"{feature.name} (Linux {feature.since})" for feature in missing)
        return f"the kernel's userfaultfd lacks {names}"
    return None


def _why(device: Device) -> str:
    advice = device.mend or "the container's owner must permit the device"
    return f"{device.path}: {device.problem}; {advice}"


# ---- looking


def _look() -> Machine:
    system = os.uname()
    problem, uffd, poison = _ask_native()
    return Machine(
        kernel=system.release,
        machine=system.machine,
        uid=os.geteuid(),
        native=problem,
        userfaultfd=uffd,
        devices=(devices.fuse(), devices.userfaultfd(), devices.kvm()),
        settings=(
            settings.fusermount3(),
            settings.user_allow_other(),
            settings.unprivileged_userfaultfd(allowed_anyway=uffd.kernel_faults),
            settings.descriptors(),
            settings.page_caches(),
            settings.fusectl(),
            settings.confinement(),
            settings.inotify("max_user_watches", settings.FEW_WATCHES),
            settings.inotify("max_user_instances", 1),
            settings.memory_failure(poison),
        ),
    )


def _ask_native() -> tuple[str | None, Userfaultfd, int | None]:
    """-> (why native does not load, what userfaultfd offers, si_code of a poisoned page)."""
    try:
        from daxfault import native
    except ImportError as exc:
        return str(exc), Userfaultfd(None, False, "not asked: the compiled part does not load"), None
    try:
        poison = native.poison_code()
    except OSError:
        poison = None
    if not os.access(native.standin(), os.X_OK):
        return f"{native.standin()} is not there", _ask_kernel(native.uffd_probe), poison
    return None, _ask_kernel(native.uffd_probe), poison


def _ask_kernel(ask: Any) -> Userfaultfd:
    try:
        return Userfaultfd(ask(), True, None)
    except OSError as exc:
        refused = f"userfaultfd: {os.strerror(exc.errno or 0)}"
    try:
        return Userfaultfd(ask(user_mode_only=True), False, f"{refused} for faults inside system calls")
    except OSError as exc:
        return Userfaultfd(None, False, f"userfaultfd: {os.strerror(exc.errno or 0)}")
