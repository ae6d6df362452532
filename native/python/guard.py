# SPDX-License-Identifier: Apache-2.0
"""A guard of the calling thread, as native/guard has it: what it noted, and how to go on.

Owns the lifetime of the C object.  Must not decide what is raised, nor when.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from daxfault.native._daxfault import ffi, lib
from daxfault.native.errors import check

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

MOST_FAULTS: int = lib.DF_GUARD_FAULTS


class GuardFault(NamedTuple):
    """struct df_guard_fault, which documents the fields."""

    address: int
    pages: int
    device: int
    inode: int
    offset: int
    time_ns: int
    tid: int
    code: int
    write: int


class Guard:
    """Guards the calling thread from now on, until leave()."""

    def __init__(self, spans: Sequence[tuple[int, int]], *, threads: bool) -> None:
        """`spans`: (address, length) of the memory that is guarded; without any, all.  `threads`: catch
        faults of other threads, too.  OSError as df_guard_enter()."""
        out = ffi.new("struct df_guard **")
        given = ffi.new("struct df_guard_span[]", spans)
        check(lib.df_guard_enter(given, len(given), threads, out), "guard")
        self._guard: Any = out[0]

    def __bool__(self) -> bool:
        """Something was noted."""
        return bool(lib.df_guard_faults(self._guard, ffi.NULL))

    def faults(self) -> tuple[list[GuardFault], int]:
        """The faults so far, at most MOST_FAULTS, and how many there were."""
        return self._noted(lib.df_guard_faults)

    def take(self) -> tuple[list[GuardFault], int]:
        """faults(), once: the pages are put back."""
        return self._noted(lib.df_guard_take)

    def leave(self) -> None:
        """Catch nothing from now on."""
        lib.df_guard_leave(self._guard)

    def free(self) -> None:
        lib.df_guard_free(self._guard)

    def _noted(self, ask: Callable[[Any, Any], int]) -> tuple[list[GuardFault], int]:
        notes = ffi.new("struct df_guard_fault[]", MOST_FAULTS)
        count = ask(self._guard, notes)
        known = notes[0 : min(count, MOST_FAULTS)]
        return [GuardFault(*(getattr(note, name) for name in GuardFault._fields)) for note in known], count


def span(buffer: ReadableBuffer) -> tuple[int, int]:
    """(address, length) of a buffer; TypeError or ValueError when it is none, or not in one piece."""
    with memoryview(buffer) as view, ffi.from_buffer(view) as start:
        return int(ffi.cast("uintptr_t", start)), view.nbytes


def notify_python() -> None:
    """Call daxfault.guards._fault_noted() in the main thread, soon after a guard of it has noted a fault."""
    lib.df_guard_notify_python()
