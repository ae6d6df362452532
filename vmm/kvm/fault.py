# SPDX-License-Identifier: Apache-2.0
"""Finds the access that caused an exit.

Owns the address of the access, and the evidence for it.  Must not know the guest's script, nor change
the machine.

| exit   | KVM says          | the rest |
|--------|-------------------|----------|
| EFAULT | nothing           | the operands of the instruction at rip; the one that is dead |
| SIGBUS | the page's hva    | the operand in that page; none: another context; the retry shows it |
| MMIO   | the gpa, all bits | the operand there.  A store's rip has moved on: the store before it |

MMIO is also the exit when KVM emulates an instruction and cannot access the memory: the hva is
poisoned, PROT_NONE or past EOF, while the gpa is inside the memslot (emulator_read_write(),
arch/x86/kvm/x86.c).  PVM emulates all of ring 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from daxfault.native import PAGE_SIZE
from daxfault.native.kvm import RAM_LENGTH, WINDOW, WINDOW_LENGTH, Exit, ExitKind, Kvm, Registers
from daxfault.vmm.kvm.decode import MOST, Instruction, Operand, decode
from daxfault.vmm.kvm.window import Window


@dataclasses.dataclass(frozen=True, slots=True)
class Fault:
    """An access of the guest that failed.

    `by`: "exit", "siginfo" or "decoded", for the gpa; the gva is decoded in any case.
    `registers`: before the instruction, with `rip` at it.  `doubtful`: no page there is known to be dead;
    the memslot may have changed at that time, so let the guest repeat the access.
    """

    vcpu: int
    gva: int
    gpa: int
    write: bool
    by: str
    registers: Registers
    doubtful: bool = False

    @property
    def ring(self) -> int:
        return self.registers.cpl


@dataclasses.dataclass(frozen=True, slots=True)
class Unknown:
    """The failed access is unknown; `why` is a message for the user.

    `elsewhere`: the vCPU is not at the access, so it can go on, and repeats the access later.
    """

    why: str
    elsewhere: bool = False


def code_at(kvm: Kvm, vcpu: int, gva: int, length: int) -> bytes:
    """The bytes at `gva`, as far as the guest's page tables map them to its memory; never reads the
    window, because that would touch it."""
    found = b""
    while len(found) < length:
        at = gva + len(found)
        gpa = kvm.translate(vcpu, at)
        most = min(length - len(found), PAGE_SIZE - at % PAGE_SIZE)
        if gpa is None or gpa + most > RAM_LENGTH:
            break
        found += bytes(kvm.ram(gpa, most))
    return found


def locate(kvm: Kvm, window: Window, exit: Exit) -> Fault | Unknown:
    """The access that caused an EFAULT, SIGBUS, MMIO or MEMORY exit.  May block (fstat)."""
    registers = kvm.registers(exit.vcpu)
    if exit.kind is ExitKind.MMIO:
        return _of_mmio(kvm, window, exit, registers)
    if exit.kind is ExitKind.SIGBUS:
        page = window.gpa_of(exit.hva)
        if page is None:
            return Unknown(f"SIGBUS at hva {exit.hva:#x}, which is not in the window")
        found = _operand(kvm, exit.vcpu, registers, lambda gpa: gpa // PAGE_SIZE == page // PAGE_SIZE)
        if found is None:
            return Unknown("the vCPU is not at the access that failed", elsewhere=True)
        return _fault(exit, registers, found, "siginfo")
    found = _operand(kvm, exit.vcpu, registers, window.dead)
    if found is None:
        return Unknown(
            f"{exit.kind.name}, and nothing that the instruction at {registers.rip:#x} touches is dead"
        )
    return _fault(exit, registers, found, "decoded")


def _fault(exit: Exit, registers: Registers, found: tuple[Operand, int, int], by: str) -> Fault:
    operand, gva, gpa = found
    return Fault(exit.vcpu, gva, gpa, operand.write, by, registers)


def _operand(
    kvm: Kvm, vcpu: int, registers: Registers, wanted: Callable[[int], bool]
) -> tuple[Operand, int, int] | None:
    """The operand of the instruction at rip with a byte whose gpa is wanted; that byte's gva and gpa."""
    instruction = decode(code_at(kvm, vcpu, registers.rip, MOST), registers, registers.rip)
    for operand in instruction.operands if instruction else ():
        first, last = operand.gva, operand.gva + operand.length - 1
        # its first byte, and the first byte of a second page
        for gva in dict.fromkeys((first, max(first, last // PAGE_SIZE * PAGE_SIZE))):
            gpa = kvm.translate(vcpu, gva)
            if gpa is not None and wanted(gpa):
                return operand, gva, gpa
    return None


def _of_mmio(kvm: Kvm, window: Window, exit: Exit, registers: Registers) -> Fault | Unknown:
    if not 0 <= exit.gpa - WINDOW < WINDOW_LENGTH:
        return Unknown(f"MMIO at {exit.gpa:#x}, which is in no memslot")
    if exit.write:
        fault = _of_store(kvm, exit, registers)
    else:
        found = _operand(kvm, exit.vcpu, registers, lambda gpa: gpa == exit.gpa)
        if found is None:
            return Unknown(f"MMIO load of gpa {exit.gpa:#x} by an unknown instruction")
        fault = _fault(exit, registers, found, "exit")
    if isinstance(fault, Fault) and not window.dead(exit.gpa):
        return dataclasses.replace(fault, doubtful=True)
    return fault


def _of_store(kvm: Kvm, exit: Exit, registers: Registers) -> Fault | Unknown:
    """KVM has advanced rip: find the store that ends at rip, and restore the registers before it."""
    code = code_at(kvm, exit.vcpu, registers.rip - MOST, 2 * MOST)
    found: list[Fault] = []
    # longest first: a prefix belongs to its instruction.  Length 0: a string instruction that has
    # not finished, so rip has not moved.
    for length in (*range(MOST, 0, -1), 0):
        rip = registers.rip - length
        before = dataclasses.replace(registers, rip=rip)
        instruction = decode(code[MOST - length :], before, rip)
        if instruction is None or (length and instruction.length != length):
            continue
        if instruction.step:
            before = _stepped_back(before, instruction)
            instruction = decode(code[MOST - length :], before, rip)
        elif not length:
            continue
        if instruction is None:
            continue
        if instruction.source is not None and instruction.source != exit.value % (1 << 8 * exit.length):
            continue
        for operand in instruction.operands:
            if operand.write and kvm.translate(exit.vcpu, operand.gva) == exit.gpa:
                found.append(Fault(exit.vcpu, operand.gva, exit.gpa, True, "exit", before))
    if not found:
        return Unknown(f"MMIO store to gpa {exit.gpa:#x} by an unknown instruction")
    return found[0]


def _stepped_back(registers: Registers, instruction: Instruction) -> Registers:
    """The registers before the last step of a string store, movs or stos, which advance rdi."""
    step, mask = instruction.step, (1 << 64) - 1
    reads = any(not operand.write for operand in instruction.operands) or not instruction.operands
    return dataclasses.replace(
        registers,
        rdi=(registers.rdi - step) & mask,
        rsi=(registers.rsi - step) & mask if reads else registers.rsi,
        rcx=(registers.rcx + 1) & mask if instruction.repeats else registers.rcx,
    )
