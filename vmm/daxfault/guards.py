# SPDX-License-Identifier: Apache-2.0
"""guard(): the `with` block in which a page that fails is an exception.

Owns when it is raised: when the block ends, at check(), and in the main thread as soon as Python
code runs again.  Must not move pages, nor decide whose a fault is (native/guard).
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
    """A context manager: inside, the calling thread's accesses to pages that fail raise MappingError.

    A page that fails (the file was truncated, it cannot be read, its host says so) reads as zeros until
    C code on the stack has returned; nothing that was computed meanwhile leaves the block without the
    exception.  `buffers` (mmap, array, memoryview, ...): only accesses to these; otherwise to any mapping.
    `threads`: also those of threads that are not guarded themselves, such as a library's own.

    Entering raises OSError when the kernel's interfaces cannot be had.  Limits are in docs/guard.md.
    """
    return Guard(*buffers, threads=threads)


class Guard:
    """See guard().  Belongs to the thread that has entered it; may be entered again when it was left."""

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
        """Raise MappingError if a page has failed since the block began or the last check().

        For the thread that has entered the guard.  The end of the block does it anyway.
        """
        self._gather(self._held())
        error, _ = self._take()
        if error is not None:
            raise error

    def __del__(self) -> None:
        # entered and never left: the interpreter prints what cannot be raised
        if self._native is not None:
            self.__exit__(None, None, None)

    @property
    def records(self) -> tuple[Fault, ...]:
        """The faults that the end of the block would raise, were it now."""
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
        """Take the notes there are, and have the pages put back.  -> whether there were any."""
        self._busy = True
        try:
            # before: a mapping that is no longer there may be known by its pages that were moved aside
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
    """Called by the interpreter in the main thread, soon after a guard of it has noted a fault."""
    interrupted = sys._getframe().f_back
    if interrupted is not None and interrupted.f_code.co_filename in (__file__, native.__file__):
        return  # in check() or __exit__(), which raise it themselves
    for entered in reversed(_entered):
        guard = entered()
        if guard is not None:
            guard._notice()


native.notify_python()
