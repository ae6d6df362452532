# SPDX-License-Identifier: Apache-2.0
"""Failures that a command reports in one paragraph.

Owns the exceptions that the command line turns into a message and an exit code, and logged(), for
exceptions that must not end a service.  Must not print.  A bug must not raise these: it keeps its
traceback.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator


class DaxfaultError(Exception):
    """A request was refused or failed; the user sees the message unchanged.

    `exit_code` is the command's exit code.
    """

    exit_code = 1


class Unsupported(DaxfaultError):
    """This machine lacks something; the message names it and a remedy."""

    exit_code = 3


class UsageError(DaxfaultError):
    """The request is invalid: a path does not exist, a directory is in use."""

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
    """Log an exception of the body with its traceback and go on: a bug must not end the service of
    other guests.  Cancellation passes."""
    try:
        yield
    except Exception:
        log.exception(doing, *args)
