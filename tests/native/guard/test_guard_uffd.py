# SPDX-License-Identifier: Apache-2.0
"""daxfault.guard() around memory that is registered with a userfaultfd, or of huge pages."""

import ctypes
import mmap
import os
import signal
import threading
from pathlib import Path

import pytest
from failing_file import in_thread, program, standing_in
from patience import PATIENCE
from uffd_memory import Memory, uffd_with

import daxfault
from daxfault import native
from daxfault.native import Mode, Uffd
from daxfault.vmm.host.uffd_features import bits

PAGE = native.PAGE_SIZE
REMAP, UNMAP, SHMEM = bits("EVENT_REMAP"), bits("EVENT_UNMAP"), bits("MISSING_SHMEM")
POISON = bits("POISON")


def first_byte(address: int) -> int:
    """Read without the GIL: others have to answer for it."""
    into = ctypes.create_string_buffer(1)
    ctypes.memmove(into, address, 1)
    return into.raw[0]


class Events:
    """A host's thread: takes the events of a userfaultfd, and answers no fault."""

    def __init__(self, uffd: Uffd) -> None:
        self.kinds: list[str] = []
        self._uffd = uffd
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._take, daemon=True)

    def _take(self) -> None:
        while not self._over.wait(0.001):  # events() does not block
            self.kinds += [event.kind.name for event in self._uffd.events()]

    def __enter__(self) -> "Events":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(PATIENCE)


def test_guard_page_of_a_host_that_follows_moves_heals(tmp_path: Path) -> None:
    fd = os.memfd_create("served")
    os.ftruncate(fd, 4 * PAGE)
    with uffd_with(POISON | REMAP | UNMAP | SHMEM) as uffd, Events(uffd) as events:
        memory = Memory(uffd, 4, Mode.MISSING, fd=fd)
        at = memory.address
        uffd.poison(at + PAGE, PAGE)

        def read() -> None:
            with daxfault.guard():
                assert first_byte(at + PAGE) == 0

        for _ in range(2):  # it goes on being served, and failing
            with pytest.raises(daxfault.MappingError) as caught:
                in_thread(read)
            assert caught.value.records[0].path == "/memfd:served (deleted)"
        uffd.copy(at + PAGE, b"y" * PAGE)
        uffd.copy(at + 2 * PAGE, b"z" * PAGE)
        assert [first_byte(at + i * PAGE) for i in (1, 2)] == [ord("y"), ord("z")]
    assert events.kinds.count("REMAP") == 4  # there and back
    assert standing_in() == []
    os.close(fd)


UNFOLLOWED = """
from daxfault import native
from daxfault.native import Mode, Uffd
uffd = Uffd(1 << 14)  # POISON, and no EVENT_REMAP
anonymous = mmap.mmap(-1, 4 * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
at = ctypes.addressof(ctypes.c_char.from_buffer(anonymous))
uffd.register(at, 4 * PAGE, Mode.MISSING)
uffd.copy(at, b"x" * PAGE)
uffd.poison(at + PAGE, PAGE)
try:
    with daxfault.guard():
        anonymous[PAGE]
except daxfault.MappingError as e:
    print("caught", e.records[0].path, e.records[0].offset)
uffd.copy(at + 2 * PAGE, b"z" * PAGE)
print(anonymous[0], anonymous[2 * PAGE])
try:
    uffd.copy(at + PAGE, b"y" * PAGE)
except OSError as e:
    print(e.errno)
try:
    with daxfault.guard():
        anonymous[PAGE]
except daxfault.MappingError as e:
    print("again", e.records[0].path, flush=True)
anonymous[PAGE]
"""


def test_guard_page_of_a_host_that_does_not_follow_moves_is_never_zeros(tmp_path: Path) -> None:
    """It could not be asked for any more: it fails for ever, and the rest is served on."""
    with uffd_with(POISON):
        pass
    done = program(tmp_path, UNFOLLOWED)
    assert done.returncode == -signal.SIGBUS, done.stderr
    assert done.stdout.splitlines() == [
        "caught None None",
        "120 122",
        "2",  # ENOENT: no longer registered
        "again /memfd:daxfault-gone (deleted)",
    ]


def test_guard_memory_of_huge_pages_dies_as_without_it(tmp_path: Path) -> None:
    """One cannot be moved aside in part, and nothing else is tried."""
    try:
        m = mmap.mmap(-1, 2 << 20, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | 0x40000)
    except OSError:
        pytest.skip("missing: free huge pages (vm.nr_hugepages)")
    m.close()
    script = """
fd = os.memfd_create("huge", os.MFD_HUGETLB)
os.ftruncate(fd, 2 << 20)
array = mmap.mmap(fd, 2 << 20)
os.ftruncate(fd, 0)
with daxfault.guard():
    array[PAGE]
"""
    assert program(tmp_path, script).returncode == -signal.SIGBUS
