# SPDX-License-Identifier: Apache-2.0
"""How much memory page caches may have when nobody says: the machine's and the cgroup's.

Owns reading both.  Must not set a limit.

A page cache is shared memory: nothing reclaims it but the host, and without swap a file that is larger than
memory would end in the OOM killer.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

SHARE = 2  # one part of so many of the memory there is
SHORT = 16  # memory is short when less than one part of so many is available
LEAST = 16 << 20  # bytes: less would have pages read again and again

_CGROUPS = Path("/sys/fs/cgroup")


def total(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Bytes of the machine."""
    return _field(meminfo, "MemTotal")


def available(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Bytes of the machine that can be had without swapping."""
    return _field(meminfo, "MemAvailable")


def _field(meminfo: Path, name: str) -> int:
    for line in meminfo.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{meminfo}: no {name}")


def _cgroup_folders(cgroup: Path, root: Path) -> Iterator[Path]:
    """The process's own cgroups that may limit memory, and those above them."""
    for line in cgroup.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        tops = [root / controllers] if controllers else [root, root / "unified"]
        for top in tops:
            folder = top / path.lstrip("/")
            while folder != top:
                yield folder
                folder = folder.parent
            yield top  # the root of a cgroup namespace has a limit, too


def cgroup_limit(cgroup: Path = Path("/proc/self/cgroup"), root: Path = _CGROUPS) -> int | None:
    """The least limit of the process's cgroups in bytes, of version 2 or 1; None: there is none."""
    limits = []
    for folder in _cgroup_folders(cgroup, root):
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes", "memory.soft_limit_in_bytes"):
            try:
                text = (folder / name).read_text().strip()
            except OSError:
                continue
            if text.isdigit():
                limits.append(int(text))
    return min(limits, default=None)


def default_limit() -> int:
    """Bytes that page caches may have when nobody says."""
    here = total()
    limit = cgroup_limit()
    return max(min(here, here if limit is None else limit) // SHARE, LEAST)


def eased(limit: int, used: int, left: int, all: int) -> int:
    """The limit for now: with `left` bytes of `all` available, where `used` are in page caches."""
    missing = all // SHORT - left
    return limit if missing <= 0 else max(min(limit, used - missing), LEAST)
