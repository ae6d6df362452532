# SPDX-License-Identifier: Apache-2.0
"""mprotect() of mappings that are private only because the library has made them so."""

import pytest
from program_host import ProgramHost, printed

# What each of these prints is what a file on any file system gives.
BEGIN = """
READ_ONLY = os.open(sys.argv[1], os.O_RDONLY)
READ_WRITE = os.open(sys.argv[1], os.O_RDWR)
def protect(at, length=4 * PAGE, prot=READ | WRITE):
    return failing(lambda: checked(libc.mprotect(at, length, prot)))
def demoted(length=4 * PAGE):
    return map(READ_ONLY, length, READ, SHARED)
"""
CASES = {
    "shared, opened read-only": (
        "at = demoted(); print(protect(at), protect(at + PAGE, PAGE))\n"
        "print(protect(at, prot=NONE), protect(at, prot=READ))",
        "EACCES EACCES None None",
    ),
    "shared, opened for both": ("print(protect(map(READ_WRITE, prot=READ)))", "None"),
    "private, opened read-only": ("print(protect(map(READ_ONLY, prot=READ, flags=PRIVATE)))", "None"),
    "validated": ("print(protect(map(READ_ONLY, prot=READ, flags=VALIDATE)))", "EACCES"),
    "protection keys": (
        "at = demoted()\n"
        "print(failing(lambda: checked(libc.pkey_mprotect(ctypes.c_void_p(at), PAGE, READ | WRITE, -1))))\n"
        "print(failing(lambda: checked(libc.pkey_mprotect(ctypes.c_void_p(at), PAGE, READ, -1))))",
        "EACCES None",
    ),
    "arguments that make no sense": (
        "at = demoted(); print(protect(at + 1), protect(at, 0))\n"
        "print(protect(at, 2**64 - PAGE), protect(at, prot=0x40))",
        "EINVAL None ENOMEM EINVAL",
    ),
    "unmapped, and another in its place": (
        "at = demoted(); libc.munmap(at, 4 * PAGE)\n"
        "print(protect(at))\n"
        "map(-1, flags=PRIVATE | ANONYMOUS | FIXED, prot=READ, addr=at); print(protect(at))\n"
        "map(READ_WRITE, flags=SHARED | FIXED, prot=READ, addr=at); print(protect(at))\n"
        "map(READ_ONLY, flags=PRIVATE | FIXED, prot=READ, addr=at); print(protect(at))\n"
        "map(READ_ONLY, flags=SHARED | FIXED, prot=READ, addr=at)\n"
        "print(protect(at))",
        "ENOMEM None None None EACCES",
    ),
    "unmapped in the middle": (
        "at = demoted(); libc.munmap(at + PAGE, 2 * PAGE)\n"
        "map(READ_ONLY, 2 * PAGE, READ, PRIVATE | FIXED, 0, at + PAGE)\n"
        "print(protect(at + PAGE, 2 * PAGE), protect(at, PAGE), protect(at + 3 * PAGE, PAGE), protect(at))",
        "None EACCES EACCES EACCES",
    ),
    "behind others": (
        "at = map(-1, flags=PRIVATE | ANONYMOUS, prot=READ)\n"
        "map(READ_ONLY, PAGE, READ, SHARED | FIXED, 0, at + 2 * PAGE)\n"
        "print(protect(at)); store(at + PAGE, 1); print(byte(at + PAGE))\n"
        "print(protect(at + 3 * PAGE, PAGE))",
        "EACCES 1 None",
    ),
    "moved": (
        "at = demoted(); to = map(-1, flags=PRIVATE | ANONYMOUS)\n"
        "print(checked(libc.mremap(at, 4 * PAGE, 4 * PAGE, 3, to)) == to, protect(to))\n"
        "print(byte(to), byte(to + 3 * PAGE))\n"
        "print(map(-1, 4 * PAGE, READ, PRIVATE | ANONYMOUS | FIXED, 0, at) == at, protect(at))",
        "True EACCES 1 4 True None",
    ),
    "moved, and something else over it": (
        "at = demoted(); to = map(-1, flags=PRIVATE | ANONYMOUS, prot=READ)\n"
        "print(checked(libc.mremap(to, 4 * PAGE, 4 * PAGE, 3, at)) == at, protect(at))",
        "True None",
    ),
    "grown": (
        "at = demoted(2 * PAGE); at = checked(libc.mremap(at, 2 * PAGE, 4 * PAGE, 1, None))\n"
        "print(protect(at + 2 * PAGE, PAGE), byte(at + PAGE), byte(at + 3 * PAGE))",
        "EACCES 2 4",
    ),
    "shrunk": (
        "at = demoted(); print(checked(libc.mremap(at, 4 * PAGE, PAGE, 0, None)) == at)\n"
        "print(protect(at, PAGE), byte(at))",
        "True EACCES 1",
    ),
    "moves that fail": (
        "at = demoted(); print(failing(lambda: checked(libc.mremap(at, 4 * PAGE, 4 * PAGE, 2, at))))\n"
        "print(protect(at))",
        "EINVAL EACCES",
    ),
    "very many": (
        "all = [demoted() for _ in range(300)]; print({protect(at) for at in all})\n"
        "for at in all[::2]: libc.munmap(at, 4 * PAGE)\n"
        "print({protect(at) for at in all[::2]}, {protect(at) for at in all[1::2]})",
        "{'EACCES'} {'ENOMEM'} {'EACCES'}",
    ),
    "in a forked child": (
        "at = demoted()\n"
        "if not os.fork(): os._exit(protect(at) == 'EACCES' and byte(at) == 1)\n"
        "print(os.waitstatus_to_exitcode(os.wait()[1]))",
        "1",
    ),
    "without /proc": (  # by its number of descriptors: the table must do
        "import resource\n"
        "at = demoted(); resource.setrlimit(resource.RLIMIT_NOFILE, (3, 4096)); print(protect(at))",
        "EACCES",
    ),
}


@pytest.mark.parametrize("served", [True, False], ids=["served", "the kernel's own"])
@pytest.mark.parametrize("name", CASES)
def test_mprotect(program_host: ProgramHost, name: str, served: bool) -> None:
    script, expected = CASES[name]
    environment = {} if served else {"DAXFAULT_SOCKET": ""}
    lines = printed(program_host, BEGIN + script, program_host.file("file"), **environment)
    assert " ".join(lines) == expected
    assert bool(program_host.said) == served
