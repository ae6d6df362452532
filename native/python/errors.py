# SPDX-License-Identifier: Apache-2.0
"""Turns a negative errno from C into an exception.

The outcome of a fault is a value and must not pass here.
"""

from __future__ import annotations

import os


def check(value: int, what: str) -> int:
    """Return `value`, or raise OSError(-value) naming `what` when it is negative."""
    if value < 0:
        raise OSError(-value, f"{what}: {os.strerror(-value)}")
    return value
