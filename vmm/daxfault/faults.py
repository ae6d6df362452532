# SPDX-License-Identifier: Apache-2.0
"""A fault that a guard has caught, and its exception.

Owns their fields, and finding the file of an address.  Must not catch anything.
"""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from daxfault.vmm.programs.address_space import areas

if TYPE_CHECKING:
    from daxfault.native.guard import GuardFault


@dataclasses.dataclass(frozen=True, slots=True)
class Fault:
    """A page of a mapping that failed, or several adjacent ones.

    `offset`: of `address` in the file, in bytes; None when no file is mapped there.  `path`: from
    /proc/self/maps; None when the mapping is gone.  `write`: a store, which is lost.
    `tid`: the faulting thread, as threading.get_native_id().  `code`: the si_code of the SIGBUS, 2
    (BUS_ADRERR) or 4 (BUS_MCEERR_AR).  `time_ns`: as time.monotonic_ns().

    In a program that a daxfault host serves, `errno` and `reason` are those of the host's record
    (docs/abi.md); otherwise EFAULT and None, because the kernel does not report the reason.
    """

    __module__ = "daxfault"

    address: int
    pages: int
    path: str | None
    offset: int | None
    write: bool
    code: int
    tid: int
    time_ns: int
    errno: int = errno.EFAULT
    reason: str | None = None

    def __str__(self) -> str:
        return f"{self.path}: {self._where()}" if self.path else self._where()

    def _where(self) -> str:
        where = f"address {self.address:#x}" if self.offset is None else f"offset {self.offset}"
        pages = f", {self.pages} pages" if self.pages > 1 else ""
        why = f" ({self.reason})" if self.reason else ""
        return f"{where}{pages}{', stores lost' if self.write else ''}{why}"


class MappingError(OSError):
    """Pages of a mapping could not be read or written: results computed from them are invalid.

    `records` are the faults in order, `omitted` the number of further faults that were not kept.
    """

    __module__ = "daxfault"

    records: tuple[Fault, ...] = ()
    omitted: int = 0

    def covers(self, later: MappingError) -> bool:
        """Whether it has all the faults of `later`, an error of the same guard."""
        return (len(self.records), self.omitted) == (len(later.records), later.omitted)


def error(records: Sequence[Fault], omitted: int) -> MappingError:
    """The exception for these faults, at least one."""
    first = records[0]
    more = len(records) + omitted - 1
    text = f"a mapping failed at {first._where()}" + (f", and {more} more" if more else "")
    # with the path, which str() ends with
    made = MappingError(first.errno, text, *((first.path,) if first.path else ()))
    made.records = tuple(records)
    made.omitted = omitted
    return made


def paths() -> dict[tuple[int, int], str]:
    """The mapped files of this process, (st_dev, st_ino) -> path; empty if maps cannot be read."""
    return {(area.device, area.inode): area.path for area in areas("self") if area.path and area.inode}


def faults(notes: Iterable[GuardFault], known: dict[tuple[int, int], str]) -> list[Fault]:
    """The faults of `notes`, with paths from `known`, a result of paths()."""
    return [
        Fault(
            address=note.address,
            pages=note.pages,
            path=known.get((note.device, note.inode)),
            offset=note.offset if note.inode else None,
            write=bool(note.write),
            code=note.code,
            tid=note.tid,
            time_ns=note.time_ns,
        )
        for note in notes
    ]
