# SPDX-License-Identifier: Apache-2.0
"""The host side of async page faults, seen from the slot: tokens, queue, ACK, and every ABI's bytes."""

import struct
from pathlib import Path

import pytest
from bare_vcpu import (
    ACKS,
    ALL,
    AS_INT,
    CR2,
    ENABLED,
    FLAGS,
    IRR,
    MSR_EN,
    PAGE,
    SEND_ALWAYS,
    SEND_ERROR,
    SLOT,
    STATE,
    TID,
    TOKEN,
    USER,
    bare,
    gone,
    page_of,
    until,
)

from daxfault.native import Abi, Answer, Cpuid, CpuState, Delivery, GuestFlag, TraceKind, Wait

TELL = GuestFlag.TELL_FAILURES
INTERRUPTING = [Abi.MAINLINE, Abi.JUNE_2020, Abi.GONE, Abi.RETRY, Abi.REPORT]
KERNEL = CpuState.IF | CpuState.KERNEL


# ---- tokens


@pytest.mark.parametrize("vcpu", [0, 5, 63])
def test_token_is_a_count_above_the_vcpu_and_never_zero(tmp_path: Path, vcpu: int) -> None:
    with bare(tmp_path) as g:
        g.enable(vcpu=vcpu)
        g.slow()
        for count in (1, 2, 3):
            g.touch(count, vcpu)
            assert g.told(vcpu) == count << 12 | vcpu


def test_token_wraps_past_zero(tmp_path: Path) -> None:
    with bare(tmp_path, token_id=(1 << 20) - 1) as g:
        g.enable()
        g.slow()
        g.touch(1)
        assert g.told() == 0xFFFFF << 12
        g.touch(2)
        assert g.told() == 1 << 12  # alloc_apf_token(): 0 is "the slot is free"
        g.touch(3)
        assert g.told() == 2 << 12


@pytest.mark.parametrize("abi", list(Abi))
def test_slow_source_is_not_present_then_ready_with_the_token(tmp_path: Path, abi: Abi) -> None:
    with bare(tmp_path, abi) as g:
        g.enable()
        g.slow()
        task = g.touch(3)
        until(lambda: g.get(FLAGS), "not present")
        assert g.slots[:8] == struct.pack("=II", 1, 0)
        assert g.get(CR2, "Q") == 1 << 12
        assert task.pending(42)
        g.put(FLAGS, 0)
        g.arrive(3)
        until(g.ready, "ready")
        if abi is Abi.RFC_V1:
            assert g.slots[:16] == struct.pack("=IIQ", 2, 0, 0)
            assert g.get(CR2, "Q") == 1 << 12
        else:
            assert g.slots[:40] == struct.pack("=II", 0, 1 << 12) + bytes(32)
            assert g.get(IRR) == 1
        assert task.done() == page_of(3)[:8]


def test_page_that_is_had_at_once_is_told_to_nobody(tmp_path: Path) -> None:
    with bare(tmp_path) as g:
        g.enable()
        assert g.touch(3).done() == page_of(3)[:8]
        assert g.slots[:8] == bytes(8)


# ---- may it be told?


@pytest.mark.parametrize(
    ("state", "msr", "wait"),
    [
        (USER, ENABLED | AS_INT, Wait.TOLD),
        (CpuState(0), ENABLED | AS_INT, Wait.SYNC),
        (KERNEL, ENABLED | AS_INT, Wait.HALTED),
        (KERNEL, ENABLED | AS_INT | SEND_ALWAYS, Wait.TOLD),
        (CpuState.KERNEL, ENABLED | AS_INT | SEND_ALWAYS, Wait.SYNC),
        (USER | CpuState.SYSCALL, ENABLED | AS_INT | SEND_ALWAYS, Wait.HALTED),
        (USER, 0, Wait.HALTED),
        (USER, ENABLED, Wait.HALTED),
        (USER, AS_INT, Wait.HALTED),
        (CpuState(0), 0, Wait.SYNC),
    ],
)
def test_state_and_msr_decide_how_a_vcpu_waits(tmp_path: Path, state: int, msr: int, wait: Wait) -> None:
    with bare(tmp_path) as g:
        if msr & (ENABLED | AS_INT) == ENABLED | AS_INT:
            g.enable()
        g.put(MSR_EN, msr, "Q")
        g.put(STATE, state)
        g.slow()
        task = g.touch(3)
        assert g.waited(3).value == wait
        assert g.get(FLAGS) == (wait is Wait.TOLD)
        g.arrive(3)
        assert task.done() == page_of(3)[:8]


