# SPDX-License-Identifier: Apache-2.0
"""What may go wrong in a way that a person is told of in one paragraph.

Owns the exceptions that the command line turns into a message and an exit code, and what becomes of
an exception that must not end a service.  Must not print, and must not be raised for a bug: a bug keeps
its traceback.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator


class DaxfaultError(Exception):
    """Something was refused or failed; the message is meant to be shown as it stands.

    `exit_code` is what the command line ends with.
    """

    exit_code = 1


class Unsupported(DaxfaultError):
    """This machine lacks something; the message names it and what would mend it."""

    exit_code = 3


class UsageError(DaxfaultError):
    """What was asked for makes no sense: a path that is not there, a directory in use."""

    exit_code = 2


def alone(exc: BaseException) -> BaseException:
    """The one exception in a trio nursery's group; Ctrl-C counts before any other."""
    while isinstance(exc, BaseExceptionGroup):
        if exc.subgroup(KeyboardInterrupt) is not None:
            return KeyboardInterrupt()
        if len(exc.exceptions) != 1:
            return exc
        exc = exc.exceptions[0]
    return exc


@contextlib.contextmanager
def logged(log: logging.Logger, doing: str, *args: object) -> Iterator[None]:
    """Log an exception of the body with its traceback and go on: one bug must not end the service of
    everybody else.  Cancellation passes."""
    try:
        yield
    except Exception:
        log.exception(doing, *args)
