# SPDX-License-Identifier: Apache-2.0
"""Going into the background: what the waiter is told, whatever the daemon does."""

import os
import select
import signal
from collections.abc import Callable

import pytest
from patience import PATIENCE

from daxfault.vmm.cli.daemon import NotStarted, run_in_background
from daxfault.vmm.errors import Unsupported

Ready = Callable[[], None]


def dies(ready: Ready) -> None:
    os._exit(9)


def returns(ready: Ready) -> None:
    pass


def is_refused(ready: Ready) -> None:
    raise BaseExceptionGroup("nursery", [Unsupported("no such device")])


def has_a_bug(ready: Ready) -> None:
    raise ZeroDivisionError("a bug")


@pytest.mark.parametrize(
    ("serve", "code", "told"),
    [
        (dies, 1, "the daemon died before it was ready"),
        (returns, 1, "the daemon ended before it was ready"),
        (is_refused, 3, "no such device"),
        (has_a_bug, 1, "ZeroDivisionError: a bug"),
    ],
    ids=["dies", "returns", "is-refused", "has-a-bug"],
)
def test_daemon_not_started_tells_why(serve: Callable[[Ready], None], code: int, told: str) -> None:
    with pytest.raises(NotStarted) as caught:
        run_in_background(serve)
    assert caught.value.exit_code == code
    assert told in str(caught.value)


def test_daemon_ready_goes_on_alone() -> None:
    reading, writing = os.pipe()

    def serve(ready: Ready) -> None:
        ready()
        os.write(writing, f"{os.getsid(0)} {os.getcwd()} {os.readlink('/proc/self/fd/2')}".encode())

    run_in_background(serve)
    os.close(writing)
    with open(reading) as answer:
        session, directory, errors = answer.read().split()
    assert int(session) != os.getsid(0)
    assert (directory, errors) == ("/", os.devnull)


def test_daemon_whose_waiter_is_gone_is_told() -> None:
    """So that a mount that nobody waited for does not stay."""
    reading, writing = os.pipe()
    waiter = os.fork()
    if waiter == 0:
        pidfd = os.pidfd_open(os.getpid())

        def serve(ready: Ready) -> None:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            select.select([pidfd], [], [], PATIENCE)
            try:
                ready()
            except BrokenPipeError:
                os.write(writing, b"told")

        try:
            run_in_background(serve)
        finally:
            os._exit(1)
    os.close(writing)
    os.waitpid(waiter, 0)
    with open(reading, "rb") as answer:
        assert answer.read() == b"told"
