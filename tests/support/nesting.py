# SPDX-License-Identifier: Apache-2.0
"""A file, a stand-in that maps it, and a nested stand-in inside that one."""

import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path

from serving import PAGE, Serving, serving

from daxfault.vmm.designs import DESIGNS
from daxfault.vmm.study.compare.nested import Nest, nest

DATA = random.Random(7).randbytes(64 * PAGE)


def fnv1a(data: bytes) -> str:
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 2**64 - 1
    return f"{value:016x}"


@contextlib.asynccontextmanager
async def nesting(top: Path, design: str = "report") -> AsyncIterator[tuple[Serving, Nest]]:
    async with serving(top, loop_seconds=60) as s:
        path = s.make("file", DATA)
        async with nest(s.host, s.nursery, DESIGNS[design], path) as n:
            yield s, n
