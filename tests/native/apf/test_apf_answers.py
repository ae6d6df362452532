# SPDX-License-Identifier: Apache-2.0
"""Failed faults that were told first: what each ABI makes of each answer, down to its bytes."""

import errno
import struct
from pathlib import Path

import pytest
from bare_vcpu import CR2, PAGE, SEND_ALWAYS, STATE, TOKEN, USER, Bare, bare, gone
from patience import until

from daxfault.native import Abi, Answer, CpuState, Delivery, GuestFlag, Posted, Reason, Wait

TELL = GuestFlag.TELL_FAILURES
KERNEL = CpuState.IF | CpuState.KERNEL


def test_failure_at_once_is_told_first_and_recorded_with_token_vcpu_and_state(tmp_path: Path) -> None:
    with bare(tmp_path, flags=TELL) as g:
        g.enable(SEND_ALWAYS, vcpu=5)
        g.put(STATE, KERNEL, vcpu=5)
        gone(g)
        task = g.touch(3, 5)
        token = g.told(5)
        failure = g.failure()
        assert (failure.token, failure.wait, failure.vcpu) == (token, Wait.TOLD, 5)
        assert (failure.state, failure.tid) == (KERNEL, task.tid)
        assert (failure.reason, failure.error) == (Reason.EOF, errno.EFAULT)


def test_failure_at_once_without_the_flag_is_synchronous(tmp_path: Path) -> None:
    with bare(tmp_path) as g:
        g.enable()
        gone(g)
        g.touch(3)
        failure = g.failure()
        assert (failure.token, failure.wait, failure.vcpu) == (0, Wait.SYNC, 0)
        assert failure.state == USER


def test_slow_source_that_fails_has_the_token_it_was_told_with(tmp_path: Path) -> None:
    with bare(tmp_path) as g:
        g.enable()
        g.file.inject(0, PAGE, error=errno.ENODATA, delay=0.01)
        g.touch(0)
        token = g.told()
        failure = g.failure()
        assert (failure.token, failure.wait) == (token, Wait.TOLD)
        assert (failure.reason, failure.error) == (Reason.IO, errno.ENODATA)


@pytest.mark.parametrize("abi", [Abi.RFC_V1, Abi.JUNE_2020, Abi.GONE, Abi.REPORT])
def test_report_with_a_token_has_the_bytes_of_its_abi(tmp_path: Path, abi: Abi) -> None:
    with bare(tmp_path, abi, flags=TELL) as g:
        g.enable()
        gone(g)
        g.touch(3)
        token = g.told()
        failure = g.failure()
        assert g.engine.answer(failure, Answer.REPORT, Answer.WAKE) is Delivery.ERROR
        gva = failure.address
        expected = {
            Abi.RFC_V1: struct.pack("=IIQ", 3, 0, gva) + bytes(48),
            Abi.JUNE_2020: struct.pack("=III", 0, token, 1) + bytes(52),
            Abi.GONE: struct.pack("=III", 0, token, 1) + bytes(52),
            Abi.REPORT: struct.pack("=IIIiQII", 0, token, 1, errno.EFAULT, gva, 1, 1) + bytes(32),
        }
        assert g.slots[:64] == expected[abi]
        if abi is Abi.RFC_V1:
            assert g.get(CR2, "Q") == token


@pytest.mark.parametrize("otherwise", [Answer.WAKE, Answer.POISON, Answer.STOP])
@pytest.mark.parametrize("abi", [Abi.MAINLINE, Abi.RETRY])
def test_report_that_the_abi_has_not_with_a_token_ends_otherwise(
    tmp_path: Path, abi: Abi, otherwise: Answer
) -> None:
    ends = {Answer.WAKE: Delivery.READY, Answer.POISON: Delivery.POISON, Answer.STOP: Delivery.STOP}
    with bare(tmp_path, abi, flags=TELL) as g:
        g.enable()
        gone(g)
        task = g.touch(3)
        token = g.told()
        assert g.engine.answer(g.failure(), Answer.REPORT, otherwise) is ends[otherwise]
        if otherwise is Answer.STOP:
            assert g.slots[:8] == bytes(8)
        else:
            assert g.take_ready() == token
        if otherwise is Answer.POISON:
            task.done()
            assert task.error == errno.EFAULT


@pytest.mark.parametrize("abi", [Abi.RFC_V1, Abi.JUNE_2020, Abi.GONE])
def test_report_that_needs_a_token_and_has_none_ends_otherwise(tmp_path: Path, abi: Abi) -> None:
    with bare(tmp_path, abi, flags=TELL) as g:
        g.enable()
        g.put(STATE, 0)
        gone(g)
        task = g.touch(3)
        failure = g.failure()
        assert failure.wait is Wait.SYNC
        assert g.engine.answer(failure, Answer.REPORT, Answer.POISON) is Delivery.POISON
        task.done()
        assert task.error == errno.EFAULT


def test_error_that_the_guest_did_not_enable_is_not_told(tmp_path: Path) -> None:
    with bare(tmp_path, flags=TELL) as g:
        g.enable(errors=False)
        gone(g)
        g.touch(3)
        token = g.told()
        assert g.engine.answer(g.failure(), Answer.REPORT, Answer.WAKE) is Delivery.READY
        assert g.slots[:40] == struct.pack("=II", 0, token) + bytes(32)


