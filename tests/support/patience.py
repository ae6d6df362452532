# SPDX-License-Identifier: Apache-2.0
"""Bounds for whatever a test waits for.

Owns PATIENCE, the one bound of a single wait, and `within`, which also ends a wait that takes no
bound of its own (a pipe's readline(), waitid(2)).  Must be used in the main thread: a signal does it.
"""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

PATIENCE = 60.0  # seconds, for a machine that is busy with other things
_AGAIN = 5.0  # seconds until the clean-up after a failure has to end


@contextlib.contextmanager
def within(seconds: float = PATIENCE, what: str = "a wait") -> Iterator[None]:
    """Fail the test if the body takes longer than `seconds`.  An outer bound stays in force."""

    def late(*_: object) -> None:
        pytest.fail(f"{what} took more than {seconds:g} s")

    started = time.monotonic()
    outer, interval = signal.getitimer(signal.ITIMER_REAL)
    if outer and outer <= seconds:
        yield
        return
    handler = signal.signal(signal.SIGALRM, late)
    # again and again: clean-up that waits, such as Popen's, must end as well
    signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if outer:
            left = outer - (time.monotonic() - started)
            signal.setitimer(signal.ITIMER_REAL, max(left, 0.001), interval)


def looks(seconds: float = PATIENCE) -> Iterator[None]:
    """Yields until `seconds` are over, then fails: to poll for what notifies nobody."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        yield
        time.sleep(0.002)
    raise AssertionError(f"nothing in {seconds:g} s")


def until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """Polls until `condition` is true; -> its value."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.0005)
    return found
