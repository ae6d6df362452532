# SPDX-License-Identifier: Apache-2.0
"""mmap(), msync(), mprotect() and mremap() of a program with the preloaded library: served, and with
the errors that the kernel has for a file of its own."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from checkout import PROGRAMS
from patience import PATIENCE
from program_host import PAGE, ProgramHost, printed, program, refuse

# What a program may ask of mmap(): how the file is opened, length, prot, flags, offset, address.
REQUESTS = """
R, W, RW = os.O_RDONLY, os.O_WRONLY, os.O_RDWR
free = map(-1, 8 * PAGE, NONE, PRIVATE | ANONYMOUS)
NOREPLACE, LOCKED, NORESERVE, POPULATE, SYNC, HUGETLB, GROWSDOWN = (
    0x100000, 0x2000, 0x4000, 0x8000, 0x80000, 0x40000, 0x100)
REQUESTS = {
    "shared": (RW, PAGE, READ | WRITE, SHARED, 0, None),
    "shared, read-only": (R, PAGE, READ, SHARED, 0, None),
    "shared, stores to what was opened read-only": (R, PAGE, READ | WRITE, SHARED, 0, None),
    "private, stores to what was opened read-only": (R, PAGE, READ | WRITE, PRIVATE, 0, None),
    "opened write-only": (W, PAGE, WRITE, SHARED, 0, None),
    "opened write-only, private": (W, PAGE, READ, PRIVATE, 0, None),
    "opened write-only, no access": (W, PAGE, NONE, SHARED, 0, None),
    "opened as a path": (os.O_PATH, PAGE, READ, SHARED, 0, None),
    "no length": (RW, 0, READ, SHARED, 0, None),
    "no length, misaligned": (RW, 0, READ, SHARED, 1, None),
    "misaligned offset": (RW, PAGE, READ, SHARED, 1, None),
    "misaligned offset, opened write-only": (W, PAGE, READ, SHARED, 512, None),
    "negative offset": (RW, PAGE, READ, SHARED, -PAGE, None),
    "past the end": (RW, PAGE, READ, SHARED, 1 << 40, None),
    "the last offset": (RW, PAGE, READ, SHARED, 2**63 - 2 * PAGE, None),
    "past the last offset": (RW, 2 * PAGE, READ, SHARED, 2**63 - PAGE, None),
    "too long": (RW, 1 << 47, READ, SHARED, 0, None),
    "far too long": (RW, 2**64 - 1, READ, SHARED, 0, None),
    "far too long and no length": (RW, 2**64 - PAGE, READ, SHARED, 0, None),
    "neither shared nor private": (RW, PAGE, READ, 0, 0, None),
    "a type that is none": (RW, PAGE, READ, 7, 0, None),
    "validate": (RW, PAGE, READ, VALIDATE, 0, None),
    "validate, read-only": (R, PAGE, READ, VALIDATE, 0, None),
    "validate, sync": (RW, PAGE, READ, VALIDATE | SYNC, 0, None),
    "validate, sync, read-only": (R, PAGE, READ, VALIDATE | SYNC, 0, None),
    "validate, what nobody knows": (R, PAGE, READ, VALIDATE | 0x800000, 0, None),
    "validate, sync, to be written, read-only": (R, PAGE, READ | WRITE, VALIDATE | SYNC, 0, None),
    "sync without validation": (RW, PAGE, READ, SHARED | SYNC, 0, None),
    "huge pages": (RW, PAGE, READ, SHARED | HUGETLB, 0, None),
    "growing down": (RW, PAGE, READ, SHARED | GROWSDOWN, 0, None),
    "growing down, fixed": (RW, PAGE, READ, SHARED | GROWSDOWN | FIXED, 0, free),
    "locked": (RW, PAGE, READ, SHARED | LOCKED, 0, None),
    "no reserve": (RW, PAGE, READ | WRITE, PRIVATE | NORESERVE, 0, None),
    "populate": (RW, PAGE, READ | WRITE, SHARED | POPULATE, 0, None),
    "rights that are none": (RW, PAGE, READ | 0xF0, SHARED, 0, None),
    "a hint": (RW, PAGE, READ, SHARED, 0, free + 17),
    "fixed": (RW, PAGE, READ, SHARED | FIXED, 0, free),
    "fixed, misaligned": (RW, PAGE, READ, SHARED | FIXED, 0, free + 17),
    "fixed, below what may be mapped": (RW, PAGE, READ, SHARED | FIXED, 0, None),
    "fixed, in the kernel": (RW, PAGE, READ, SHARED | FIXED, 0, 1 << 63),
    "fixed, over the end": (RW, 2 * PAGE, READ, SHARED | FIXED, 0, (1 << 47) - 2 * PAGE),
    "fixed, stores to what was opened read-only": (R, PAGE, READ | WRITE, SHARED | FIXED, 0, free),
    "not replacing": (RW, PAGE, READ, SHARED | NOREPLACE, 0, free),
    "not replacing, misaligned": (RW, PAGE, READ, SHARED | NOREPLACE, 0, free + 17),
    "executable": (RW, PAGE, READ | EXEC, PRIVATE, 0, None),
}
if os.geteuid() == 0:  # address 0 is then allowed
    del REQUESTS["fixed, below what may be mapped"]
