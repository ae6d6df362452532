# SPDX-License-Identifier: Apache-2.0
"""vCPUs without a guest kernel: the test itself reads and writes their slots.

Owns an engine, one file, and threads of this very process that touch a window by
write(2), with the host's signals blocked: a thread stays in its fault until the page is
installed, or is poisoned, which is EFAULT.  A vCPU's slot holds the thread that runs it, so
several threads can be the tasks of one vCPU, one after the other.
"""

import contextlib
import ctypes
import mmap
import os
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from needs import require
from patience import PATIENCE, until
from raw_guest import AREA, area

from daxfault import native
from daxfault.native import Abi, Cpuid, CpuState, Failure, GuestFlag, Posted, Trace, TraceKind
from daxfault.native.uffd import Mode, Uffd
from daxfault.vmm.host.uffd_features import bits

PAGE = native.PAGE_SIZE
PAGES = 128
FEATURES = bits("MISSING_SHMEM", "THREAD_ID", "MINOR_SHMEM", "EXACT_ADDRESS")

# struct df_slot (apf.h); the area of every ABI begins at 0
SLOT, TID, STATE, MSR_EN, ACKS, CR2, IRR = 128, 72, 76, 80, 92, 96, 104
FLAGS, TOKEN = 0, 4
ENABLED, SEND_ALWAYS, AS_INT, SEND_ERROR, SEND_ERROR_RFC_V1 = 1, 2, 8, 16, 8
ALL = 0xFFFFFFFF

USER = CpuState.IF
ERRORS = {
    Abi.MAINLINE: 0,
    Abi.RFC_V1: Cpuid.ERROR_RFC_V1,
    Abi.JUNE_2020: Cpuid.ERROR_JUNE_2020,
    Abi.GONE: Cpuid.ERROR,
    Abi.RETRY: Cpuid.ERROR,
    Abi.REPORT: Cpuid.ERROR,
}


