# SPDX-License-Identifier: Apache-2.0
"""daxfault.guard() around mappings that a page-fault host serves: poison, moving pages, healing."""

import ctypes
import mmap
import os
import signal
import sys
import threading
from pathlib import Path

import daxfault
import pytest
from failing_file import PRELUDE, SECONDS, in_thread, program, standing_in
from program_host import ProgramHost
from program_host import program as served
from run_host import Place, require_programs
from test_native_uffd import POISON, Memory, uffd_with

import native
from native import Mode, Uffd

PAGE = native.PAGE_SIZE
REMAP, UNMAP, SHMEM = 1 << 2, 1 << 6, 1 << 5


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
        self._thread.join(SECONDS)


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
import native
from native import Mode, Uffd
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


def test_guard_that_does_not_catch_lets_the_preloaded_library_tell_the_host(
    program_host: ProgramHost,
) -> None:
    script = """
import daxfault
fd = os.open(sys.argv[1], os.O_RDWR)
at = map(fd)
byte(at)
with daxfault.guard():
    pass
print(at, os.getpid(), flush=True)
sys.stdin.read(1)
byte(at + PAGE)
"""
    import subprocess

    file = program_host.file("file")
    command = [word for word in served(script, file) if word not in ("-I", "-S")]
    with subprocess.Popen(
        command, env=program_host.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        at, pid = (int(word) for word in process.stdout.readline().split())
        os.ftruncate(program_host.cache(file), PAGE)
        process.communicate("x", timeout=SECONDS)
    assert process.returncode == -signal.SIGBUS
    (told,) = program_host.saying("sigbus")
    assert (told["address"], told["tid"]) == (at + PAGE, pid)


# A program on the mount, with its file `data` of four pages mapped.
RUN = (
    PRELUDE
    + """
from vmm.program import control
def inject(rule):
    return control.ask(os.environ["DAXFAULT_MOUNT"], "inject", rule=rule)
def remove(id):
    control.ask(os.environ["DAXFAULT_MOUNT"], "remove", id=id)
def show(e):
    print(e.errno, os.path.basename(e.filename), [(r.offset, r.pages, r.reason) for r in e.records])
"""
)


def run(tmp_path: Path, script: str) -> list[str]:
    require_programs()
    place = Place(tmp_path)
    ran = place.ran("env", "-C", place.mount, sys.executable, "-c", RUN + script, "data")
    assert ran.code == 0, ran.err
    return ran.out.splitlines()


def test_guard_in_a_served_program_names_the_file_that_was_cut_and_heals(tmp_path: Path) -> None:
    script = """
try:
    with daxfault.guard():
        bytes(array)
except daxfault.MappingError as e:
    show(e)
with open("data", "r+b") as file:
    file.seek(PAGE)
    file.write(b"y" * 3 * PAGE)
print(array[0], array[PAGE], array[-1])
array[2 * PAGE] = 7
with open("data", "rb") as file:
    print(file.read()[2 * PAGE])
"""
    assert run(tmp_path, script) == [f"14 data [({PAGE}, 3, 'eof')]", "120 121 121", "7"]


def test_guard_in_a_served_program_tells_the_hosts_error(tmp_path: Path) -> None:
    script = """
os.truncate("data", 64 * PAGE)
with open("data", "r+b") as file:
    array = mmap.mmap(file.fileno(), 0)
    file.write(b"z" * 64 * PAGE)
rule = inject("EIO,file=data,offset=32K-36K")
for _ in range(2):
    try:
        with daxfault.guard():
            array[8 * PAGE + 3]
    except daxfault.MappingError as e:
        show(e)
remove(rule)
while True:
    try:
        with daxfault.guard():
            print(array[8 * PAGE], array[9 * PAGE])
        break
    except daxfault.MappingError:
        pass  # until the page has healed
array[8 * PAGE] = 1
array.flush()
"""
    out = run(tmp_path, script)
    assert out == [f"5 data [({8 * PAGE + 3}, 1, 'io')]"] * 2 + ["122 122"]
    assert (tmp_path / "source" / "data").read_bytes() == b"z" * 8 * PAGE + b"\1" + b"z" * (56 * PAGE - 1)


def test_guard_in_a_served_program_and_its_forked_child_both_heal(tmp_path: Path) -> None:
    script = """
def read(word):
    try:
        with daxfault.guard():
            bytes(array)
    except daxfault.MappingError as e:
        print(word, len(e.records), flush=True)
read("before")
pid = os.fork()
read("child" if not pid else "parent")
if pid:
    os.waitpid(pid, 0)
    os.truncate("data", 4 * PAGE)
    print(array[0], array[3 * PAGE])
else:
    os._exit(0)
"""
    before, *both, after = run(tmp_path, script)
    assert (before, sorted(both), after) == ("before 1", ["child 1", "parent 1"], "120 0")


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
