# SPDX-License-Identifier: Apache-2.0
"""What a process has mapped, for tests that play the host.

Owns reading /proc/PID/maps (proc_pid_maps(5)).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Area:
    start: int
    end: int
    offset: int
    inode: int
    is_cache: bool


def areas(task: int) -> Iterator[Area]:
    """Every mapping of a process, by any of its threads."""
    text = Path(f"/proc/{task}/maps").read_text()
    for thread in os.listdir(f"/proc/{task}/task"):  # the first may have ended: then it shows nothing
        text = text or Path(f"/proc/{task}/task/{thread}/maps").read_text()
    for line in text.splitlines():
        span, _, offset, _, inode, *name = line.split(maxsplit=5)
        start, end = (int(x, 16) for x in span.split("-"))
        yield Area(start, end, int(offset, 16), int(inode), "".join(name).startswith("/memfd:daxfault:"))


def lives(process: int) -> bool:
    """It still has memory: it was not killed."""
    try:
        return any(areas(process))
    except OSError:
        return False
