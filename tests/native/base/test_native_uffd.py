# SPDX-License-Identifier: Apache-2.0
"""userfaultfd as this kernel has it: each test would notice a kernel on which the engine is wrong.

Memory is touched by a thread inside write(2): a kernel-mode fault, taken without the GIL.
"""

import errno
import mmap
import os
import select
import subprocess
import threading
from collections.abc import Callable, Iterator

import cffi
import pytest
from patience import PATIENCE
from uffd_memory import PAGE, Memory, uffd_with

from daxfault import native
from daxfault.native import EventKind, Mode, Uffd
from daxfault.vmm.host.uffd_features import bits

THREAD_ID, EXACT, POISON = bits("THREAD_ID"), bits("EXACT_ADDRESS"), bits("POISON")
EVENTS = 1 << 2 | 1 << 3 | 1 << 6  # REMAP, REMOVE, UNMAP
WP = 1 << 0 | 1 << 12 | 1 << 13  # PAGEFAULT_FLAG_WP, WP_HUGETLBFS_SHMEM, WP_UNPOPULATED

# mmap.madvise() holds the GIL, and these calls wait for us
libc = cffi.FFI()
libc.cdef("int madvise(void *, size_t, int); int munmap(void *, size_t);")
C = libc.dlopen(None)


class Call:
    """`function(*args)` in a thread; its result or errno."""

    def __init__(self, function: Callable[..., object], *args: object) -> None:
        self._result: object = None
        self._thread = threading.Thread(target=self._run, args=(function, args), daemon=True)
        self._thread.start()

    def _run(self, function: Callable[..., object], args: tuple[object, ...]) -> None:
        try:
            self._result = function(*args)
        except OSError as exc:
            self._result = errno.errorcode[exc.errno]

    def result(self) -> object:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the call never returned"
        return self._result


def send(memory: Memory, offset: int, length: int) -> Call:
    """write(2) of a piece of memory into a file; -> bytes done and what arrived, or an errno's name.

    A file, not a pipe: a pipe gives EFAULT where a file gives a short count.
    """

    def write() -> object:
        sink = os.memfd_create("sink")
        try:
            with memoryview(memory.map) as whole, whole[offset : offset + length] as piece:
                done = os.write(sink, piece)
            return done, os.pread(sink, length, 0)
        finally:
            os.close(sink)

    return Call(write)


def wait(uffd: Uffd) -> native.Event:
    assert select.select([uffd.fileno()], [], [], PATIENCE)[0], "no event"
    (event,) = uffd.events()
    return event


def test_copy_into_missing_page_ends_the_blocked_call_with_its_bytes() -> None:
    with uffd_with(THREAD_ID | EXACT) as uffd:
        memory = Memory(uffd, 2, Mode.MISSING)
        call = send(memory, PAGE + 5, 3)
        event = wait(uffd)
        assert (event.kind, event.address, event.flags) == (EventKind.PAGEFAULT, memory.address + PAGE + 5, 0)
        assert event.tid not in (0, os.getpid())
        assert uffd.copy(memory.address + PAGE, b"abcdefgh" * 512) == PAGE
        assert call.result() == (3, b"fgh")
        with pytest.raises(OSError, match=r"UFFDIO_COPY at 0x") as exc:
            uffd.copy(memory.address + PAGE, bytes(PAGE))
        assert exc.value.errno == errno.EEXIST


def test_zeropage_into_missing_page_reads_zeros() -> None:
    with uffd_with(0) as uffd:
        memory = Memory(uffd, 1, Mode.MISSING)
        call = send(memory, 0, 4)
        wait(uffd)
        assert uffd.zeropage(memory.address, PAGE) == PAGE
        assert call.result() == (4, bytes(4))


def test_wake_without_page_delivers_the_same_fault_again() -> None:
    with uffd_with(THREAD_ID | EXACT) as uffd:
        memory = Memory(uffd, 1, Mode.MISSING)
        call = send(memory, 7, 1)
        first = wait(uffd)
        for _ in range(3):
            uffd.wake(memory.address, PAGE)
            assert wait(uffd) == first
        uffd.zeropage(memory.address, PAGE)
        assert call.result() == (1, b"\0")


@pytest.mark.parametrize(("offset", "expected"), [(PAGE, "EFAULT"), (PAGE - 3, (3, b"\0\0\0"))])
def test_poison_under_a_blocked_call_is_efault_or_a_short_count(offset: int, expected: object) -> None:
    with uffd_with(POISON) as uffd:
        memory = Memory(uffd, 2, Mode.MISSING)
        uffd.zeropage(memory.address, PAGE)
        call = send(memory, offset, 8)
        wait(uffd)
        assert uffd.poison(memory.address + PAGE, PAGE) == PAGE
        assert call.result() == expected
        assert send(memory, PAGE, 8).result() == "EFAULT"  # and stays


