# SPDX-License-Identifier: Apache-2.0
"""The table of system calls (native/program/calls.c): the library and the tracer do the same with each."""

from __future__ import annotations

import errno
import re
import subprocess
from collections.abc import Callable, Iterator

import pytest
from checkout import ROOT
from program_host import PAGE, ProgramHost, program, refuse, run
from tracing import run_traced, traced_host

# Every system call of x86-64 and aarch64 that can touch a mapping of its own process.
CALLS = """
brk clone clone3 close_range copy_file_range execve execveat exit_group fork io_uring_register madvise
map_shadow_stack mbind memfd_secret migrate_pages mincore mlock mlock2 mlockall mmap move_pages mprotect
mremap mseal msync munlock munlockall munmap pkey_mprotect process_madvise process_mrelease process_vm_readv
process_vm_writev ptrace remap_file_pages sendfile set_mempolicy_home_node shmat shmdt splice sync
sync_file_range syncfs userfaultfd vfork
"""

BEGIN = """
import mmap
libc.syscall.restype = ctypes.c_long
libc.mremap.restype = ctypes.c_void_p
for name in "madvise", "mlock", "mlock2", "remap_file_pages", "process_madvise", "mincore":
    function = getattr(libc, name)
    function.argtypes = {
        "madvise": [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int],
        "mlock": [ctypes.c_void_p, ctypes.c_size_t],
        "mlock2": [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint],
        "remap_file_pages": [
            ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_size_t, ctypes.c_int],
        "process_madvise": [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_uint],
        "mincore": [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p],
    }[name]
NORMAL, REMOVE, DODUMP = 0, 9, 17
READ_ONLY = os.open(sys.argv[1], os.O_RDONLY)
READ_WRITE = os.open(sys.argv[1], os.O_RDWR)
def answer(name, *arguments):
    return failing(lambda: checked(getattr(libc, name)(*arguments)))
def grown(at):
    return checked(libc.mremap(at, 2 * PAGE, 4 * PAGE, 1, None))
def present(at, pages):
    room = (ctypes.c_ubyte * pages)()
    checked(libc.mincore(at, pages * PAGE, room))
    return sum(byte & 1 for byte in room)
def own():
    fd = os.memfd_create("own")
    os.truncate(fd, 4 * PAGE)
    at = map(fd)
    store(at, 9)
    return at
"""

# What each prints: the kernel's own answer on a file system without fallocate(), or the refusal.
CASES = {
    "MADV_REMOVE of a page cache": (
        "at = map(READ_WRITE); store(at, 7)\nprint(answer('madvise', at, PAGE, REMOVE), byte(at))",
        "ENOTSUP 7",
    ),
    "MADV_REMOVE of another mapping": (
        "map(READ_WRITE); at = own(); print(answer('madvise', at, PAGE, REMOVE), byte(at))",
        "None 0",
    ),
    "MADV_REMOVE of what comes before a page cache": (
        "at = own(); map(READ_WRITE, 2 * PAGE, flags=SHARED | FIXED, addr=at + PAGE); store(at + PAGE, 7)\n"
        "print(answer('madvise', at, 2 * PAGE, REMOVE), byte(at), byte(at + PAGE))",
        "ENOTSUP 0 7",
    ),
    "MADV_REMOVE of a locked mapping": (
        "at = map(READ_WRITE); answer('mlock', at, PAGE); print(answer('madvise', at, PAGE, REMOVE))",
        "EINVAL",
    ),
    "MADV_REMOVE of a private mapping, and of a file that was opened read-only": (
        "private = map(READ_WRITE, flags=PRIVATE); shared = map(READ_ONLY, prot=READ)\n"
        "print(*(answer('madvise', at, PAGE, REMOVE) for at in (private, shared)))",
        "EACCES EACCES",
    ),
    "MADV_REMOVE with arguments that make no sense": (
        "at = map(READ_WRITE)\n"
        "print(answer('madvise', at + 1, PAGE, REMOVE), answer('madvise', at, 0, REMOVE))",
        "EINVAL None",
    ),
    "MADV_REMOVE by process_madvise()": (
        "at = map(READ_WRITE); store(at, 7); self = os.pidfd_open(os.getpid())\n"
        "vector = (ctypes.c_size_t * 2)(at, PAGE)\n"
        "print(answer('process_madvise', self, vector, 1, REMOVE, 0), byte(at))",
        "EINVAL 7",
    ),
    "MADV_DODUMP of a mapping that must stay private": (
        "at = map(READ_ONLY, prot=READ)\n"
        "print(answer('madvise', at, PAGE, DODUMP), answer('mprotect', at, PAGE, READ | WRITE))",
        "None EACCES",
    ),
    "remap_file_pages() of a page cache": (
        "at = map(READ_WRITE)\n"
        "print(answer('remap_file_pages', at, PAGE, 0, 2, 0), byte(at), byte(at + 2 * PAGE))",
        "EINVAL 1 3",
    ),
    "remap_file_pages() of another mapping": (
        "map(READ_WRITE); at = own(); print(answer('remap_file_pages', at, PAGE, 0, 2, 0), byte(at))",
        "None 0",
    ),
    "mlock() brings the pages": (
        "at = map(READ_WRITE); print(answer('mlock', at, 4 * PAGE)); print(present(at, 4))",
        "None 4",
    ),
    "mlock2() without a flag brings the pages": (
        "at = map(READ_WRITE); print(answer('mlock2', at, 4 * PAGE, 0)); print(present(at, 4))",
        "None 4",
    ),
    "mlock2() with MLOCK_ONFAULT does not": (
        "at = map(READ_WRITE); print(answer('mlock2', at, 4 * PAGE, 1)); print(present(at, 4))",
        "None 0",
    ),
    "mlock() past the end of the file": (
        "at = map(READ_WRITE, 6 * PAGE); print(answer('mlock', at, 6 * PAGE), byte(at))",
        "ENOMEM 1",
    ),
    "mlock() of other memory brings it": (
        "at = map(-1, flags=PRIVATE | ANONYMOUS); print(answer('mlock', at, 4 * PAGE))\n"
        "print(sum(1 for line in open('/proc/self/smaps') if line.split()[:2] == ['Locked:', '16']))",
        "None 1",
    ),
    "a mapping locked by mlock() grows": (
        "at = map(READ_WRITE, 2 * PAGE); print(answer('mlock', at, 2 * PAGE))\n"
        "print(byte(grown(at) + 3 * PAGE))",
        "None 4",
    ),
    "a mapping locked by mlock2() without a flag grows": (
        "at = map(READ_WRITE, 2 * PAGE); print(answer('mlock2', at, 2 * PAGE, 0))\n"
        "print(byte(grown(at) + 3 * PAGE))",
        "None 4",
    ),
    "a mapping locked by mlockall() grows": (
        "at = map(READ_WRITE, 2 * PAGE); print(answer('mlockall', 1)); print(present(at, 2))\n"
        "print(byte(grown(at) + 3 * PAGE))",
        "None 2 4",
    ),
    "mlockall() with arguments that make no sense": (
        "print(answer('mlockall', 0), answer('mlockall', 8 | 1), answer('mlockall', 4))",
        "EINVAL EINVAL EINVAL",
    ),
}

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def host() -> Iterator[ProgramHost]:
    with traced_host() as made:
        yield made


