# SPDX-License-Identifier: Apache-2.0
"""guard(): a `with` block in which a failing page raises an exception.

Owns the times when it is raised: at the end of the block, at check(), and in the main thread when
Python code next runs.  Must not move pages, nor assign faults to guards (native/guard).
"""

from __future__ import annotations

import sys
import threading
import types
import weakref
from typing import TYPE_CHECKING, Self

from daxfault.native import guard as native

from . import faults, hosted
from .faults import Fault, MappingError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_entered: list[weakref.ref[Guard]] = []  # of the main thread, the innermost last


def guard(*buffers: ReadableBuffer, threads: bool = False) -> Guard:
    """A context manager: inside, accesses of the calling thread to failing pages raise MappingError.

    A failing page (the file was truncated, cannot be read, or its host reports an error) reads as zeros
    until C code on the stack has returned; then the exception is raised, at the latest at the end of the
    block.  `buffers` (mmap, array, memoryview, ...): guard only these; default: all mappings.
    `threads`: also guard threads without a guard, such as those of a library.

    Entering raises OSError when a kernel interface is not available.  docs/guard.md has the limits.
    """
    return Guard(*buffers, threads=threads)


class Guard:
    """See guard().  Only the thread that has entered it may use it; can be entered again after its end."""

    def __init__(self, *buffers: ReadableBuffer, threads: bool = False) -> None:
        self._native: native.Guard | None = None
        self._spans = [native.span(buffer) for buffer in buffers]
        self._threads = threads
        self._records: list[Fault] = []
        self._omitted = 0
        self._raised: MappingError | None = None  # before the end of the block
        self._busy = False

    def __enter__(self) -> Self:
        if self._native is not None:
            raise RuntimeError("this guard has been entered already")
        self._native = native.Guard(self._spans, threads=self._threads)
        if threading.get_ident() == threading.main_thread().ident:
            _entered.append(weakref.ref(self))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exception: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        held = self._held()
        try:
            self._gather(held, leave=True)
        finally:
            self._native = None
            _entered[:] = [entered for entered in _entered if entered() not in (None, self)]
            held.free()
        error, raised = self._take()
        if error is None:
            return
        if raised is not None and raised.covers(error) and _leads_to(exception, raised):
            return
        raise error from exception

    def check(self) -> None:
        """Raise MappingError if a page has failed since the start of the block or the last check().

        Only the thread that has entered the guard may call it.  The end of the block does the same.
        """
        self._gather(self._held())
        error, _ = self._take()
        if error is not None:
            raise error

    def __del__(self) -> None:
        # entered and never left: the interpreter prints an exception of __del__()
        if self._native is not None:
            self.__exit__(None, None, None)

    @property
    def records(self) -> tuple[Fault, ...]:
        """The faults that the end of the block would raise now."""
        if self._native is None:
            return ()
        notes, _ = self._native.faults()
        found = faults.faults(notes, faults.paths()) if notes else []
        return (*self._records, *found)[: native.MOST_FAULTS]

    def _held(self) -> native.Guard:
        if self._native is None:
            raise RuntimeError("this guard has not been entered")
        return self._native

    def _notice(self) -> None:
        """Raise new faults before the block ends.  Code in the block may swallow the exception: then the
        end of the block raises it again."""
        if not self._busy and self._native is not None and self._gather(self._native):
            self._raised = faults.error(self._records, self._omitted)
            raise self._raised

    def _take(self) -> tuple[MappingError | None, MappingError | None]:
        """The exception for all faults so far, and the one that was raised early; forgets both."""
        error = faults.error(self._records, self._omitted) if self._records else None
        raised, self._raised = self._raised, None
        self._records = []
        self._omitted = 0
        return error, raised

    def _gather(self, held: native.Guard, *, leave: bool = False) -> bool:
        """Take the notes, and have the pages put back.  -> whether there were any."""
        self._busy = True
        try:
            # before the pages are put back: those moved aside show the path of a removed mapping
            known = faults.paths() if held else {}
            if leave:
                held.leave()
            notes, count = held.take()
            found = faults.faults(notes, known | faults.paths()) if notes else []
            room = native.MOST_FAULTS - len(self._records)
            self._records += hosted.explained(found[:room])
            self._omitted += count - len(found[:room])
            return count > 0
        finally:
            self._busy = False


def _leads_to(exception: BaseException | None, cause: MappingError | None) -> bool:
    """`cause` is among the causes and contexts of `exception`."""
    seen: set[int] = set()
    waiting = [exception]
    while waiting and cause is not None:
        one = waiting.pop()
        if one is cause:
            return True
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            waiting += [one.__cause__, one.__context__]
    return False


def _fault_noted() -> None:
    """Called by the interpreter in the main thread after a guard of that thread has noted a fault."""
    interrupted = sys._getframe().f_back
    if interrupted is not None and interrupted.f_code.co_filename in (__file__, native.__file__):
        return  # in check() or __exit__(), which raise it themselves
    for entered in reversed(_entered):
        guard = entered()
        if guard is not None:
            guard._notice()


native.notify_python()
