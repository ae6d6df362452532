# SPDX-License-Identifier: Apache-2.0
"""The Python binding of the fault engine and its guests.

Owns the lifetime of the C objects and the fields of a failure.  Must not choose the answer to a
failed fault.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from daxfault.native._daxfault import ffi, lib
from daxfault.native.enums import Abi, Answer, CpuState, Delivery, GuestFlag, Posted, Reason, Wait
from daxfault.native.errors import check
from daxfault.native.file import File
from daxfault.native.trace import TRACE_FIELDS, Trace, TraceKind

_BATCH = 64
_TRACE_BATCH = 4096


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """One failed fault; see struct df_failure in abi/host.h for the units."""

    id: int
    guest: int
    file: int
    address: int
    offset: int
    generation: int
    time_ns: int
    wait_ns: int
    tid: int
    error: int
    reason: Reason
    attempts: int
    write: bool
    token: int
    wait: Wait
    vcpu: int
    state: CpuState


_FAILURE = tuple(f.name for f in dataclasses.fields(Failure))


@dataclasses.dataclass(frozen=True, slots=True)
class Counters:
    """Totals since the engine started; see struct df_counters in abi/host.h.

    `latency[b]` counts faults that got a page after [2**b, 2**(b+1)) ns.
    """

    faults: int
    installed: int
    filled: int
    retries: int
    parked: int
    failed: int
    overflow: int
    late: int
    healed: int
    events_fork: int
    events_remap: int
    events_remove: int
    events_unmap: int
    again: int
    latency: tuple[int, ...]


def _ids(fill: Callable[[Any, int], int]) -> set[int]:
    """All ids from `fill`, which returns how many there are and stores as many as fit."""
    most = 64
    while True:
        ids = ffi.new("uint64_t[]", most)
        n = check(fill(ids, most), "files")
        if n <= most:
            return set(ids[0:n])
        most = 2 * n


def process_files(pid: int, start: int, length: int) -> set[int]:
    """Ids of the files whose page caches are mapped in [start, start + length) of a process.

    Reads /proc/PID/maps, so the process may belong to any guest.  OSError: ESRCH when it has
    ended, EACCES when this process may not inspect it.
    """
    return _ids(lambda ids, most: lib.df_process_files(pid, start, length, ids, most))


class Guest:
    """An address space whose faults the engine resolves."""

    def __init__(self, handle: Any, engine: Engine) -> None:
        self._guest = handle
        self._engine = engine
        self.id: int = lib.df_guest_id(handle)

    def map(self, start: int, length: int, file: File, offset: int, *, writable: bool) -> None:
        """Serve [start, start + length) from `file` at `offset`; all page aligned.

        OSError: EEXIST when the range overlaps another, EINVAL when it is misaligned or
        overflows, EACCES for a writable mapping of a file that is not.
        """
        check(
            lib.df_guest_map(self._live(), start, length, file.handle, offset, writable),
            f"guest {self.id}, mapping {length:#x} bytes at {start:#x}",
        )

    def doorbell(self) -> int:
        """The guest's end of its doorbell, once: a descriptor, which the caller closes."""
        return check(lib.df_guest_doorbell(self._live()), f"doorbell of guest {self.id}")

    def unmap(self, start: int, length: int) -> None:
        """Stop serving [start, start + length)."""
        check(
            lib.df_guest_unmap(self._live(), start, length),
            f"guest {self.id}, unmapping {length:#x} bytes at {start:#x}",
        )

    def adopt(self, pid: int, start: int, length: int) -> int:
        """Register and serve the page caches mapped in [start, start + length) of program `pid`;
        -> the number of mappings.

        Reads /proc/PID/maps.  OSError: EINVAL misaligned, EACCES when this process may not inspect
        that one, ESRCH when it has ended, otherwise as UFFDIO_REGISTER.
        """
        return check(
            lib.df_guest_adopt(self._live(), pid, start, length),
            f"process {pid}, registering {length:#x} bytes at {start:#x}",
        )

    def files(self) -> set[int]:
        """Ids of the served files that the guest maps."""
        return _ids(lambda ids, most: lib.df_guest_files(self._live(), ids, most))

    @property
    def alive(self) -> bool:
        """Its address space exists; exec(2) also ends one."""
        return bool(lib.df_guest_alive(self._live()))

    def _live(self) -> Any:
        if self._guest is None:
            raise ValueError(f"guest {self.id} has ended")
        return self._guest

    def close(self) -> None:
        """End the service, and poison what is still registered: a guest that goes on gets
        SIGBUS, never zeros.  Safe to call twice."""
        handle, self._guest = self._guest, None
        if handle is not None:
            self._engine.forget(self)
            lib.df_guest_free(handle)


