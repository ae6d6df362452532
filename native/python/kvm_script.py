# SPDX-License-Identifier: Apache-2.0
"""Scripts for the KVM guest, and the results that it reports.

Owns the mailbox's bytes.  The guest may write anything to it: an invalid mailbox raises Nonsense.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence
from typing import Any

from daxfault.native._daxfault import ffi, lib
from daxfault.native.kvm import WINDOW, WINDOW_USER, Kvm, Via


class Op(enum.IntEnum):
    """enum df_kvm_op."""

    LOAD = lib.DF_KVM_OP_LOAD
    STORE = lib.DF_KVM_OP_STORE
    READ = lib.DF_KVM_OP_READ
    WRITE = lib.DF_KVM_OP_WRITE
    APF = lib.DF_KVM_OP_APF
    IPI = lib.DF_KVM_OP_IPI
    SPIN = lib.DF_KVM_OP_SPIN
    TRIPLE = lib.DF_KVM_OP_TRIPLE
    SCRIBBLE = lib.DF_KVM_OP_SCRIBBLE
    HALT = lib.DF_KVM_OP_HALT
    PANIC = lib.DF_KVM_OP_PANIC


class Got(enum.IntEnum):
    """The outcome of a step (enum df_kvm_outcome)."""

    NOT_RUN = lib.DF_KVM_NOT_RUN
    OK = lib.DF_KVM_OK
    SIGBUS = lib.DF_KVM_SIGBUS
    FIXUP = lib.DF_KVM_FIXUP
    BAD_STEP = lib.DF_KVM_BAD_STEP


class Nonsense(Exception):
    """The mailbox holds something that no correct guest writes."""


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """struct df_kvm_step."""

    op: Op
    offset: int = 0
    length: int = 1
    ring: int = 3
    interrupts: bool = True
    table: bool = False
    arg: int = 0
    repeat: int = 1
    stride: int = 0

    @property
    def flags(self) -> int:
        flags = lib.DF_KVM_RING3 if self.ring == 3 else 0
        flags |= lib.DF_KVM_IRQS if self.interrupts else 0
        return int(flags | (lib.DF_KVM_TABLE if self.table else 0))

    @property
    def gva(self) -> int:
        """The first byte that it accesses."""
        return (WINDOW_USER if self.ring == 3 else WINDOW) + self.offset


def async_pf(*, always: bool = False) -> Step:
    """Enable async page faults; `always`: for ring 0 as well."""
    arg = lib.DF_KVM_APF_ENABLED | lib.DF_KVM_APF_AS_INT
    return Step(Op.APF, arg=arg | (lib.DF_KVM_APF_ALWAYS if always else 0))


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """struct df_kvm_result, as reported by the guest; `address` is a gva, `tsc` the cycles of the step."""

    got: Got
    via: Via
    address: int
    rip: int
    code: int
    done: int
    errors: int
    tsc: int
    data: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Counts:
    """The guest's own counters; see struct df_kvm_mailbox."""

    not_present: int
    ready: int
    wake_all: int
    page_errors: int
    machine_checks: int
    events: int
    ipis: int
    unexpected: int


@dataclasses.dataclass(frozen=True, slots=True)
class Panic:
    """struct df_kvm_panic."""

    vector: int
    code: int
    rip: int
    cs: int
    rflags: int
    rsp: int
    cr2: int
    address: int


class Mailbox:
    """The page that a vCPU and its host share."""

    def __init__(self, kvm: Kvm, vcpu: int) -> None:
        self._kvm = kvm
        self._vcpu = vcpu

    @property
    def _box(self) -> Any:
        # looked up each time, because a closed machine refuses
        page = self._kvm.ram(lib.DF_KVM_MAILBOX + lib.DF_PAGE_SIZE * self._vcpu, lib.DF_PAGE_SIZE)
        return ffi.from_buffer("struct df_kvm_mailbox *", page, require_writable=True)

    def write(self, steps: Sequence[Step]) -> None:
        """Write the next script, at most DF_KVM_STEPS steps; otherwise ValueError."""
        if len(steps) > lib.DF_KVM_STEPS:
            raise ValueError(f"{len(steps)} steps: at most {lib.DF_KVM_STEPS} fit in a script")
        box = self._box
        for i, step in enumerate(steps):
            to = box.steps[i]
            to.op, to.flags, to.arg = step.op, step.flags, step.arg
            to.offset, to.length, to.repeat, to.stride = step.offset, step.length, step.repeat, step.stride
            box.results[i].outcome = Got.NOT_RUN
        box.count = len(steps)
        box.ran = 0

    def results(self, count: int) -> list[Result]:
        """The results of the script's `count` steps; Nonsense unless all have been run."""
        box = self._copy()
        if (box.magic, box.vcpu, box.ran) != (lib.DF_KVM_MAGIC, self._vcpu, count):
            raise Nonsense(f"magic {box.magic:#x}, vCPU {box.vcpu}, {box.ran} results of {count} steps")
        return [self._result(box.results[i]) for i in range(count)]

    def counts(self) -> Counts:
        """May be read while the guest runs."""
        box = self._box
        return Counts(*(int(getattr(box, f.name)) for f in dataclasses.fields(Counts)))

    def panic(self) -> Panic:
        panic = self._copy().panic
        return Panic(*(int(getattr(panic, f.name)) for f in dataclasses.fields(Panic)))

    def _copy(self) -> Any:
        copy = ffi.new("struct df_kvm_mailbox *")
        copy[0] = self._box[0]
        return copy

    @staticmethod
    def _result(told: Any) -> Result:
        try:
            got, via = Got(told.outcome), Via(told.via)
        except ValueError as e:
            raise Nonsense(str(e)) from None
        return Result(
            got, via, told.address, told.rip, told.code, told.done, told.errors, told.tsc, bytes(told.bytes)
        )