def test_copy_over_poison_heals_and_poison_over_page_is_refused() -> None:
    with uffd_with(POISON) as uffd:
        memory = Memory(uffd, 2, Mode.MISSING)
        uffd.poison(memory.address, PAGE)
        assert uffd.copy(memory.address, b"x" * PAGE) == PAGE
        assert send(memory, 0, 2).result() == (2, b"xx")
        with pytest.raises(OSError, match="UFFDIO_POISON") as exc:
            uffd.poison(memory.address, PAGE)
        assert exc.value.errno == errno.EEXIST


def test_copy_from_a_truncated_mapping_is_efault(tmp_path: object) -> None:
    """The very error that get_user_pages() has for KVM."""
    with uffd_with(0) as uffd, open(f"{tmp_path}/file", "w+b") as file:
        file.truncate(2 * PAGE)
        source = mmap.mmap(file.fileno(), 2 * PAGE)
        address = int(native.ffi.cast("uintptr_t", native.ffi.from_buffer(source)))
        file.truncate(PAGE)
        memory = Memory(uffd, 1, Mode.MISSING)
        with pytest.raises(OSError, match="UFFDIO_COPY") as exc:
            uffd.copy_from(memory.address, address + PAGE, PAGE)
        assert exc.value.errno == errno.EFAULT
        assert uffd.copy_from(memory.address, address, PAGE) == PAGE


@pytest.fixture
def memfd() -> Iterator[int]:
    fd = os.memfd_create("test")
    os.ftruncate(fd, 1 << 62)  # i_size out of reach, as the page cache's
    yield fd
    os.close(fd)


