# SPDX-License-Identifier: Apache-2.0
"""A KVM guest that breaks, or means harm: its host ends it, says in what state it was, and lives on."""

import os

import pytest
import trio
from kvm_guest import file_guest, require_kvm
from trio.testing import trio_test

from daxfault.native import lib
from daxfault.native.kvm import WINDOW_LENGTH, Kvm
from daxfault.native.kvm_script import Got, Op, Step
from daxfault.vmm.errors import Unsupported
from daxfault.vmm.kvm.machine import GuestEnded, GuestPanicked, Machine
from daxfault.vmm.kvm.window import FileMemory, Window


@pytest.mark.parametrize("irqchip", [True, False], ids=["irqchip", "no-irqchip"])
@pytest.mark.parametrize(
    ("step", "why"),
    [
        (Step(Op.TRIPLE), "SHUTDOWN"),
        (Step(Op.SPIN, ring=0, interrupts=False), "no answer in 0.2 s"),
        (Step(Op.SPIN, ring=3, interrupts=False), "no answer in 0.2 s"),
        (Step(Op.SCRIBBLE), "mailbox makes no sense"),
        (Step(Op.HALT), "HALT|no answer in 0.2 s"),
        (Step(Op.PANIC), "panicked"),
    ],
    ids=lambda value: value.op.name + str(value.ring) if isinstance(value, Step) else "",
)
@trio_test
async def test_guest_that_breaks_is_ended_with_a_dump(step: Step, why: str, irqchip: bool) -> None:
    async with file_guest(irqchip=irqchip) as (guest, _):
        with pytest.raises(GuestEnded, match=why) as caught:
            await guest.run(step, seconds=0.2)
        message = str(caught.value)
        assert "rip 0x1" in message
        assert "DOORBELL" in message
        assert isinstance(caught.value, GuestPanicked) == (step.op is Op.PANIC)
        # and it stays ended
        with pytest.raises(GuestEnded):
            await guest.run(Step(Op.LOAD))


@trio_test
async def test_guest_that_breaks_ends_the_wait_for_its_other_vcpu() -> None:
    async with file_guest(vcpus=2) as (guest, _):
        guest.start(Step(Op.SPIN, ring=3), vcpu=1)
        guest.start(Step(Op.TRIPLE))
        with pytest.raises(GuestEnded, match=r"vCPU 0: .*SHUTDOWN"):
            await guest.finish(1, vcpu=1)


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("0f0b", "SHUTDOWN"),  # ud2, before there is a trap for it
        ("e6ef", "PORT"),  # out to a port of nobody's
    ],
)
@trio_test
async def test_cpu_that_cannot_run_the_guest_is_unsupported_with_a_dump(code: str, why: str) -> None:
    """As an emulation is that stumbles over the guest's first instructions: here others stand there."""
    require_kvm()

    memory = FileMemory(os.memfd_create("window"))
    kvm = Kvm()
    kvm.ram(lib.DF_KVM_IMAGE, len(code) // 2)[:] = bytes.fromhex(code)
    try:
        async with trio.open_nursery() as nursery:
            guest = Machine(kvm, Window(kvm, memory), None, None)
            nursery.start_soon(guest.serve)
            with pytest.raises(Unsupported, match=f"/dev/kvm: .*{why}") as caught:
                await guest.boot()
            assert "rip 0x1" in str(caught.value)
            nursery.cancel_scope.cancel()
    finally:
        kvm.close()
        memory.close()


@trio_test
async def test_step_outside_the_window_is_refused_by_the_guest() -> None:
    async with file_guest() as (guest, _):
        results = await guest.run(
            Step(Op.LOAD, offset=WINDOW_LENGTH),
            Step(Op.READ, offset=WINDOW_LENGTH - 1, length=2),
            Step(Op.READ, offset=0, length=4097),
            Step(Op.LOAD, repeat=1 << 31, stride=1 << 31),
            Step(Op.LOAD),
        )
        assert [result.got for result in results] == [*[Got.BAD_STEP] * 4, Got.OK]


@trio_test
async def test_script_that_is_too_long_is_refused_by_the_host() -> None:
    async with file_guest() as (guest, _):
        with pytest.raises(ValueError, match="at most 16"):
            guest.start(*[Step(Op.LOAD)] * 17)
