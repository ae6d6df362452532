# SPDX-License-Identifier: Apache-2.0
"""userfaultfd(2) for Python, for experiments, tests and guests; the engine does not use it.

Owns one descriptor.  Every method is one system call of ioctl_userfaultfd(2), releases the
GIL, and raises OSError with the kernel's errno; addresses and lengths are in bytes.  A thread that
holds the GIL must not touch memory whose faults are resolved in Python: it would deadlock.
"""

from __future__ import annotations

import dataclasses
import enum
import errno
import os

from daxfault.native._daxfault import ffi, lib
from daxfault.native.errors import check

_BATCH = 16


class Mode(enum.IntFlag):
    """Which faults are reported (UFFDIO_REGISTER_MODE_*)."""

    MISSING = lib.DF_UFFD_MISSING
    WP = lib.DF_UFFD_WP
    MINOR = lib.DF_UFFD_MINOR


class EventKind(enum.IntEnum):
    """UFFD_EVENT_*."""

    PAGEFAULT = lib.DF_UFFD_PAGEFAULT
    FORK = lib.DF_UFFD_FORK
    REMAP = lib.DF_UFFD_REMAP
    REMOVE = lib.DF_UFFD_REMOVE
    UNMAP = lib.DF_UFFD_UNMAP


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    """One message; struct df_uffd_event in base/uffd.h says which kinds set which fields."""

    kind: EventKind
    tid: int
    fd: int
    flags: int
    address: int
    len: int
    to: int


def is_userfaultfd(fd: int) -> bool:
    return os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[userfaultfd]"


def enable(fd: int, features: int) -> None:
    """UFFDIO_API, once for each userfaultfd.  OSError EINVAL when the kernel lacks a feature, EPERM
    when this process has no permission for one."""
    check(lib.df_uffd_api(fd, features), f"UFFDIO_API with features {features:#x}")


class Uffd:
    """A userfaultfd, non-blocking and close-on-exec."""

    def __init__(self, features: int = 0, *, user_mode_only: bool = False) -> None:
        """Open one and enable `features`.  OSError EPERM when this process has no permission,
        EINVAL when the kernel lacks a feature."""
        self._fd = check(lib.df_uffd_open(user_mode_only), "userfaultfd")
        try:
            enable(self._fd, features)
        except OSError:
            os.close(self._fd)
            raise

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        """Close it.  If this is the last reference, threads blocked on it read zeros."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Uffd:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def register(self, start: int, length: int, modes: Mode) -> int:
        """UFFDIO_REGISTER; -> a bit for each ioctl number that works on the range."""
        out = ffi.new("uint64_t *")
        check(lib.uffd_register(self._fd, start, length, modes, out), _at("UFFDIO_REGISTER", start, length))
        return int(out[0])

    def unregister(self, start: int, length: int) -> None:
        check(lib.uffd_unregister(self._fd, start, length), _at("UFFDIO_UNREGISTER", start, length))

    def copy(self, start: int, data: bytes | bytearray | memoryview, *, protect: bool = False) -> int:
        """Put `data`, whole pages, at `start`; -> bytes done, fewer only if it was interrupted."""
        return self._done("UFFDIO_COPY", lib.uffd_copy, start, ffi.from_buffer(data), len(data), protect)

    def copy_from(self, start: int, source: int, length: int, *, protect: bool = False) -> int:
        """copy() from an address of this process.  EFAULT when that is not readable."""
        pointer = ffi.cast("void *", source)
        return self._done("UFFDIO_COPY", lib.uffd_copy, start, pointer, length, protect)

    def zeropage(self, start: int, length: int) -> int:
        """Put zeros at `start`; -> bytes done."""
        return self._done("UFFDIO_ZEROPAGE", lib.uffd_zeropage, start, length)

    def continue_(self, start: int, length: int, *, protect: bool = False) -> int:
        """Map pages that the page cache has at `start`; -> bytes done."""
        return self._done("UFFDIO_CONTINUE", lib.uffd_continue, start, length, protect)

    def poison(self, start: int, length: int) -> int:
        """Make every access fail with SIGBUS or EFAULT; -> bytes done.  Linux 6.6."""
        return self._done("UFFDIO_POISON", lib.uffd_poison, start, length)

    def write_protect(self, start: int, length: int, *, protect: bool) -> None:
        check(lib.uffd_protect(self._fd, start, length, protect), _at("UFFDIO_WRITEPROTECT", start, length))

    def wake(self, start: int, length: int) -> None:
        """Make every thread that is blocked in the range repeat its access."""
        check(lib.uffd_wake(self._fd, start, length), _at("UFFDIO_WAKE", start, length))

    def events(self) -> list[Event]:
        """Events not read before, faults first, at most 16; never blocks."""
        out = ffi.new("struct df_uffd_event[]", _BATCH)
        n = check(lib.uffd_events(self._fd, out, _BATCH), "reading the userfaultfd")
        return [Event(EventKind(e.kind), e.tid, e.fd, e.flags, e.address, e.len, e.to) for e in out[0:n]]

    def _done(self, name: str, function: object, start: int, *rest: object) -> int:
        done = ffi.new("uint64_t *")
        error = function(self._fd, start, *rest, done)  # type: ignore[operator]
        if error == -errno.EAGAIN and done[0]:  # a short count, as of write(2)
            return int(done[0])
        check(error, _at(name, start))
        return int(done[0])


def _at(name: str, start: int, length: int | None = None) -> str:
    return f"{name} at {start:#x}" + ("" if length is None else f", {length:#x} bytes")
