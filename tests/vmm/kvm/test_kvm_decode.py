# SPDX-License-Identifier: Apache-2.0
"""The decoder: what an instruction touches, and what it does not know."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daxfault.native.kvm import Registers
from daxfault.vmm.kvm.decode import decode

ZEROS = Registers(**{field.name: 0 for field in dataclasses.fields(Registers)})  # type: ignore[arg-type]
REGISTERS = dataclasses.replace(
    ZEROS,
    rax=0x1000,
    rbx=0x2000,
    rcx=3,
    rdx=0x4000,
    rsi=0x5000,
    rdi=0x6000,
    rsp=0x7000,
    r9=0x9000,
    r13=0xD000,
)
RIP = 0x100000


@pytest.mark.parametrize(
    ("code", "operands"),
    [
        ("8a07", [(0x6000, 1, False)]),  # mov (%rdi),%al
        ("408837", [(0x6000, 1, True)]),  # mov %sil,(%rdi)
        ("488b4608", [(0x5008, 8, False)]),  # mov 8(%rsi),%rax
        ("488b46f8", [(0x4FF8, 8, False)]),  # mov -8(%rsi),%rax
        ("668904cb", [(0x2018, 2, True)]),  # mov %ax,(%rbx,%rcx,8)
        ("438b44cd10", [(0x55010, 4, False)]),  # mov 16(%r13,%r9,8),%eax
        ("8b0425efbe0000", [(0xBEEF, 4, False)]),  # mov 0xbeef,%eax
        ("488b0510000000", [(RIP + 7 + 16, 8, False)]),  # mov 16(%rip),%rax
        ("c70510000000efbeadde", [(RIP + 10 + 16, 4, True)]),  # movl $0xdeadbeef,16(%rip)
        ("0fb601", [(3, 1, False)]),  # movzbl (%rcx),%eax
        ("480fbf0424", [(0x7000, 2, False)]),  # movswq (%rsp),%rax
        ("f0480fc117", [(0x6000, 8, False), (0x6000, 8, True)]),  # lock xadd %rdx,(%rdi)
        ("480137", [(0x6000, 8, False), (0x6000, 8, True)]),  # add %rsi,(%rdi)
        ("3a07", [(0x6000, 1, False)]),  # cmp (%rdi),%al
        ("3807", [(0x6000, 1, False)]),  # cmp %al,(%rdi)
        ("f3a4", [(0x5000, 1, False), (0x6000, 1, True)]),  # rep movsb
        ("f348a5", [(0x5000, 8, False), (0x6000, 8, True)]),  # rep movsq
        ("f3aa", [(0x6000, 1, True)]),  # rep stosb
        ("ac", [(0x5000, 1, False)]),  # lodsb
    ],
)
def test_instruction_that_is_known_gives_its_operands(
    code: str, operands: list[tuple[int, int, bool]]
) -> None:
    found = decode(bytes.fromhex(code) + bytes(15), REGISTERS, RIP)
    assert found is not None
    assert found.length == len(code) // 2
    assert [(operand.gva, operand.length, operand.write) for operand in found.operands] == operands


@pytest.mark.parametrize("code", ["0f0b", "c3", "0f1007", "89c8", "f4", "ff17", ""])
def test_instruction_that_is_not_known_or_touches_nothing_gives_none(code: str) -> None:
    assert decode(bytes.fromhex(code), REGISTERS, RIP) is None


def test_repeated_string_instruction_with_nothing_to_do_touches_nothing() -> None:
    found = decode(bytes.fromhex("f3a4"), dataclasses.replace(REGISTERS, rcx=0), RIP)
    assert found is not None
    assert found.operands == ()


@pytest.mark.parametrize("code", ["488b4608", "c70510000000efbeadde", "f3a4", "438b44cd10"])
def test_instruction_that_is_cut_short_gives_none(code: str) -> None:
    whole = bytes.fromhex(code)
    assert all(decode(whole[:length], REGISTERS, RIP) is None for length in range(len(whole)))


@given(st.binary(max_size=20))
def test_any_bytes_are_decoded_or_refused(code: bytes) -> None:
    found = decode(code, REGISTERS, RIP)
    assert found is None or 1 <= found.length <= min(15, len(code))
