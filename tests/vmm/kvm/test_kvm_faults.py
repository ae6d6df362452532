# SPDX-License-Identifier: Apache-2.0
"""A file is truncated under a KVM guest: whatever it does, it gets an error, at the exact address."""

import os

import pytest
import trio
from kvm_guest import CUT, PAGE, PAGES, file_guest, view, warm
from needs import require
from trio.testing import trio_test

from daxfault.native.kvm import Via
from daxfault.native.kvm_script import Got, Op, Result, Step, async_pf
from daxfault.vmm.kvm.inject import Injection
from daxfault.vmm.kvm.machine import GuestPanicked, Machine
from daxfault.vmm.kvm.window import Rescue

DEAD = CUT * PAGE
VIA = {Injection.AREA: Via.AREA, Injection.PF: Via.PF, Injection.MC: Via.MC, Injection.EVENT: Via.EVENT}
COPIES = (Op.READ, Op.WRITE)


async def hit(guest: Machine, op: Op, ring: int, *, interrupts: bool = True) -> Result:
    """An access that has its first dead byte at DEAD + 5, or a copy that runs into DEAD."""
    offset, length = (DEAD - 16, 64) if op in COPIES else (DEAD + 5, 1)
    (result,) = await guest.run(
        Step(op, offset=offset, length=length, ring=ring, interrupts=interrupts, table=True, arg=7)
    )
    return result


def check(guest: Machine, result: Result, op: Op, ring: int) -> None:
    copy = op in COPIES
    assert result.got == (Got.SIGBUS if ring == 3 else Got.FIXUP)
    assert result.address == view(ring, DEAD if copy else DEAD + 5)
    assert result.done == (16 if copy else 0)
    assert result.errors == 1
    (report,) = guest.reported
    assert report.fault.gva == result.address
    assert report.fault.ring == ring
    assert report.fault.write == (op in (Op.STORE, Op.WRITE))
    assert result.via == VIA[report.how]


async def regrown(guest: Machine, fd: int, ring: int) -> None:
    """Errors heal: the file grows, and its pages are zeros."""
    os.ftruncate(fd, PAGES * PAGE)
    await guest.revive()
    (result,) = await guest.run(Step(Op.READ, offset=DEAD, length=32, ring=ring, table=True))
    assert (result.got, result.data) == (Got.OK, bytes(32))


@pytest.mark.parametrize("ring", [3, 0])
@pytest.mark.parametrize("injection", Injection)
@pytest.mark.parametrize("rescue", Rescue)
@trio_test
async def test_guest_with_async_pf_after_a_truncation_gets_the_error_and_heals(
    rescue: Rescue, injection: Injection, ring: int
) -> None:
    for op in (Op.LOAD, Op.STORE, Op.READ, Op.WRITE):
        async with file_guest(rescue=rescue, injection=injection) as (guest, fd):
            await guest.run(async_pf(always=ring == 0))
            await warm(guest, ring)
            os.ftruncate(fd, DEAD)
            result = await hit(guest, op, ring)
            check(guest, result, op, ring)
            assert guest.reported[0].how == injection
            await regrown(guest, fd, ring)


@pytest.mark.parametrize("interrupts", [True, False], ids=["IF=1", "IF=0"])
@pytest.mark.parametrize("irqchip", [True, False], ids=["irqchip", "no-irqchip"])
@pytest.mark.parametrize("ring", [3, 0])
@trio_test
async def test_guest_without_async_pf_gets_the_error(ring: int, irqchip: bool, interrupts: bool) -> None:
    for op in (Op.LOAD, Op.STORE, Op.READ, Op.WRITE):
        async with file_guest(irqchip=irqchip, injection=Injection.AREA) as (guest, fd):
            await warm(guest, ring)
            os.ftruncate(fd, DEAD)
            check(guest, await hit(guest, op, ring, interrupts=interrupts), op, ring)


@pytest.mark.parametrize("irqchip", [True, False], ids=["irqchip", "no-irqchip"])
@trio_test
async def test_event_that_would_not_be_taken_is_told_as_an_exception(irqchip: bool) -> None:
    async with file_guest(irqchip=irqchip, injection=Injection.EVENT) as (guest, fd):
        await warm(guest, 3)
        os.ftruncate(fd, DEAD)
        result = await hit(guest, Op.LOAD, 3, interrupts=not irqchip)
        check(guest, result, Op.LOAD, 3)
        (report,) = guest.reported
        assert (report.asked, report.how) == (Injection.EVENT, Injection.AREA)
        assert ("IF is clear" if irqchip else "no irqchip") in report.why
        assert guest.vcpus[0].mailbox.counts().events == 0


