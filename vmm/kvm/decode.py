# SPDX-License-Identifier: Apache-2.0
"""The memory operands of x86-64 instructions, to find a failed access when KVM does not report it.

Owns no state.  The result for an unknown instruction is None, never a guess.  Covers the loads, stores,
arithmetic and string instructions that compilers generate for memcpy, get_user and plain C, but no
vector instructions.  Source: Intel SDM volume 2, chapter 2 and appendix A.
"""

from __future__ import annotations

import dataclasses

from daxfault.native.kvm import Registers

_NAMES = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))
_MASK = (1 << 64) - 1
MOST = 15  # bytes of an instruction

# opcode -> (bytes accessed, 0: the operand's size; reads; writes; bytes of immediate, -1: the operand's)
_ONE: dict[int, tuple[int, bool, bool, int]] = {
    0x63: (4, True, False, 0),
    0x80: (1, True, True, 1),
    0x81: (0, True, True, -1),
    0x83: (0, True, True, 1),
    0x84: (1, True, False, 0),
    0x85: (0, True, False, 0),
    0x86: (1, True, True, 0),
    0x87: (0, True, True, 0),
    0x88: (1, False, True, 0),
    0x89: (0, False, True, 0),
    0x8A: (1, True, False, 0),
    0x8B: (0, True, False, 0),
    0xC6: (1, False, True, 1),
    0xC7: (0, False, True, -1),
    0xFE: (1, True, True, 0),
}
for _base in range(0, 0x40, 8):  # add or adc sbb and sub xor cmp
    _writes = _base != 0x38
    _ONE[_base] = (1, True, _writes, 0)
    _ONE[_base + 1] = (0, True, _writes, 0)
    _ONE[_base + 2] = (1, True, False, 0)
    _ONE[_base + 3] = (0, True, False, 0)
_TWO: dict[int, tuple[int, bool, bool, int]] = {
    0xB0: (1, True, True, 0),
    0xB1: (0, True, True, 0),
    0xB6: (1, True, False, 0),
    0xB7: (2, True, False, 0),
    0xBE: (1, True, False, 0),
    0xBF: (2, True, False, 0),
    0xC0: (1, True, True, 0),
    0xC1: (0, True, True, 0),
}
# movs, stos, lods: reads at rsi, writes at rdi
_STRING = {0xA4: (True, True), 0xAA: (False, True), 0xAC: (True, False)}


@dataclasses.dataclass(frozen=True, slots=True)
class Operand:
    """`length` bytes at a gva."""

    gva: int
    length: int
    write: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Instruction:
    """`length` is that of the instruction, in bytes.  `step`: of a string instruction, otherwise 0;
    `source`: the register whose value a plain store writes."""

    length: int
    operands: tuple[Operand, ...]
    step: int = 0
    repeats: bool = False
    source: int | None = None


class _Bytes:
    def __init__(self, code: bytes) -> None:
        self._code = code
        self.at = 0

    def next(self) -> int:
        if self.at >= min(len(self._code), MOST):
            raise IndexError
        self.at += 1
        return self._code[self.at - 1]

    def signed(self, length: int) -> int:
        return int.from_bytes(bytes(self.next() for _ in range(length)), "little", signed=True)


def decode(code: bytes, registers: Registers, rip: int) -> Instruction | None:
    """Decode the instruction at `rip`, which `code` begins with, as run with `registers`; None when it is
    unknown or incomplete."""
    try:
        return _decode(_Bytes(code), registers, rip)
    except IndexError:
        return None


def _decode(code: _Bytes, registers: Registers, rip: int) -> Instruction | None:
    wide, repeats, rex = False, False, 0
    byte = code.next()
    while byte in (0x66, 0xF2, 0xF3, 0xF0, 0x2E, 0x3E):
        wide |= byte == 0x66
        repeats |= byte in (0xF2, 0xF3)
        byte = code.next()
    if byte & 0xF0 == 0x40:
        rex, byte = byte, code.next()
    size = 8 if rex & 8 else 2 if wide else 4
    if byte & 0xFE in _STRING:
        return _string(byte, size, repeats, code.at, registers)
    if byte == 0x0F:
        form = _TWO.get(code.next())
    elif byte in (0xF6, 0xF7, 0xFF):
        return None  # the register field selects the operation; compilers do not use them for such reads
    else:
        form = _ONE.get(byte)
    if form is None:
        return None
    length, reads, writes, immediate = form
    length = length or size
    found = _address(code, rex, registers)
    if found is None:
        return None  # between registers
    address, field, relative = found
    for _ in range(min(size, 4) if immediate < 0 else immediate):
        code.next()
    if relative:
        address += rip + code.at
    operands = [Operand(address & _MASK, length, write) for write in (False, True) if (reads, writes)[write]]
    source = None
    if byte in (0x88, 0x89):
        source = _register(registers, field, length, bool(rex))
    return Instruction(code.at, tuple(operands), source=source)


def _string(byte: int, size: int, repeats: bool, length: int, registers: Registers) -> Instruction:
    reads, writes = _STRING[byte & 0xFE]
    size = size if byte & 1 else 1
    operands = []
    if reads:
        operands.append(Operand(registers.rsi, size, False))
    if writes:
        operands.append(Operand(registers.rdi, size, True))
    if repeats and not registers.rcx:
        operands = []
    return Instruction(length, tuple(operands), -size if registers.rflags & 0x400 else size, repeats)


def _register(registers: Registers, number: int, length: int, rex: bool) -> int:
    if length == 1 and not rex and 4 <= number < 8:  # ah ch dh bh
        return int(getattr(registers, _NAMES[number - 4])) >> 8 & 0xFF
    return int(getattr(registers, _NAMES[number])) & ((1 << 8 * length) - 1)


def _address(code: _Bytes, rex: int, registers: Registers) -> tuple[int, int, bool] | None:
    """-> (address, the register field, relative to the next instruction)"""
    modrm = code.next()
    mod, field, base = modrm >> 6, modrm >> 3 & 7 | (rex & 4) << 1, modrm & 7
    if mod == 3:
        return None
    address = 0
    if base == 4:
        sib = code.next()
        index = sib >> 3 & 7 | (rex & 2) << 2
        if index != 4:
            address += int(getattr(registers, _NAMES[index])) << (sib >> 6)
        base = sib & 7
        if base == 5 and mod == 0:
            return address + code.signed(4), field, False
    elif base == 5 and mod == 0:
        return code.signed(4), field, True
    address += int(getattr(registers, _NAMES[base | (rex & 1) << 3]))
    if mod:
        address += code.signed(1 if mod == 1 else 4)
    return address, field, False
