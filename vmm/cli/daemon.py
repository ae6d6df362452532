# SPDX-License-Identifier: Apache-2.0
"""Runs a daemon in the background, and reports to the waiting process whether it started.

Owns the two forks and the pipe between daemon and waiter.  Must not know the daemon's task.  Must be used
before threads, event loops or FUSE sessions exist: none of them survives a fork.

The daemon writes one message when it is ready or has failed: the exit code in decimal, a newline, and a
text.  End of file without a message means that it died.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from daxfault.vmm.errors import DaxfaultError

log = logging.getLogger(__name__)


class NotStarted(DaxfaultError):
    """The daemon ended before it was ready; `exit_code` is its own."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def run_in_background(serve: Callable[[Callable[[], None]], None]) -> None:
    """Call `serve(ready)` in a daemon; return when it calls `ready`.

    The daemon runs in a new session without a terminal, in /, with stdin and stdout on /dev/null, and
    stderr too after it is ready.

    Raises NotStarted when `serve` ends before that.  If the waiter is interrupted, `ready` raises
    BrokenPipeError in the daemon, which ends it.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.setsid()
        if os.fork() != 0:
            os._exit(0)  # so that init adopts the daemon, and it cannot acquire a terminal
        _be_daemon(serve, writing)
    os.close(writing)
    os.waitpid(child, 0)
    with open(reading, encoding="utf-8", errors="replace") as pipe:
        code, _, message = pipe.read().partition("\n")
    if not code:
        raise NotStarted("the daemon died before it was ready", 1)
    if code != "0":
        raise NotStarted(message, int(code))


def _be_daemon(serve: Callable[[Callable[[], None]], None], pipe: int) -> NoReturn:
    code = 1
    reported = False

    def report(code: int, message: str) -> None:
        nonlocal reported
        reported = True
        os.write(pipe, f"{code}\n{message}".encode()[: 1 << 16])
        os.close(pipe)

    def ready() -> None:
        os.dup2(null, 2)
        report(0, "")

    try:
        # the waiter's end of the pipe may be closed: get an error, not a fatal signal
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        serve(ready)
        code = 0
        if not reported:
            report(1, "the daemon ended before it was ready")
    except BaseException as exc:
        reason = exc
        while isinstance(reason, BaseExceptionGroup) and len(reason.exceptions) == 1:
            reason = reason.exceptions[0]
        known = isinstance(reason, DaxfaultError)
        code = reason.exit_code if isinstance(reason, DaxfaultError) else 1
        message = str(reason) if known else "".join(traceback.format_exception(reason))
        if reported:
            log.error("%s", message)
        else:
            report(code, message)
    finally:
        sys.stderr.flush()
        os._exit(code)
