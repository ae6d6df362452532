# SPDX-License-Identifier: Apache-2.0
"""The watchdog's judgement, on failures made up."""

from daxfault.native import PAGE_SIZE, CpuState, Failure, Reason, Wait
from daxfault.vmm.host.watchdog import Loop, Watchdog


def failure(page: int, *, at_ms: int, guest: int = 1, generation: int = 1, attempts: int = 2) -> Failure:
    return Failure(
        id=at_ms,
        guest=guest,
        file=1,
        address=page * PAGE_SIZE + 5,
        offset=page * PAGE_SIZE,
        generation=generation,
        time_ns=at_ms * 1_000_000,
        wait_ns=0,
        tid=1,
        error=14,
        reason=Reason.EOF,
        attempts=attempts,
        write=False,
        token=0,
        wait=Wait.SYNC,
        vcpu=-1,
        state=CpuState(0),
    )


def test_page_that_fails_often_and_long_enough_is_a_loop() -> None:
    dog = Watchdog(seconds=0.1, cycles=10)
    seen = [dog.saw(failure(3, at_ms=ms)) for ms in range(0, 110, 10)]
    assert seen[:-1] == [None] * 10
    assert seen[-1] == Loop(1, 3 * PAGE_SIZE, 11, 0.1, failure(3, at_ms=100))
    assert seen[-1].rate == 110
    assert dog.saw(failure(3, at_ms=111)) is None  # the count begins anew


def test_page_that_fails_often_but_not_long_or_long_but_not_often_is_no_loop() -> None:
    dog = Watchdog(seconds=0.1, cycles=10)
    assert not any(dog.saw(failure(3, at_ms=ms)) for ms in range(99))
    assert not any(dog.saw(failure(4, at_ms=ms)) for ms in range(0, 900, 100))


def test_progress_or_change_of_the_file_begins_the_count_anew() -> None:
    dog = Watchdog(seconds=0.1, cycles=10)
    for ms in range(0, 1000, 10):
        assert dog.saw(failure(3, at_ms=ms, attempts=1 if ms % 90 == 0 else 2)) is None
        assert dog.saw(failure(4, at_ms=ms, generation=ms // 90)) is None


def test_loop_is_found_beside_any_number_of_failing_pages_in_bounded_memory() -> None:
    dog = Watchdog(seconds=0.1, cycles=10, keep=100)
    found = []
    for ms in range(200):
        found += [loop for loop in [dog.saw(failure(0, at_ms=ms))] if loop]
        for page in range(50):
            assert dog.saw(failure(1 + 50 * ms + page, at_ms=ms, guest=2)) is None
        assert len(dog._tracks) <= 100
    assert [loop.page for loop in found] == [0]
