# SPDX-License-Identifier: Apache-2.0
"""Memory whose faults come to us, under a KVM guest: the engine's, and anonymous."""

import os
from pathlib import Path

import pytest
import trio
from kvm_guest import CUT, PAGE, PAGES, require_kvm, view, warm
from needs import require
from trio.testing import trio_test

from daxfault import native
from daxfault.native import Engine
from daxfault.native.kvm import WINDOW_LENGTH, Mapping
from daxfault.native.kvm_script import Got, Op, Step, async_pf
from daxfault.vmm.host.uffd_features import bits
from daxfault.vmm.kvm.inject import Injection
from daxfault.vmm.kvm.machine import machine
from daxfault.vmm.kvm.uffd_memory import AnonymousMemory, CachedMemory, Reply
from daxfault.vmm.kvm.window import Rescue

POISON = bits("POISON")


@pytest.fixture(autouse=True)
def _kvm() -> None:
    require_kvm()
    try:
        features = native.uffd_probe()
    except OSError as e:
        require(False, f"userfaultfd: {e}")
    require(features & POISON, "UFFDIO_POISON (Linux 6.6)")


@pytest.mark.parametrize("apf", [True, False], ids=["async-pf", "no-async-pf"])
@pytest.mark.parametrize("delay", [0.0, 0.02])
@trio_test
async def test_page_that_is_copied_arrives_after_one_not_present_each(apf: bool, delay: float) -> None:
    made: list[AnonymousMemory] = []

    def memory() -> AnonymousMemory:
        made.append(AnonymousMemory(Reply.COPY, delay=delay))
        return made[-1]

    async with machine(memory) as guest:
        if apf:
            await guest.run(async_pf())
        before = guest.vcpus[0].mailbox.counts()
        results = await guest.run(*[Step(Op.READ, offset=page * PAGE, length=8) for page in range(4)])
        numbers = [int.from_bytes(result.data[:8], "little") for result in results]
        assert numbers == [0, 1, 2, 3]
        after = guest.vcpus[0].mailbox.counts()
        waits = after.not_present - before.not_present
        assert waits == (4 if apf else 0)
        assert after.ready - before.ready == waits
        assert after.wake_all == before.wake_all
        assert made[0].faults == 4
        assert guest.reported == []


@pytest.mark.parametrize("ring", [3, 0])
@pytest.mark.parametrize("injection", Injection)
@pytest.mark.parametrize("apf", [True, False], ids=["async-pf", "no-async-pf"])
@trio_test
async def test_page_that_is_poisoned_is_an_error_and_never_a_loop(
    apf: bool, injection: Injection, ring: int
) -> None:
    async with machine(lambda: AnonymousMemory(Reply.POISON, delay=0.002), injection=injection) as guest:
        if apf:
            await guest.run(async_pf(always=ring == 0))
        for op in (Op.LOAD, Op.STORE):
            offset = op * PAGE + 5
            (result,) = await guest.run(Step(op, offset=offset, ring=ring, table=True))
            assert result.got == (Got.SIGBUS if ring == 3 else Got.FIXUP)
            assert result.address == view(ring, offset)
            told = guest.reported[-1]
            assert (told.how, told.fault.gva) == (injection, result.address)
            # an instruction that KVM emulates, as PVM does all of ring 0, ends in MMIO
            assert told.fault.by == "siginfo" or (ring == 0 and told.fault.by == "exit")
        assert guest.rescued == []


@pytest.mark.parametrize("rescue", [rescue for rescue in Rescue if rescue is not Rescue.SHRINK])
def test_rescue_leaves_no_hole_for_the_hosts_own_memory(rescue: Rescue) -> None:
    """Which the guest could reach: the memslot is still there."""
    mapping = Mapping.anonymous(WINDOW_LENGTH)
    change = {
        Rescue.UNMAP: mapping.unmap_tail,
        Rescue.FORBID: mapping.forbid_tail,
        Rescue.POISON: mapping.poison_tail,
    }[rescue]
    change(CUT * PAGE)
    try:
        at = mapping.hva
        for line in Path("/proc/self/maps").read_text().splitlines():
            start, end = (int(part, 16) for part in line.split()[0].split("-"))
            if start <= at < end:
                at = end
        assert at >= mapping.hva + WINDOW_LENGTH
    finally:
        mapping.close()


@trio_test
async def test_machine_ends_while_its_vcpu_waits_for_a_page_nobody_brings() -> None:
    with trio.move_on_after(30) as limit:
        made: list[AnonymousMemory] = []

        def memory() -> AnonymousMemory:
            made.append(AnonymousMemory(Reply.COPY, delay=3600))
            return made[-1]

        async with machine(memory) as guest:
            guest.start(Step(Op.LOAD))
            while not made[0].faults:  # noqa: ASYNC110 - the memory counts, and tells nobody
                await trio.sleep(0.001)
    assert not limit.cancelled_caught


@pytest.mark.parametrize("ring", [3, 0])
@trio_test
async def test_engine_serves_a_kvm_guest_and_a_truncation_is_an_error(tmp_path: Path, ring: int) -> None:
    path = tmp_path / "file"
    data = os.urandom(PAGES * PAGE)
    path.write_bytes(data)
    file = native.File(os.open(path, os.O_RDWR), writable=True)
    engine = Engine()

    try:
        async with machine(lambda: CachedMemory(engine, file)) as guest:
            await guest.run(async_pf(always=ring == 0))
            read = Step(Op.READ, offset=CUT * PAGE - 16, length=32, ring=ring, table=True)
            (result,) = await guest.run(read)
            assert (result.got, result.data) == (Got.OK, data[read.offset : read.offset + 32])
            await warm(guest, ring)
            file.truncate(CUT * PAGE)
            (result,) = await guest.run(read)
            assert (result.got, result.done) == (Got.SIGBUS if ring == 3 else Got.FIXUP, 16)
            assert result.address == view(ring, CUT * PAGE)
            assert guest.reported[0].fault.by in ("siginfo", "exit")
            assert guest.rescued == []
            file.truncate(PAGES * PAGE)
            (result,) = await guest.run(read)
            assert (result.got, result.data[16:]) == (Got.OK, bytes(16))

        # what the guest stored is in the file: the truncation took it, but not the rest
        assert path.read_bytes()[: CUT * PAGE] == data[: CUT * PAGE]
    finally:
        engine.close()
        file.close()