@pytest.fixture(params=["library", "tracer"])
def by(request: pytest.FixtureRequest) -> Run:
    if request.param == "library":
        return run
    return lambda host, script, *arguments: run_traced(host, *program(script, *arguments))


@pytest.mark.parametrize("name", CASES)
def test_call_of_a_program_is_answered_alike_by_both_ways(host: ProgramHost, by: Run, name: str) -> None:
    script, expected = CASES[name]
    done = by(host, BEGIN + script, host.file("file"))
    assert (done.stdout.split(), done.stderr, done.returncode) == (expected.split(), "", 0)


@pytest.mark.parametrize("call", ["syncfs(READ_WRITE)", "sync_file_range(READ_WRITE, 0, 0, 4)", "sync()"])
def test_sync_of_a_file_system_is_the_hosts_of_all_that_is_mapped(
    host: ProgramHost, by: Run, call: str
) -> None:
    script = f"""
libc.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
libc.sync.restype = None
call = lambda: failing(lambda: checked(libc.{call} or 0))
print(call(), end=" ")
print(map(READ_WRITE), call(), call())
"""
    host.next("msync", lambda reply, fds: (reply, fds))
    host.next("msync", refuse(errno.ENOSPC))
    done = by(host, BEGIN + script, host.file("file"))
    before, at, first, second = done.stdout.split()
    assert (before, first, done.stderr) == ("None", "None", "")
    assert second == ("None" if call == "sync()" else "ENOSPC")
    said = [(m["start"], m["start"] + m["len"]) for m in host.saying("msync")]
    assert len(said) == 2
    assert all(start <= int(at) and int(at) + 4 * PAGE <= end for start, end in said)


def test_raw_call_of_a_program_is_answered_by_the_tracer(host: ProgramHost) -> None:
    script = """
at = map(READ_WRITE); store(at, 7)
raw = lambda *arguments: failing(lambda: checked(libc.syscall(*map_arguments(arguments))))
def map_arguments(arguments):
    return [ctypes.c_long(argument) for argument in arguments]
print(raw(28, at, PAGE, REMOVE), raw(216, at, PAGE, 0, 2, 0), raw(325, at, PAGE, 0), byte(at))
"""
    done = run_traced(host, *program(BEGIN + script, host.file("file")))
    assert (done.stdout.split(), done.stderr) == (["ENOTSUP", "EINVAL", "None", "7"], "")


def test_table_has_every_call_that_can_touch_a_mapping() -> None:
    source = (ROOT / "native" / "program" / "calls.c").read_text()
    rows = re.findall(r"(?:ROW|LEFT)\((\w+)[,)]", source)
    assert set(CALLS.split()) == set(rows) - {"call"}
