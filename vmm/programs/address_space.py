# SPDX-License-Identifier: Apache-2.0
"""The mappings of a process, from /proc/PID/maps (proc_pid_maps(5)).

Owns reading that file in Python.  Must not import modules of the host: daxfault.guard() uses it in
programs without one.
"""

from __future__ import annotations

import dataclasses
import os
import re

_CACHE = re.compile(r"/memfd:daxfault:(\d+)")


@dataclasses.dataclass(frozen=True, slots=True)
class Area:
    """A mapping; `offset` is that of `start` in the file with st_dev `device`, `inode` 0: no file."""

    start: int
    end: int
    offset: int
    device: int
    inode: int
    path: str

    @property
    def file(self) -> int | None:
        """The native id of the file whose page cache this is."""
        return cached_file(self.path)


def cached_file(path: str) -> int | None:
    """The native id of the file whose page cache is mapped under the name `path`."""
    match = _CACHE.match(path)
    return int(match[1]) if match else None


def areas(task: int | str) -> list[Area]:
    """All mappings of a process, by any of its live threads, or "self"; none when it is gone."""
    found = []
    try:
        with open(f"/proc/{task}/maps", errors="surrogateescape") as lines:
            for line in lines:
                span, _, offset, device, inode, *path = line.rstrip("\n").split(maxsplit=5)
                start, end = (int(x, 16) for x in span.split("-"))
                major, minor = (int(x, 16) for x in device.split(":"))
                dev = os.makedev(major, minor)
                found.append(Area(start, end, int(offset, 16), dev, int(inode), path[0] if path else ""))
    except OSError:
        return []
    return found


def area_at(areas: list[Area], address: int) -> Area | None:
    """The mapping that contains `address`, or None."""
    return next((area for area in areas if area.start <= address < area.end), None)


def described(areas: list[Area], address: int) -> str:
    """`address` as module+offset, the form of addr2line(1), or in hexadecimal without a module."""
    area = area_at(areas, address)
    if area is None or not area.path:
        return hex(address)
    path = area.path.encode(errors="backslashreplace").decode()
    return f"{path}+{address - area.start + area.offset:#x}"