"""

ANSWERS = """
import json
def answer(flags, length, prot, map_flags, offset, addr):
    fd = os.open(sys.argv[1], flags)
    try:
        at = map(fd, length, prot, map_flags, offset, addr)
        if map_flags & (FIXED | NOREPLACE):
            assert at == addr
        else:
            libc.munmap(at, length)
    finally:
        os.close(fd)
print(json.dumps({name: failing(answer, *request) for name, request in REQUESTS.items()}))
"""


def test_mmap_of_any_request_fails_as_the_kernels_own(program_host: ProgramHost) -> None:
    file = program_host.file("file")
    command = program(REQUESTS + ANSWERS, file)
    alone = subprocess.run(command, capture_output=True, check=True, timeout=PATIENCE)
    expected = json.loads(alone.stdout)
    (line,) = printed(program_host, REQUESTS + ANSWERS, file)
    answers = json.loads(line)
    # where it is not validated, tmpfs ignores it, and ext4 does not
    del expected["sync without validation"]
    assert answers.pop("sync without validation") == "ENOTSUP"
    assert answers == expected
    assert {"EACCES", "EINVAL", "EBADF", "ENOMEM", "EOVERFLOW", "ENOTSUP", None} <= set(expected.values())
    mapped = [m for m in program_host.saying("mapped") if m["len"]]
    assert len(mapped) >= sum(error is None for name, error in expected.items() if name != "executable")


def test_mapping_is_of_the_page_cache(program_host: ProgramHost) -> None:
    file = program_host.file("file")
    script = """
    fd = os.open(sys.argv[1], os.O_RDWR)
    whole = map(fd)
    os.close(fd)
    fd = os.open(sys.argv[1], os.O_RDONLY)
    second = map(fd, PAGE, READ, SHARED, PAGE)
    own = map(fd, PAGE, READ | WRITE, PRIVATE, 2 * PAGE)
    last = checked(libc.mmap64(None, 100, READ, SHARED, fd, 3 * PAGE))
    print([byte(whole + i * PAGE) for i in range(4)], byte(second), byte(own), byte(last))
    store(whole + PAGE, 50)
    store(own, 60)
    print(byte(second), byte(whole + 2 * PAGE), byte(own))
    """.replace("\n    ", "\n")
    assert printed(program_host, script, file) == ["[1, 2, 3, 4] 2 3 4", "50 3 60"]
    assert os.pread(program_host.cache(file), 1, PAGE) == b"\x32"
    assert [m["len"] for m in program_host.saying("mapped")] == [4 * PAGE, PAGE, PAGE, PAGE]


def test_mapping_of_other_files_is_left_alone(program_host: ProgramHost) -> None:
    script = """
fd = os.open("/proc/self/exe", os.O_RDONLY)
other = os.memfd_create("other")
os.ftruncate(other, PAGE)
ctypes.set_errno(77)
at = map(other, PAGE)
store(at, 5)
assert not libc.msync(at, PAGE, 4)
anonymous = map(-1, PAGE, READ | WRITE, PRIVATE | ANONYMOUS)
print(ctypes.get_errno(), byte(at), byte(anonymous), failing(map, 99), failing(map, -1))
directory = os.open(os.path.dirname(sys.argv[1]), os.O_RDONLY)
print(failing(map, directory, prot=READ), caches())
"""
    file = program_host.file("file")
    assert printed(program_host, script, file) == ["77 5 0 EBADF EBADF", "ENODEV 0"]
    assert not program_host.said


@pytest.mark.parametrize("missing", ["DAXFAULT_SOCKET", "DAXFAULT_DEVICE"])
def test_library_without_its_environment_does_nothing(program_host: ProgramHost, missing: str) -> None:
    file = program_host.file("file")
    script = """