@pytest.mark.parametrize("irqs", [True, False], ids=["IF=1", "IF=0"])
@trio_test
async def test_bare_access_of_ring_0_panics_the_guest_with_the_address(irqs: bool) -> None:
    async with file_guest() as (guest, fd):
        await warm(guest, 0)
        os.ftruncate(fd, DEAD)
        with pytest.raises(GuestPanicked, match=f"address {view(0, DEAD):#x}") as caught:
            await guest.run(Step(Op.LOAD, offset=DEAD, ring=0, interrupts=irqs))
        assert "rip 0x10" in str(caught.value)  # the dump
        assert "last exits" in str(caught.value)


@trio_test
async def test_each_page_of_a_dead_tail_is_its_own_error() -> None:
    async with file_guest() as (guest, fd):
        await guest.run(async_pf())
        await warm(guest, 3)
        os.ftruncate(fd, DEAD)
        (result,) = await guest.run(
            Step(Op.LOAD, offset=DEAD - 2 * PAGE, repeat=PAGES - CUT + 2, stride=PAGE)
        )
        assert (result.done, result.errors) == (2, PAGES - CUT)
        gvas = [report.fault.gva for report in guest.reported]
        assert gvas == [view(3, page * PAGE) for page in range(CUT, PAGES)]
        # one rescue is enough for all of them
        assert len(guest.rescued) <= 1


@trio_test
async def test_two_vcpus_are_told_each_of_its_own_access() -> None:
    async with file_guest(vcpus=2) as (guest, fd):
        for vcpu in range(2):
            await guest.run(async_pf(), vcpu=vcpu)
        await warm(guest, 3)
        os.ftruncate(fd, DEAD)
        step = [Step(Op.LOAD, offset=DEAD + vcpu * PAGE, repeat=4, stride=2 * PAGE) for vcpu in range(2)]
        for vcpu in range(2):
            guest.start(step[vcpu], vcpu=vcpu)
        for vcpu in range(2):
            (result,) = await guest.finish(1, vcpu=vcpu)
            assert (result.got, result.errors) == (Got.SIGBUS, 4)
            gvas = [report.fault.gva for report in guest.reported if report.fault.vcpu == vcpu]
            assert gvas == [view(3, DEAD + (vcpu + 2 * i) * PAGE) for i in range(4)]


@trio_test
async def test_loop_without_a_rescue_goes_on_and_kvm_counts_what_the_guest_counts() -> None:
    async with file_guest(rescue=None) as (guest, fd):
        try:
            stats = guest.kvm.stats(0)
        except OSError as e:
            require(False, str(e))
        await guest.run(async_pf())
        await warm(guest, 3)
        os.ftruncate(fd, DEAD)
        stats = guest.kvm.stats(0)
        before = guest.vcpus[0].mailbox.counts()
        guest.start(Step(Op.LOAD, offset=DEAD))

        def cycles() -> int:
            return guest.vcpus[0].mailbox.counts().not_present - before.not_present

        with trio.fail_after(30):
            while cycles() < 200:  # noqa: ASYNC110 - the guest tells nobody: that is the loop
                await trio.sleep(0.001)
        assert guest.vcpus[0].running
        assert guest.reported == []
        guest.kvm.stop(0)
        with trio.fail_after(30):
            await guest.vcpus[0].wake.wait()
        now = guest.kvm.stats(0)
        counted = now["pf_guest"] - stats["pf_guest"]
        # stopped anywhere: one may be injected and not yet seen
        assert cycles() <= counted <= cycles() + 1
        assert now["pf_fixed"] - stats["pf_fixed"] < 10


@trio_test
async def test_loop_that_a_person_stops_watching_ends_by_the_rescue() -> None:
    async with file_guest(rescue=None) as (guest, fd):
        await guest.run(async_pf())
        await warm(guest, 3)
        os.ftruncate(fd, DEAD)
        guest.start(Step(Op.LOAD, offset=DEAD))
        with trio.fail_after(30):
            while guest.vcpus[0].mailbox.counts().not_present < 50:  # noqa: ASYNC110
                await trio.sleep(0.001)
        guest.rescue = Rescue.POISON
        (result,) = await guest.finish(1)
        assert (result.got, result.address) == (Got.SIGBUS, view(3, DEAD))
        assert guest.rescued[0].how is Rescue.POISON
        assert guest.reported[0].fault.by == "siginfo"