def page_of(number: int) -> bytes:
    return struct.pack("=Q", number + 1) * (PAGE // 8)


class Bare:
    """One guest.  Make one with `bare()`."""

    def __init__(self, top: Path, abi: Abi, **options: Any) -> None:
        path = top / f"file{len(os.listdir(top))}"
        path.write_bytes(b"".join(page_of(n) for n in range(PAGES)))
        self.abi = abi
        # a source that does not answer keeps its thread
        self.engine = native.Engine(answer_seconds=options.pop("answer_seconds", 30.0), fill_threads=256)
        self.engine.trace(1 << 16)
        self.file = native.File(os.open(path, os.O_RDWR), writable=True)
        self._traces: list[Trace] = []
        writable = options.pop("writable", True)
        cache = self.file.cache_fd(writable=writable)
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        flags = mmap.MAP_SHARED if writable else mmap.MAP_PRIVATE
        self.window = mmap.mmap(cache, PAGES * PAGE, flags=flags, prot=access)
        os.close(cache)
        view = native.ffi.from_buffer(self.window)
        self.start = int(native.ffi.cast("uintptr_t", view))
        self.uffd = Uffd(FEATURES)
        self.uffd.register(self.start, PAGES * PAGE, Mode.MISSING | Mode.MINOR)
        fd = area()
        self.slots = mmap.mmap(fd, AREA)
        cpuid = options.pop("cpuid", Cpuid.ASYNC_PF | Cpuid.ASYNC_PF_INT | ERRORS[abi])
        self.guest = self.engine.guest(
            os.dup(self.uffd.fileno()), FEATURES, os.getpid(), fd, abi=abi, cpuid=cpuid, **options
        )
        self.guest.map(self.start, PAGES * PAGE, self.file, 0, writable=writable)
        self.bell = socket.socket(fileno=self.guest.doorbell())
        self.threads: list[Task] = []

    # -- slots

    def get(self, offset: int, form: str = "I", vcpu: int = 0) -> int:
        return int(struct.unpack_from("=" + form, self.slots, vcpu * SLOT + offset)[0])

    def put(self, offset: int, value: int, form: str = "I", vcpu: int = 0) -> None:
        struct.pack_into("=" + form, self.slots, vcpu * SLOT + offset, value)

    def ring(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self.bell.send(b"!", socket.MSG_DONTWAIT)

    def enable(self, extra: int = 0, *, errors: bool = True, vcpu: int = 0) -> None:
        """Turn async pf on, and take the wake-all that follows."""
        msr = ENABLED | extra
        if self.abi is Abi.RFC_V1:
            msr |= SEND_ERROR_RFC_V1 if errors else 0
        else:
            msr |= AS_INT | (SEND_ERROR if errors and self.abi is not Abi.MAINLINE else 0)
        # interrupts off: a vCPU that has just been signalled counts as having left its fault
        self.put(STATE, USER if self.abi is Abi.RFC_V1 else 0, vcpu=vcpu)
        self.put(MSR_EN, msr, "Q", vcpu)
        self.ring()
        assert self.take_ready(vcpu) == ALL
        self.put(STATE, USER, vcpu=vcpu)

    def told(self, vcpu: int = 0) -> int:
        """Take "not present"; -> its token."""
        until(lambda: self.get(FLAGS, vcpu=vcpu) == 1, "not present")
        token = self.get(CR2, "Q", vcpu)
        self.put(FLAGS, 0, vcpu=vcpu)
        return token

    def ready(self, vcpu: int = 0) -> int:
        """The token of the "ready" or error that is in the slot, 0: there is none."""
        if self.abi is Abi.RFC_V1:
            return self.get(CR2, "Q", vcpu) if self.get(FLAGS, vcpu=vcpu) in (2, 3) else 0
        return self.get(TOKEN, vcpu=vcpu)

    def take_ready(self, vcpu: int = 0) -> int:
        """Wait for it, take and acknowledge it; -> its token."""
        token = int(until(lambda: self.ready(vcpu), "ready"))
        self.put(IRR, 0, vcpu=vcpu)
        self.put(FLAGS if self.abi is Abi.RFC_V1 else TOKEN, 0, vcpu=vcpu)
        self.put(ACKS, self.get(ACKS, vcpu=vcpu) + 1, vcpu=vcpu)
        self.ring()
        return token

    # -- faults

    def touch(self, page: int, vcpu: int | None = 0, *, write: bool = False) -> "Task":
        """A thread that touches this page, as this vCPU."""
        task = Task(self, page, write)
        if vcpu is not None:
            self.put(TID, task.tid, vcpu=vcpu)
        self.threads.append(task)
        task.go.set()
        return task

    def slow(self, page: int = 0, pages: int = PAGES) -> None:
        """From now on the source does not answer for these pages."""
        self.file.inject(page * PAGE, pages * PAGE, delay=60.0)

    def arrive(self, page: int) -> None:
        """The source answers after all; that of this page has done when this returns, or nearly."""
        self.file.inject_clear()
        assert self.file.write(page * PAGE, page_of(page)) == PAGE

    def failure(self) -> Failure:
        """The next failed fault."""
        found = until(self.engine.failures, "a failure")
        assert len(found) == 1
        return found[0]  # type: ignore[no-any-return]

    def waited(self, page: int) -> Trace:
        """How the last fault on this page waits, once that is decided."""

        def seen() -> list[Trace]:
            self._traces += self.engine.traces()
            kinds = (TraceKind.HALT, TraceKind.NOT_PRESENT)
            return [t for t in self._traces if t.kind in kinds and t.offset == page * PAGE]

        last = until(seen, f"a decision about page {page}")[-1]
        assert isinstance(last, Trace)
        self._traces.clear()
        return last

    def traced(self, kind: TraceKind) -> Trace:
        def seen() -> list[Trace]:
            self._traces += self.engine.traces()
            return [t for t in self._traces if t.kind is kind]

        last = until(seen, f"a trace of {kind.name}")[-1]
        assert isinstance(last, Trace)
        return last

    def close(self) -> None:
        """Poisons what still waits."""
        self.guest.close()
        self.file.inject_clear()
        for task in self.threads:
            task.thread.join(PATIENCE)
            assert not task.thread.is_alive()
        self.engine.close()
        self.file.close()
        self.bell.close()
        self.uffd.close()


class Task:
    """A thread, and its one access."""

    def __init__(self, guest: Bare, page: int, write: bool) -> None:
        self.go, self._born = threading.Event(), threading.Event()
        self.error = 0
        self.value = b""
        self.tid = 0
        self._guest, self._page, self._write = guest, page, write
        self.thread = threading.Thread(target=self._body)
        self.thread.start()
        assert self._born.wait(PATIENCE)

    def _body(self) -> None:
        # the test's own thread takes no exception either: it is no vCPU
        signal.pthread_sigmask(signal.SIG_BLOCK, [42, 43])
        self.tid = threading.get_native_id()
        fd = os.memfd_create("copy")
        at = self._guest.start + self._page * PAGE
        memory = (ctypes.c_char * 8).from_address(at)
        self._born.set()
        assert self.go.wait(PATIENCE)
        try:
            # system calls, without the GIL: what would be SIGBUS for a load is EFAULT
            if self._write:
                os.pwrite(fd, b"01234567", 0)
                os.preadv(fd, [memory], 0)
            else:
                os.write(fd, memory)
                self.value = os.pread(fd, 8, 0)
        except OSError as e:
            self.error = e.errno or 0
        finally:
            os.close(fd)

    def done(self) -> bytes:
        """Wait for its end; -> the bytes it read."""
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive(), "still in its fault"
        return self.value

    def pending(self, number: int) -> bool:
        """This signal was sent to the thread."""
        with open(f"/proc/self/task/{self.tid}/status") as status:
            line = next(line for line in status if line.startswith("SigPnd:"))
        return bool(int(line.split()[1], 16) >> (number - 1) & 1)


def gone(guest: Bare) -> None:
    """Nothing is left of the file."""
    guest.file.truncate(0)


@contextlib.contextmanager
def bare(
    top: Path,
    abi: Abi = Abi.REPORT,
    *,
    flags: GuestFlag = GuestFlag(0),  # noqa: B008
    posted: Posted = Posted(0),  # noqa: B008
    **options: Any,
) -> Iterator[Bare]:
    try:
        native.uffd_probe()
    except OSError as e:
        require(False, f"userfaultfd: {e}")
    guest = Bare(top, abi, flags=flags, posted=posted, **options)
    try:
        yield guest
    finally:
        guest.close()