at = map(os.open(sys.argv[1], os.O_RDWR))
print(byte(at), caches(), signal.getsignal(signal.SIGBUS) == signal.SIG_DFL)
print(os.spawnv(os.P_WAIT, "/bin/true", ["true"]))
"""
    assert printed(program_host, script, file, **{missing: ""}) == ["1 0 True", "0"]
    assert not program_host.said


def test_mmap_that_succeeds_keeps_errno(program_host: ProgramHost) -> None:
    script = """
fd = os.open(sys.argv[1], os.O_RDWR)
kept = []
for _ in range(2):  # with and without a connection to make
    ctypes.set_errno(77)
    at = libc.mmap(None, PAGE, READ | WRITE, SHARED | 0x8000, fd, 0)
    kept.append(ctypes.get_errno())
for call in [lambda: libc.msync(at, PAGE, 4), lambda: libc.mprotect(at, PAGE, READ)]:
    ctypes.set_errno(77)
    assert not call()
    kept.append(ctypes.get_errno())
print(kept)
"""
    assert printed(program_host, script, program_host.file("file")) == ["[77, 77, 77, 77]"]


def test_populate_has_pages_there_before_they_are_touched(program_host: ProgramHost) -> None:
    file = program_host.file("file")
    script = """
fd = os.open(sys.argv[1], os.O_RDWR)
resident = ctypes.create_string_buffer(4)
for flags in [SHARED | 0x8000, PRIVATE | 0x8000, SHARED | 0x2000, SHARED | 0x8000 | 0x10000]:
    at = map(fd, flags=flags)
    pagemap = open("/proc/self/pagemap", "rb", 0)
    entries = [int.from_bytes(os.pread(pagemap.fileno(), 8, (at // PAGE + i) * 8), "little")
               for i in range(4)]
    print([entry >> 63 for entry in entries], [byte(at + i * PAGE) for i in range(4)])
"""
    lines = printed(program_host, script, file)
    there = "[1, 1, 1, 1] [1, 2, 3, 4]"
    assert lines[:3] == [there] * 3
    assert lines[3] == "[0, 0, 0, 0] [1, 2, 3, 4]"  # MAP_NONBLOCK: no read ahead at all


def test_locked_future_shows_what_the_file_has(program_host: ProgramHost) -> None:
    """mlockall(MCL_FUTURE) has the kernel touch every page of a new mapping at once."""
    script = """
assert not libc.mlockall(2)
fd = os.open(sys.argv[1], os.O_RDWR)
at = map(fd)
fixed = map(-1, 4 * PAGE, READ, PRIVATE | ANONYMOUS)
assert map(fd, flags=SHARED | FIXED, addr=fixed) == fixed
print([byte(a + i * PAGE) for a in (at, fixed) for i in range(4)])
"""
    assert printed(program_host, script, program_host.file("file")) == ["[1, 2, 3, 4, 1, 2, 3, 4]"]


def test_fixed_mapping_that_is_refused_leaves_what_was_there(program_host: ProgramHost) -> None:
    file = program_host.file("file")
    program_host.next("mapped", refuse(12))
    script = """
fd = os.open(sys.argv[1], os.O_RDWR)
old = map(-1, 4 * PAGE, READ | WRITE, PRIVATE | ANONYMOUS)
store(old + PAGE, 7)
print(failing(map, fd, flags=SHARED | FIXED, addr=old), byte(old + PAGE), caches())
print(map(fd, 2 * PAGE, flags=SHARED | FIXED, addr=old + PAGE) == old + PAGE, byte(old), byte(old + PAGE))
print(map(fd, flags=SHARED | FIXED, addr=old) == old, [byte(old + i * PAGE) for i in range(4)])
libc.munmap(old, 4 * PAGE)  # the very place that the kernel would choose for another
print(map(fd, flags=SHARED | FIXED, addr=old) == old, [byte(old + i * PAGE) for i in range(4)])
"""
    assert printed(program_host, script, file) == [
        "ENOMEM 7 0",
        "True 0 1",
        "True [1, 2, 3, 4]",
        "True [1, 2, 3, 4]",
    ]


def test_fixed_mapping_replaces_at_once_for_other_threads(program_host: ProgramHost, tmp_path: Path) -> None:
    """A reader of a range that is mapped anew all the time sees the old or the new, and never a gap."""
    source = PROGRAMS / "replace.c"
    binary = tmp_path / "replace"
    subprocess.run(
        ["cc", "-D_GNU_SOURCE", "-O1", "-Wall", "-Wextra", "-Werror", source, "-o", binary, "-lpthread"],
        check=True,
    )
    first, second = program_host.file("first", 1), program_host.file("second", 2)
    done = subprocess.run(
        [binary, first, second, "200"],
        env=program_host.environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("RLIMIT_NOFILE", "EMFILE"),
        ("RLIMIT_AS", "ENOMEM"),
    ],
)
@pytest.mark.parametrize("connected", [False, True])
def test_mmap_at_a_limit_fails_and_leaks_nothing(
    program_host: ProgramHost, limit: str, expected: str, connected: bool
) -> None:
    script = """
import resource
which, connected = getattr(resource, sys.argv[2]), sys.argv[3] == "True"
length = 1 << 28
fd = os.open(sys.argv[1], os.O_RDWR)
if connected:
    map(fd)
before = descriptors()
old, hard = resource.getrlimit(which)
if which == resource.RLIMIT_AS:
    used = int(open("/proc/self/statm").read().split()[0]) * PAGE
    resource.setrlimit(which, (used + length // 2, hard))
else:
    resource.setrlimit(which, (64, hard))
    filled = []
    while not failing(lambda: filled.append(os.dup(0))):
        pass
for prot, flags in [(READ, SHARED), (READ | WRITE, PRIVATE)]:
    print(failing(map, fd, length, prot, flags))
if which != resource.RLIMIT_AS:
    os.closerange(filled[0], 64)
print(sorted(set(descriptors()) - set(before)), caches() - connected)
resource.setrlimit(which, (old, hard))
print(byte(map(fd)))
"""
    file = program_host.file("file")
    lines = printed(program_host, script, file, limit, connected)
    # an attachment may stay, for the next one
    kept = "['1000']" if limit == "RLIMIT_AS" and not connected else "[]"
    assert lines == [expected, expected, f"{kept} 0", "1"]


def test_mmap_locked_past_the_limit_is_eagain(program_host: ProgramHost) -> None:
    script = """
import resource
fd = os.open(sys.argv[1], os.O_RDWR)
map(fd)
resource.setrlimit(resource.RLIMIT_MEMLOCK, (2 * PAGE, 2 * PAGE))
libc.prctl(8, 1, 0, 0, 0)  # PR_SET_KEEPCAPS is not set: an ordinary user has no CAP_IPC_LOCK
if os.geteuid() == 0:
    libc.prctl(8, 0, 0, 0, 0)
    os.setresuid(65534, 65534, 65534)
old = map(-1, 4 * PAGE, READ | WRITE, PRIVATE | ANONYMOUS)
before = caches()
print(failing(map, fd, flags=SHARED | 0x2000), failing(map, fd, flags=SHARED | 0x2000 | FIXED, addr=old))
print(caches() - before, byte(old), byte(map(fd, PAGE, flags=SHARED | 0x2000)))
"""
    assert printed(program_host, script, program_host.file("file")) == ["EAGAIN EAGAIN", "0 0 1"]


# ---- msync


def test_msync_tells_the_host_of_the_range(program_host: ProgramHost) -> None:
    script = """
MS_ASYNC, MS_INVALIDATE, MS_SYNC = 1, 2, 4
at = map(os.open(sys.argv[1], os.O_RDWR))
calls = [(at, 2 * PAGE, MS_SYNC), (at + PAGE, 10, MS_SYNC | MS_INVALIDATE),
         (at, PAGE, MS_ASYNC), (at, 0, MS_SYNC), (at + 1, PAGE, MS_SYNC),
         (at, PAGE, MS_SYNC | MS_ASYNC), (0x10000, PAGE, MS_SYNC),
         (at, 1 << 62, MS_SYNC), (1 << 50, PAGE, MS_SYNC)]
print([failing(lambda: checked(libc.msync(*call))) for call in calls], at)
"""
    (line,) = printed(program_host, script, program_host.file("file"))
    results, at = line.rsplit(" ", 1)
    assert results == "[None, None, None, None, 'EINVAL', 'EINVAL', 'ENOMEM', 'ENOMEM', 'ENOMEM']"
    said = [(m["start"] - int(at), m["len"]) for m in program_host.saying("msync")]
    assert said[:2] == [(0, 2 * PAGE), (PAGE, PAGE)]
    assert all(m["start"] + m["len"] <= 1 << 47 for m in program_host.saying("msync"))


def test_msync_fails_with_the_hosts_errno(program_host: ProgramHost) -> None:
    program_host.next("msync", refuse(28))
    script = """
at = map(os.open(sys.argv[1], os.O_RDWR))
print([failing(lambda: checked(libc.msync(at, PAGE, 4))) for _ in range(2)])
"""
    assert printed(program_host, script, program_host.file("file")) == ["['ENOSPC', None]"]
