# SPDX-License-Identifier: Apache-2.0
"""The Python binding of native/guard: guards of threads, and their notes.

Owns the lifetime of the C object.  Must not decide which exception is raised, nor when.
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
    """Guards the thread that makes it, until leave()."""

    def __init__(self, spans: Sequence[tuple[int, int]], *, threads: bool) -> None:
        """`spans`: (address, length) of the guarded memory; empty: all.  `threads`: also catch
        faults of other threads.  OSError as df_guard_enter()."""
        out = ffi.new("struct df_guard **")
        given = ffi.new("struct df_guard_span[]", spans)
        check(lib.df_guard_enter(given, len(given), threads, out), "guard")
        self._guard: Any = out[0]

    def __bool__(self) -> bool:
        """The guard has a note."""
        return bool(lib.df_guard_faults(self._guard, ffi.NULL))

    def faults(self) -> tuple[list[GuardFault], int]:
        """The faults so far, at most MOST_FAULTS, and their number."""
        return self._noted(lib.df_guard_faults)

    def take(self) -> tuple[list[GuardFault], int]:
        """faults(); then clears the notes and puts the pages back."""
        return self._noted(lib.df_guard_take)

    def leave(self) -> None:
        """Stop catching, and put the pages back."""
        lib.df_guard_leave(self._guard)

    def free(self) -> None:
        lib.df_guard_free(self._guard)

    def _noted(self, ask: Callable[[Any, Any], int]) -> tuple[list[GuardFault], int]:
        notes = ffi.new("struct df_guard_fault[]", MOST_FAULTS)
        count = ask(self._guard, notes)
        known = notes[0 : min(count, MOST_FAULTS)]
        return [GuardFault(*(getattr(note, name) for name in GuardFault._fields)) for note in known], count


def span(buffer: ReadableBuffer) -> tuple[int, int]:
    """(address, length) of a buffer; TypeError or ValueError if it is not a contiguous buffer."""
    with memoryview(buffer) as view, ffi.from_buffer(view) as start:
        return int(ffi.cast("uintptr_t", start)), view.nbytes


def notify_python() -> None:
    """Have daxfault.guards._fault_noted() called in the main thread after its guard noted a fault."""
    lib.df_guard_notify_python()
