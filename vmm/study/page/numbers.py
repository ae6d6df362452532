# SPDX-License-Identifier: Apache-2.0
"""The format of numbers on the page.

Owns their format, and the ticks of an axis.  Must not know what they count.
"""

from __future__ import annotations

import math
from typing import Any


def count(value: Any) -> str:
    """A number with thousands separators; other values unchanged."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, float) and not value.is_integer():
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{int(value):,}"


def rate(value: float) -> str:
    return f"{count(round(value) if value >= 10 else value)}/s"


def duration(ns: float) -> str:
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if abs(ns) >= size:
            return f"{ns / size:.3g} {unit}" if abs(ns) < 1000 * size else f"{ns / size:,.0f} {unit}"
    return f"{ns:.0f} ns"


def ticks(high: float, about: int = 5) -> list[float]:
    """Round values from 0 up to `high`."""
    rough = high / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    return [n * step for n in range(math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten in [low, high]; if these are many, only the powers."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(powers) <= 4 else (1,)
    return [value for n in powers for f in factors if low <= (value := f * 10.0**n) <= high]