def test_thread_without_a_slot_waits_synchronously(tmp_path: Path) -> None:
    with bare(tmp_path) as g:
        g.enable()
        g.slow()
        task = g.touch(3, None)
        assert g.waited(3).value == Wait.SYNC
        g.arrive(3)
        assert task.done() == page_of(3)[:8]


def test_guest_that_was_not_granted_async_pf_is_not_told(tmp_path: Path) -> None:
    with bare(tmp_path, cpuid=Cpuid.ERROR) as g:
        g.put(STATE, USER)
        g.put(MSR_EN, ENABLED | AS_INT | SEND_ERROR, "Q")
        g.ring()
        g.slow()
        g.touch(3)
        assert g.waited(3).value == Wait.HALTED
        assert g.get(TOKEN) == 0


def test_exception_that_was_not_taken_keeps_the_next_fault_waiting(tmp_path: Path) -> None:
    with bare(tmp_path) as g:
        g.enable()
        g.slow()
        g.touch(3)
        assert g.waited(3).value == Wait.TOLD
        g.touch(4)
        assert g.waited(4).value == Wait.HALTED
        assert g.told() == 1 << 12


def test_second_fault_of_a_vcpu_on_a_page_is_halted_and_of_another_told(tmp_path: Path) -> None:
    with bare(tmp_path) as g:
        g.enable()
        g.enable(vcpu=1)
        g.slow()
        first = g.touch(3)
        assert g.waited(3).value == Wait.TOLD
        g.told()
        second = g.touch(3)
        assert g.waited(3).value == Wait.HALTED
        other = g.touch(3, 1)
        assert g.waited(3).value == Wait.TOLD
        g.told(1)
        g.arrive(3)
        assert first.done() == second.done() == other.done() == page_of(3)[:8]
        assert (g.take_ready(), g.take_ready(1)) == (1 << 12, 1 << 12 | 1)


def test_vcpu_has_64_tokens_and_the_next_fault_is_synchronous(tmp_path: Path) -> None:
    with bare(tmp_path) as g:
        g.enable()
        g.slow()
        tokens = set()
        for page in range(64):
            g.touch(page)
            tokens.add(g.told())
        g.touch(64)
        assert g.waited(64).value == Wait.SYNC
        g.put(STATE, 0)  # it is not signalled, and so has not left its next fault
        g.arrive(5)
        g.take_ready()
        until(g.ready, "the next")
        g.put(STATE, USER)
        g.slow()
        g.touch(120)
        assert g.told() not in tokens
        assert len(tokens) == 64


# ---- ready


@pytest.mark.parametrize("abi", INTERRUPTING)
def test_second_ready_comes_after_the_ack(tmp_path: Path, abi: Abi) -> None:
    with bare(tmp_path, abi) as g:
        g.enable()
        g.slow()
        tasks = []
        for page in (1, 2):
            tasks.append(g.touch(page))
            g.told()
        for page in (1, 2):
            g.arrive(page)
            tasks[page - 1].done()
        until(g.ready, "ready")
        # the slot is free, and the ACK is what is missing
        first = g.get(TOKEN)
        g.put(TOKEN, 0)
        g.ring()
        g.enable(vcpu=1)  # the bell has been heard: the host answers on another vCPU
        assert g.get(TOKEN) == 0
        g.put(ACKS, g.get(ACKS) + 1)
        g.ring()
        second = until(g.ready, "the second ready")
        assert {first, second} == {1 << 12, 2 << 12}


def test_ready_of_rfc_v1_waits_for_the_reason_and_for_interrupts(tmp_path: Path) -> None:
    with bare(tmp_path, Abi.RFC_V1) as g:
        g.enable()
        g.slow()
        task = g.touch(1)
        until(lambda: g.get(FLAGS), "not present")
        g.arrive(1)
        task.done()
        g.enable(vcpu=1)
        assert g.get(FLAGS) == 1  # still "not present"
        g.put(STATE, 0)
        g.told()
        g.ring()
        until(lambda: g.get(IRR), "something is left for later")
        assert g.get(FLAGS) == 0
        g.put(IRR, 0)
        g.put(STATE, USER)
        g.ring()
        assert g.take_ready() == 1 << 12


def test_interrupt_while_disabled_is_left_in_irr(tmp_path: Path) -> None:
    with bare(tmp_path, flags=TELL) as g:
        g.enable()
        gone(g)
        task = g.touch(3)
        token = g.told()
        g.put(STATE, 0)
        assert g.engine.answer(g.failure(), Answer.WAKE) is Delivery.READY
        assert (g.get(TOKEN), g.get(IRR)) == (token, 1)
        assert not task.pending(43)


def test_interrupt_while_enabled_is_sent(tmp_path: Path) -> None:
    with bare(tmp_path, flags=TELL) as g:
        g.enable()
        gone(g)
        task = g.touch(3)
        g.told()
        assert g.engine.answer(g.failure(), Answer.WAKE) is Delivery.READY
        assert task.pending(43)


