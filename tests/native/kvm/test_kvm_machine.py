# SPDX-License-Identifier: Apache-2.0
"""The machine by itself: vCPUs that run, exit, are stopped and looked at."""

import dataclasses
import errno
import os
import select
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from needs import require
from patience import PATIENCE, until

from daxfault.native import PAGE_SIZE, ffi, kvm, lib
from daxfault.native.kvm import Exit, ExitKind, Kvm, Mapping


def made(irqchip: bool) -> Iterator[Kvm]:
    why = kvm.unsupported()
    require(why is None, str(why))
    machine = Kvm(vcpus=2, irqchip=irqchip)
    yield machine
    machine.close()


@pytest.fixture(params=[True, False], ids=["irqchip", "no-irqchip"])
def machine(request: pytest.FixtureRequest) -> Iterator[Kvm]:
    yield from made(request.param)


@pytest.fixture
def with_irqchip() -> Iterator[Kvm]:
    yield from made(True)


def next_exit(machine: Kvm) -> Exit:
    assert select.select([machine.exits_fd()], [], [], PATIENCE)[0], "no exit"
    (found,) = machine.exits()
    return found


def mailbox(machine: Kvm, vcpu: int) -> Any:
    page = machine.ram(lib.DF_KVM_MAILBOX + 4096 * vcpu, 4096)
    return ffi.from_buffer("struct df_kvm_mailbox *", page, require_writable=True)


def script(machine: Kvm, vcpu: int, *steps: dict[str, int]) -> Any:
    """Write a script, and have the vCPU, which waits at its doorbell, run it."""
    box = mailbox(machine, vcpu)
    for i, step in enumerate(steps):
        box.steps[i] = step
    box.count = len(steps)
    machine.resume(vcpu)
    return box


def test_vcpus_ring_when_they_have_started(machine: Kvm) -> None:
    for vcpu in range(2):
        machine.resume(vcpu)
        found = next_exit(machine)
        assert (found.vcpu, found.kind, found.value) == (vcpu, ExitKind.DOORBELL, lib.DF_KVM_RING_READY)
        assert mailbox(machine, vcpu).magic == lib.DF_KVM_MAGIC
        assert mailbox(machine, vcpu).vcpu == vcpu
        registers = machine.registers(vcpu)
        assert registers.cpl == 0
        assert lib.DF_KVM_IMAGE <= registers.rip < lib.DF_KVM_RAM_LEN


def test_vcpu_in_a_loop_of_ring_0_is_stopped_and_goes_on_when_resumed(machine: Kvm) -> None:
    machine.resume(0)
    next_exit(machine)
    script(machine, 0, {"op": lib.DF_KVM_OP_SPIN})
    for _ in range(50):
        assert machine.stop(0)
        assert next_exit(machine).kind == ExitKind.STOPPED
        assert not machine.stop(0)  # it has stopped
        machine.resume(0)
    assert machine.stop(0)
    assert next_exit(machine).kind == ExitKind.STOPPED


def test_running_vcpu_is_not_looked_at(machine: Kvm) -> None:
    machine.resume(0)
    next_exit(machine)
    script(machine, 0, {"op": lib.DF_KVM_OP_SPIN})
    with pytest.raises(OSError, match="vCPU") as caught:
        machine.registers(0)
    assert caught.value.errno == errno.EBUSY
    with pytest.raises(OSError, match="resume") as caught:
        machine.resume(0)
    assert caught.value.errno == errno.EBUSY


def test_machine_closes_while_its_vcpus_run(machine: Kvm) -> None:
    for vcpu in range(2):
        machine.resume(vcpu)
        next_exit(machine)
        script(machine, vcpu, {"op": lib.DF_KVM_OP_SPIN, "flags": vcpu and lib.DF_KVM_RING3})
    machine.close()
    machine.close()
    with pytest.raises(ValueError, match="closed"):
        machine.resume(0)


def test_interrupt_from_another_vcpu_arrives(with_irqchip: Kvm) -> None:
    machine = with_irqchip
    for vcpu in range(2):
        machine.resume(vcpu)
        next_exit(machine)
    script(machine, 1, {"op": lib.DF_KVM_OP_SPIN, "flags": lib.DF_KVM_IRQS})
    script(machine, 0, {"op": lib.DF_KVM_OP_IPI, "arg": 1})
    assert next_exit(machine).vcpu == 0
    box = mailbox(machine, 1)
    until(lambda: box.ipis, "an interrupt")
    assert box.ipis == 1


def test_msi_arrives_at_the_running_vcpu_it_is_for_and_at_no_other(with_irqchip: Kvm) -> None:
    machine = with_irqchip
    for vcpu in range(2):
        machine.resume(vcpu)
        next_exit(machine)
    boxes = [script(machine, vcpu, {"op": lib.DF_KVM_OP_SPIN, "flags": lib.DF_KVM_IRQS}) for vcpu in range(2)]
    for count in range(1, 4):
        machine.msi(1, lib.DF_KVM_VECTOR_IPI)
        until(lambda: sum(box.ipis for box in boxes) >= count, "an interrupt")  # noqa: B023 - it ends here
        assert [box.ipis for box in boxes] == [0, count]