def test_stopped_vcpu_is_told_nothing_until_its_file_changes(tmp_path: Path) -> None:
    with bare(tmp_path, flags=TELL, answer_seconds=0.05) as g:
        g.enable()
        gone(g)
        g.touch(3)
        token = g.told()
        failure = g.failure()
        assert g.engine.answer(failure, Answer.STOP) is Delivery.STOP
        assert g.engine.answer(failure, Answer.WAKE) is None  # it has been answered
        g.put(STATE, 0)
        sync = g.touch(4)
        assert g.engine.answer(g.failure(), Answer.STOP) is Delivery.STOP
        # a failure nobody answers is poisoned at its deadline, which theirs would be before
        g.touch(5, None)
        g.failure()
        until(lambda: g.engine.counters().late, "a deadline")
        assert g.engine.counters().late == 1
        assert g.ready() == 0
        assert sync.thread.is_alive()
        g.put(STATE, USER)
        g.file.truncate(8 * PAGE)
        assert sync.done() == bytes(8)
        assert g.take_ready() == token


def test_stopped_vcpu_ends_with_its_guest(tmp_path: Path) -> None:
    with bare(tmp_path, flags=TELL) as g:
        gone(g)
        task = g.touch(4)
        assert g.engine.answer(g.failure(), Answer.STOP) is Delivery.STOP
        g.guest.close()
        task.done()
        assert task.error == errno.EFAULT


def test_error_not_yet_delivered_when_the_file_grows_is_ready(tmp_path: Path) -> None:
    with bare(tmp_path, flags=TELL) as g:
        g.enable()
        gone(g)
        tokens = []
        for page in (3, 4):
            g.touch(page)
            tokens.append(g.told())
            assert g.engine.answer(g.failure(), Answer.REPORT) is Delivery.ERROR
        g.file.truncate(8 * PAGE)
        assert g.get(TOKEN + 4) == 1  # the first was there already
        assert g.take_ready() == tokens[0]
        until(g.ready, "the second")
        assert struct.unpack_from("=II", g.slots, TOKEN) == (tokens[1], 0)


def test_failed_page_is_remembered_once_and_its_retry_synchronous(tmp_path: Path) -> None:
    with bare(tmp_path, Abi.RETRY, flags=TELL | GuestFlag.ERROR_GFNS) as g:
        g.enable()
        gone(g)
        waits = []
        for _ in range(3):
            g.touch(3)
            failure = g.failure()
            waits.append(failure.wait)
            if failure.wait is Wait.TOLD:
                g.told()
            how = g.engine.answer(failure, Answer.WAKE if failure.token else Answer.STOP)
            assert how is (Delivery.READY if failure.token else Delivery.STOP)
            if failure.token:
                assert g.take_ready() == failure.token
        assert waits == [Wait.TOLD, Wait.SYNC, Wait.TOLD]


# ---- RFC v1 as it was posted


def rfc_error(g: Bare) -> tuple[int, int]:
    """(reason, gva) of the end that comes next."""
    until(g.ready, "an end")
    found: tuple[int, int] = struct.unpack_from("=I4xQ", g.slots, 0)
    return found


@pytest.mark.parametrize("posted", [Posted(0), Posted.SUCCESS_IS_ERROR])
def test_success_is_an_error_only_as_posted(tmp_path: Path, posted: Posted) -> None:
    with bare(tmp_path, Abi.RFC_V1, posted=posted) as g:
        g.enable()
        g.slow()
        g.touch(3)
        g.told()
        g.arrive(3)
        expected = (3, g.start + 3 * PAGE) if posted else (2, 0)
        assert rfc_error(g) == expected


@pytest.mark.parametrize(("posted", "writable"), [(True, False), (True, True), (False, False)])
def test_page_of_a_mapping_not_for_writing_is_an_error_only_as_posted(
    tmp_path: Path, posted: bool, writable: bool
) -> None:
    defects = Posted.FOLL_WRITE if posted else Posted(0)
    with bare(tmp_path, Abi.RFC_V1, posted=defects, writable=writable) as g:
        g.enable()
        g.slow()
        g.touch(3)
        g.told()
        g.arrive(3)
        assert rfc_error(g)[0] == (3 if posted and not writable else 2)


@pytest.mark.parametrize("posted", [Posted(0), Posted.GLA_OR, Posted.STALE_GVA])
def test_address_the_host_does_not_know_is_the_last_one_only_as_posted(
    tmp_path: Path, posted: Posted
) -> None:
    with bare(tmp_path, Abi.RFC_V1, flags=TELL, posted=posted) as g:
        g.enable(SEND_ALWAYS)
        gone(g)
        found = []
        for page, state in ((3, USER), (4, KERNEL)):
            g.put(STATE, state)
            g.touch(page)
            g.told()
            assert g.engine.answer(g.failure(), Answer.REPORT) is Delivery.ERROR
            found.append(rfc_error(g)[1])
            g.take_ready()
        assert found == [g.start + 3 * PAGE, g.start + 3 * PAGE if posted else 0]
