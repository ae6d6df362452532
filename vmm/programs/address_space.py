# SPDX-License-Identifier: Apache-2.0
"""What addresses of a program show, for a person to read.

Owns reading /proc/PID/maps (proc_pid_maps(5)).
"""

from __future__ import annotations

import dataclasses
import re

_CACHE = re.compile(r"/memfd:daxfault:(\d+)")


@dataclasses.dataclass(frozen=True, slots=True)
class Area:
    """A mapping; `offset` is that of `start` in what it shows."""

    start: int
    end: int
    offset: int
    path: str

    @property
    def file(self) -> int | None:
        """The native id of the file whose page cache this is."""
        match = _CACHE.match(self.path)
        return int(match[1]) if match else None


def areas(task: int) -> list[Area]:
    """All mappings of a process, by any of its live threads; none when it is gone."""
    found = []
    try:
        with open(f"/proc/{task}/maps") as lines:
            for line in lines:
                span, _, offset, _, _, *path = line.rstrip("\n").split(maxsplit=5)
                start, end = (int(x, 16) for x in span.split("-"))
                found.append(Area(start, end, int(offset, 16), path[0] if path else ""))
    except OSError:
        return []
    return found


def at(areas: list[Area], address: int) -> Area | None:
    """The mapping that holds `address`."""
    return next((area for area in areas if area.start <= address < area.end), None)


def described(areas: list[Area], address: int) -> str:
    """`address` as module+offset, which addr2line(1) takes, or as it is."""
    area = at(areas, address)
    if area is None or not area.path:
        return hex(address)
    return f"{area.path}+{address - area.start + area.offset:#x}"