def test_page_in_the_cache_but_not_mapped_is_a_minor_fault(memfd: int) -> None:
    with uffd_with(0) as uffd:
        memory = Memory(uffd, 4, Mode.MISSING | Mode.MINOR, fd=memfd)
        call = send(memory, 0, 2)
        assert wait(uffd).flags == 0  # nothing there: missing
        os.pwrite(memfd, b"ab" * (PAGE // 2), 0)
        uffd.wake(memory.address, PAGE)
        assert wait(uffd).flags == 4  # there now: minor
        assert uffd.continue_(memory.address, PAGE) == PAGE
        assert call.result() == (2, b"ab")
        # a page that is not in the cache ends the range early, and is EFAULT by itself
        os.pwrite(memfd, b"c" * PAGE, PAGE)
        assert uffd.continue_(memory.address + PAGE, 2 * PAGE) == PAGE
        with pytest.raises(OSError, match="UFFDIO_CONTINUE") as exc:
            uffd.continue_(memory.address + 2 * PAGE, PAGE)
        assert exc.value.errno == errno.EFAULT


def test_hole_in_the_cache_zaps_the_mapping_but_not_poison(memfd: int) -> None:
    with uffd_with(POISON) as uffd:
        memory = Memory(uffd, 2, Mode.MISSING | Mode.MINOR, fd=memfd)
        os.pwrite(memfd, b"x" * PAGE, 0)
        uffd.continue_(memory.address, PAGE)
        uffd.poison(memory.address + PAGE, PAGE)
        punch(memfd, 0, 2 * PAGE)
        call = send(memory, 0, 1)
        assert wait(uffd).flags == 0
        uffd.zeropage(memory.address, PAGE)
        assert call.result() == (1, b"\0")
        assert send(memory, PAGE, 1).result() == "EFAULT"


def punch(fd: int, offset: int, length: int) -> None:
    """fallocate(2), which os lacks, by the program."""
    command = ["fallocate", "--punch-hole", "-o", str(offset), "-l", str(length), f"/proc/self/fd/{fd}"]
    subprocess.run(command, check=True, pass_fds=[fd])


def test_poison_over_a_write_protect_marker_is_refused_until_it_is_taken_away(memfd: int) -> None:
    with uffd_with(POISON | WP) as uffd:
        memory = Memory(uffd, 1, Mode.MISSING | Mode.MINOR | Mode.WP, fd=memfd)
        os.pwrite(memfd, b"x" * PAGE, 0)
        uffd.continue_(memory.address, PAGE, protect=True)
        punch(memfd, 0, PAGE)
        with pytest.raises(OSError, match="UFFDIO_POISON") as exc:
            uffd.poison(memory.address, PAGE)
        assert exc.value.errno == errno.EEXIST  # though no page is there
        uffd.write_protect(memory.address, PAGE, protect=False)
        assert uffd.poison(memory.address, PAGE) == PAGE
        assert send(memory, 0, 1).result() == "EFAULT"


def test_first_store_to_a_protected_page_is_an_event(memfd: int) -> None:
    with uffd_with(WP) as uffd:
        memory = Memory(uffd, 1, Mode.MISSING | Mode.MINOR | Mode.WP, fd=memfd)
        os.pwrite(memfd, b"x" * PAGE, 0)
        uffd.continue_(memory.address, PAGE, protect=True)
        assert send(memory, 0, 1).result() == (1, b"x")

        def store() -> int:
            with open("/dev/zero", "rb", buffering=0) as zero, memoryview(memory.map) as whole:
                return zero.readinto(whole[3:4])

        call = Call(store)
        assert wait(uffd).flags & 2
        uffd.write_protect(memory.address, PAGE, protect=False)
        assert call.result() == 1
        assert os.pread(memfd, 5, 0) == b"xxx\0x"


def test_read_only_mapping_can_be_registered_private_not_shared(memfd: int) -> None:
    with uffd_with(0) as uffd:
        read_only = os.open(f"/proc/self/fd/{memfd}", os.O_RDONLY)
        shared = mmap.mmap(read_only, PAGE, mmap.MAP_SHARED, mmap.PROT_READ)
        private = mmap.mmap(read_only, PAGE, mmap.MAP_PRIVATE, mmap.PROT_READ)
        os.close(read_only)
        address = [int(native.ffi.cast("uintptr_t", native.ffi.from_buffer(m))) for m in (shared, private)]
        with pytest.raises(PermissionError, match=hex(address[0])):
            uffd.register(address[0], PAGE, Mode.MISSING | Mode.MINOR)
        uffd.register(address[1], PAGE, Mode.MISSING | Mode.MINOR)
        os.pwrite(memfd, b"x" * PAGE, 0)
        uffd.continue_(address[1], PAGE)
        assert private[0] == ord("x")
        os.pwrite(memfd, b"y", 0)
        assert private[0] == ord("y")  # the page cache's own page, not a copy


def test_changes_of_the_address_space_are_told_and_hold_up_installs(memfd: int) -> None:
    with uffd_with(EVENTS) as uffd:
        memory = Memory(uffd, 4, Mode.MISSING | Mode.MINOR, fd=memfd)
        os.pwrite(memfd, b"x" * 4 * PAGE, 0)
        pointer = libc.cast("void *", memory.address)
        call = Call(C.madvise, pointer, PAGE, mmap.MADV_DONTNEED)
        assert select.select([uffd.fileno()], [], [], PATIENCE)[0]
        with pytest.raises(BlockingIOError):
            uffd.continue_(memory.address, PAGE)
        (event,) = uffd.events()
        assert (event.kind, event.address, event.len) == (EventKind.REMOVE, memory.address, PAGE)
        assert call.result() == 0
        assert uffd.continue_(memory.address, PAGE) == PAGE

        call = Call(C.munmap, pointer + 2 * PAGE, 2 * PAGE)
        event = wait(uffd)
        assert (event.kind, event.address) == (EventKind.UNMAP, memory.address + 2 * PAGE)
        assert event.len == 2 * PAGE
        assert call.result() == 0


def test_unregistered_range_raises_no_fault() -> None:
    with uffd_with(0) as uffd:
        memory = Memory(uffd, 1, Mode.MISSING)
        uffd.unregister(memory.address, PAGE)
        assert send(memory, 0, 1).result() == (1, b"\0")
        assert uffd.events() == []


def test_refused_call_names_the_ioctl_and_the_address() -> None:
    with uffd_with(0) as uffd:
        memory = Memory(uffd, 1, Mode.MISSING)
        with pytest.raises(OSError, match=rf"UFFDIO_REGISTER at {memory.address + 1:#x}") as exc:
            uffd.register(memory.address + 1, PAGE, Mode.MISSING)
        assert exc.value.errno == errno.EINVAL
    with pytest.raises(OSError, match="UFFDIO_API with features") as exc:
        Uffd(1 << 62)
    assert exc.value.errno == errno.EINVAL
    with pytest.raises(OSError, match="reading the userfaultfd"):
        uffd.events()  # closed


def test_last_reference_closed_with_a_thread_blocked_reads_zeros() -> None:
    """Why the engine poisons before it closes."""
    with uffd_with(0) as uffd:
        memory = Memory(uffd, 1, Mode.MISSING)
        call = send(memory, 0, 2)
        wait(uffd)
        uffd.close()
        assert call.result() == (2, b"\0\0")