def test_msi_without_an_irqchip_is_refused_by_name() -> None:
    for machine in made(irqchip=False):
        with pytest.raises(OSError, match="KVM_SIGNAL_MSI"):
            machine.msi(0, lib.DF_KVM_VECTOR_IPI)


@pytest.mark.parametrize(
    ("has", "why"), [({"long_mode": False}, "no long mode"), ({"api": 11}, "API version 11"), ({}, None)]
)
def test_kvm_without_what_the_guest_needs_is_refused_by_name(has: dict[str, Any], why: str | None) -> None:
    can = kvm.Abilities(12, *[True] * (len(dataclasses.fields(kvm.Abilities)) - 1))
    lacks = kvm.lacking(dataclasses.replace(can, **has))
    assert (lacks is None) == (why is None)
    assert why is None or why in str(lacks)


def test_tsc_counts_at_a_rate_that_kvm_knows(machine: Kvm) -> None:
    assert machine.tsc_khz(0) > 100_000
    machine.resume(0)
    next_exit(machine)
    script(machine, 0, {"op": lib.DF_KVM_OP_SPIN})
    with pytest.raises(OSError, match="vCPU 0") as caught:
        machine.tsc_khz(0)
    assert caught.value.errno == errno.EBUSY


def test_triple_fault_is_an_exit(machine: Kvm) -> None:
    machine.resume(0)
    next_exit(machine)
    script(machine, 0, {"op": lib.DF_KVM_OP_TRIPLE})
    assert next_exit(machine).kind == ExitKind.SHUTDOWN


def test_exception_is_refused_while_another_is_to_be_delivered(machine: Kvm) -> None:
    machine.resume(0)
    next_exit(machine)
    machine.exception(0, 14, 0, 0x1000)
    with pytest.raises(OSError, match="exception that is still to be delivered") as caught:
        machine.exception(0, 14, 0, 0x1000)
    assert caught.value.errno == errno.EAGAIN


def test_memslot_that_overlaps_another_is_refused_by_name(machine: Kvm) -> None:
    with pytest.raises(OSError, match="KVM_SET_USER_MEMORY_REGION") as caught:
        machine.memslot(1, 0x1000, 0x1000, 0x10000)
    assert caught.value.errno == errno.EEXIST


def test_memslot_that_changes_its_size_is_never_seen_gone(machine: Kvm) -> None:
    window = Mapping.anonymous(2 * PAGE_SIZE)
    try:
        machine.memslot(1, lib.DF_KVM_WINDOW, 2 * PAGE_SIZE, window.hva)
        for vcpu in range(2):
            machine.resume(vcpu)
            next_exit(machine)
            script(
                machine,
                vcpu,
                {"op": lib.DF_KVM_OP_LOAD, "flags": lib.DF_KVM_RING3, "repeat": 1 << 31},
            )
        for pages in (1, 2) * 50:
            machine.memslot(1, lib.DF_KVM_WINDOW, pages * PAGE_SIZE, window.hva)
        # an access that found no slot would have been an MMIO exit
        assert machine.exits() == []
        for vcpu in range(2):
            assert machine.stop(vcpu)
            assert next_exit(machine).kind == ExitKind.STOPPED
    finally:
        machine.close()
        window.close()


def test_memslot_that_changes_while_a_vcpu_is_resumed_and_stopped_holds_nobody_up(machine: Kvm) -> None:
    """Holding, stopping and resuming from two threads: no wake-up is lost."""
    window = Mapping.anonymous(2 * PAGE_SIZE)
    ended = threading.Event()

    def change() -> None:
        while not ended.is_set():
            for pages in (1, 2):
                machine.memslot(1, lib.DF_KVM_WINDOW, pages * PAGE_SIZE, window.hva)

    machine.resume(0)
    next_exit(machine)
    script(machine, 0, {"op": lib.DF_KVM_OP_SPIN})
    changer = threading.Thread(target=change)
    changer.start()
    try:
        for _ in range(200):
            assert machine.stop(0)
            assert next_exit(machine).kind == ExitKind.STOPPED
            machine.resume(0)
    finally:
        ended.set()
        changer.join(PATIENCE)
        machine.close()
        window.close()


def test_machine_that_is_closed_leaves_no_descriptor_and_no_thread() -> None:
    why = kvm.unsupported()
    require(why is None, str(why))

    def counts() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    before = counts()
    for _ in range(5):
        machine = Kvm(vcpus=2)
        machine.resume(1)
        next_exit(machine)
        script(machine, 1, {"op": lib.DF_KVM_OP_SPIN})
        machine.close()
    assert counts() == before


def test_too_many_vcpus_are_refused() -> None:
    why = kvm.unsupported()
    require(why is None, str(why))
    with pytest.raises(OSError, match="number of vCPUs"):
        Kvm(vcpus=lib.DF_KVM_MAX_VCPUS + 1)


def test_statistics_of_a_running_vcpu_grow(machine: Kvm) -> None:
    machine.resume(0)
    next_exit(machine)
    before = machine.stats(0)["exits"]
    script(machine, 0)
    next_exit(machine)
    assert machine.stats(0)["exits"] > before
    stats = machine.stats(0)
    assert machine.faults(0) == (max(stats["pf_taken"], stats["pf_guest"]), stats["pf_fixed"])
