# SPDX-License-Identifier: Apache-2.0
"""The one place where a negative errno from C becomes an exception.

Owns nothing else.  An outcome of a fault is a value and never passes here.
"""

from __future__ import annotations

import os


def check(value: int, what: str) -> int:
    """Return `value`, or raise OSError(-value) naming `what` when it is negative."""
    if value < 0:
        raise OSError(-value, f"{what}: {os.strerror(-value)}")
    return value