class Engine:
    """Threads that resolve the faults of guests without Python, and report failed ones."""

    def __init__(
        self,
        *,
        answer_seconds: float = 5.0,
        source_seconds: float = 30.0,
        spin_microseconds: float = 0.0,
        fill_threads: int = 32,
    ) -> None:
        """`answer_seconds`: poison a failed fault that has no answer after this.  `source_seconds`:
        a read of a page source fails with ETIMEDOUT after this."""
        options = ffi.new("struct df_engine_options *")
        options.answer_ns = int(answer_seconds * 1e9)
        options.source_ns = int(source_seconds * 1e9)
        options.spin_ns = int(spin_microseconds * 1e3)
        options.fill_threads = fill_threads
        out = ffi.new("struct df_engine **")
        check(lib.df_engine_new(options, out), "fault engine")
        self._engine: Any = out[0]
        self._guests: set[Guest] = set()
        self._records = ffi.new("struct df_failure[]", _BATCH)

    def failures_fd(self) -> int:
        """A descriptor that is readable when failures() has records."""
        return int(lib.df_engine_failures_fd(self._live()))

    def failures(self) -> list[Failure]:
        """Failed faults not returned before, oldest first, at most 64; never blocks."""
        n = lib.df_engine_failures(self._live(), self._records, _BATCH)
        found = []
        for i in range(n):
            record = self._records[i]
            fields = {name: getattr(record, name) for name in _FAILURE}
            fields["reason"] = Reason(fields["reason"])
            fields["write"] = bool(fields["write"])
            fields["wait"] = Wait(fields["wait"])
            fields["state"] = CpuState(fields["state"])
            found.append(Failure(**fields))
        return found

    def unmapped_fd(self) -> int:
        """A descriptor that is readable when unmapped() has records."""
        return int(lib.df_engine_unmapped_fd(self._live()))

    def unmapped(self) -> list[tuple[int, int]]:
        """(guest, file) ids of programs that may have unmapped a file; never blocks."""
        records = ffi.new("struct df_unmapped[]", _BATCH)
        n = lib.df_engine_unmapped(self._live(), records, _BATCH)
        return [(records[i].guest, records[i].file) for i in range(n)]

    def answer(self, failure: Failure, answer: Answer, otherwise: Answer = Answer.POISON) -> Delivery | None:
        """Answer a failure; -> how it reached the guest, None when it was answered already.

        `otherwise` is the answer when a REPORT cannot be delivered.  After STOP the vCPU
        stays in its fault until the file changes or the guest ends.
        """
        how = int(lib.df_engine_answer(self._live(), failure.id, answer, otherwise))
        return Delivery(how) if how >= 0 else None

    def guest(
        self,
        uffd: int,
        features: int,
        pid: int,
        area: int = -1,
        *,
        abi: Abi = Abi.REPORT,
        cpuid: int = 0,
        flags: GuestFlag = GuestFlag(0),  # noqa: B008
        posted: Posted = Posted(0),  # noqa: B008
        token_id: int = 0,
    ) -> Guest:
        """Serve the address space behind `uffd`; takes over both descriptors.

        `features`: the UFFD_FEATURE bits it was enabled with (ioctl_userfaultfd(2)).
        `area`: the guest's shared area, a sealed memfd (struct df_slot), laid out as in
        `abi`; `cpuid`: the bits granted to the guest.  `token_id`: the id in each vCPU's
        first token; it wraps after 2**20.
        """
        out = ffi.new("struct df_guest **")
        options = ffi.new("struct df_guest_options *")
        options.features, options.pid, options.abi = features, pid, abi
        options.cpuid, options.flags, options.posted = cpuid, flags, posted
        options.token_id = token_id
        check(lib.df_guest_new(self._live(), uffd, area, options, out), f"guest of process {pid}")
        guest = Guest(out[0], self)
        self._guests.add(guest)
        return guest

    def forget(self, guest: Guest) -> None:
        self._guests.discard(guest)

    def counters(self) -> Counters:
        out = ffi.new("struct df_counters *")
        lib.df_engine_counters(self._live(), out)
        values: dict[str, Any] = {f.name: getattr(out, f.name) for f in dataclasses.fields(Counters)}
        values["latency"] = tuple(values["latency"])
        return Counters(**values)

    def trace(self, capacity: int) -> None:
        """Keep the last `capacity` entries, at most 2**20; 0 turns the trace off."""
        check(lib.df_engine_trace(self._live(), capacity), f"trace of {capacity} entries")

    def traces(self) -> list[Trace]:
        """Entries not returned before, oldest first."""
        found: list[Trace] = []
        batch = ffi.new("struct df_trace[]", _TRACE_BATCH)
        while n := lib.df_engine_trace_read(self._live(), batch, _TRACE_BATCH):
            for i in range(n):
                fields = {name: getattr(batch[i], name) for name in TRACE_FIELDS}
                fields["kind"] = TraceKind(fields["kind"])
                found.append(Trace(**fields))
        return found

    def _live(self) -> Any:
        if self._engine is None:
            raise ValueError("the engine is closed")
        return self._engine

    def close(self) -> None:
        """End every guest, then the threads.  Safe to call twice."""
        for guest in list(self._guests):
            guest.close()
        engine, self._engine = self._engine, None
        if engine is not None:
            lib.df_engine_free(engine)