# ---- the MSR


def test_every_enabling_is_followed_by_a_wake_all(tmp_path: Path) -> None:
    with bare(tmp_path) as g:
        for _ in range(3):
            g.enable()  # takes the wake-all
            g.put(MSR_EN, 0, "Q")
            g.ring()
            g.enable(vcpu=7)
            g.put(MSR_EN, 0, "Q", 7)
            g.ring()


def test_disabling_drops_tokens_and_their_ready(tmp_path: Path) -> None:
    with bare(tmp_path) as g:
        g.enable()
        g.slow()
        task = g.touch(3)
        g.told()
        g.put(MSR_EN, 0, "Q")
        g.ring()
        g.enable(vcpu=1)
        g.arrive(3)
        assert task.done() == page_of(3)[:8]
        g.enable()
        g.slow()
        g.touch(4)
        assert g.told() == 2 << 12  # the count goes on
        g.arrive(4)
        assert g.take_ready() == 2 << 12  # and not the first


def test_failure_whose_token_was_dropped_is_answered_to_nobody(tmp_path: Path) -> None:
    with bare(tmp_path, flags=TELL) as g:
        g.enable()
        gone(g)
        g.touch(3)
        g.told()
        failure = g.failure()
        g.put(MSR_EN, 0, "Q")
        g.ring()
        g.enable(vcpu=1)
        assert g.engine.answer(failure, Answer.REPORT) is not Delivery.ERROR
        assert g.get(TOKEN) == 0


# ---- guests without manners


def test_guest_that_never_acknowledges_harms_only_itself(tmp_path: Path) -> None:
    with bare(tmp_path) as g, bare(tmp_path) as other:
        g.enable()
        g.slow()
        for page in range(70):
            g.touch(page)
            g.waited(page)
            g.put(FLAGS, 0)
        g.file.inject_clear()
        for page in range(70):
            g.arrive(page)
        for task in g.threads:
            task.done()  # its pages come all the same
        other.enable()
        other.slow()
        task = other.touch(1)
        token = other.told()
        other.arrive(1)
        assert task.done() == page_of(1)[:8]
        assert other.take_ready() == token


def test_guest_that_floods_its_doorbell_is_still_served(tmp_path: Path) -> None:
    with bare(tmp_path) as g:
        g.enable()
        for page in range(100):
            for _ in range(50):
                g.ring()
            assert g.touch(page).done() == page_of(page)[:8]
        for size in (0, 8 * PAGE):
            g.file.truncate(size)  # nothing of it is in the cache
        g.slow()
        g.touch(1)
        token = g.told()
        g.arrive(1)
        assert g.take_ready() == token


def test_guest_that_scribbles_over_its_slots_gets_its_pages(tmp_path: Path) -> None:
    with bare(tmp_path) as g:
        g.enable()
        g.file.inject(0, 64 * PAGE, delay=0.001)
        tasks = []
        for page in range(64):
            tasks.append(g.touch(page, page % 4))
            for vcpu in range(4):
                tid = g.get(TID, vcpu=vcpu)
                at = vcpu * SLOT
                g.slots[at : at + SLOT] = bytes((page * 37 + i * 11) % 256 for i in range(SLOT))
                g.put(TID, tid, vcpu=vcpu)
            g.ring()
        for page, task in enumerate(tasks):
            assert task.done() == page_of(page)[:8]


def test_trace_tells_a_fault_from_its_event_to_its_ack(tmp_path: Path) -> None:
    with bare(tmp_path) as g:
        g.enable()
        g.slow()
        g.engine.traces()
        task = g.touch(3)
        token = g.told()
        g.arrive(3)
        task.done()
        assert g.take_ready() == token
        g.traced(TraceKind.ACK)
        kinds = [t.kind for t in g._traces if t.token in (0, token)]
        order = [
            TraceKind.FAULT,
            TraceKind.FILL_BEGIN,
            TraceKind.NOT_PRESENT,
            TraceKind.CHANGED,
            TraceKind.INSTALL,
            TraceKind.READY,
        ]
        at = [kinds.index(kind) for kind in order]
        assert at == sorted(at), kinds
        assert TraceKind.ACK in kinds
        assert all(a.time_ns <= b.time_ns for a, b in zip(g._traces, g._traces[1:], strict=False))
        ready = next(t for t in g._traces if t.kind is TraceKind.READY and t.token == token)
        assert (ready.vcpu, ready.tid, ready.address) == (0, task.tid, g.start + 3 * PAGE)
        assert ALL not in {t.token for t in g._traces if t.kind is TraceKind.NOT_PRESENT}
