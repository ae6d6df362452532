# SPDX-License-Identifier: Apache-2.0
"""Calls that a program makes by syscall(2) and not by the libc's function, which are served alike."""

import re
from pathlib import Path

from run_host import RunningHost

TOP = Path(__file__).resolve().parents[3]

SCRIPT = """if True:
    import ctypes, errno, mmap, os, signal, sys
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    MMAP, MPROTECT, MREMAP, MSYNC, GETPID = 9, 10, 25, 26, 39
    MLOCK, REMAP_FILE_PAGES, MLOCK2 = 149, 216, 325

    def call(number, *args):
        ctypes.set_errno(0)
        r = libc.syscall(*map(ctypes.c_long, (number, *args)))
        return r if r >= 0 else errno.errorcode[ctypes.get_errno()]

    def byte(at):
        return ctypes.c_char.from_address(at).value

    P = 4096
    fd = os.open("f", os.O_RDWR)
    signal.alarm(30)
    print("getpid", call(GETPID) == os.getpid(), call(3, 9999), call(-1))
    for prot in 1, 3, 5, 7:
        m = call(MMAP, 0, 8 * P, prot, 1, fd, P)
        print("mmap", prot, byte(m), byte(m + 2 * P))
    m = call(MMAP, 0, 8 * P, 3, 1, fd, 0)
    print("mlock2", call(MLOCK2, m, 8 * P, 0))
    m = call(MREMAP, m, 8 * P, 16 * P, 1, 0)
    print("grown", byte(m + 12 * P), call(MLOCK, m, 16 * P))
    m = call(MREMAP, m, 16 * P, 20 * P, 1, 0)
    print("grown", byte(m + 18 * P))
    print("munlock", call(150, m, 20 * P))
    ctypes.memset(m + P, ord("Z"), 1)
    print("msync", call(MSYNC, m, 2 * P, 4), os.pread(fd, 1, P))
    r = os.open("f", os.O_RDONLY)
    n = call(MMAP, 0, P, 1, 1, r, 0)
    print("mprotect", call(MPROTECT, n, P, 3), byte(n))
    """


def test_calls_by_number_have_the_answers_of_a_native_file_system(
    run_host: RunningHost, tmp_path: Path
) -> None:
    data = b"".join(bytes([65 + n]) * 4096 for n in range(24))
    (tmp_path / "f").write_bytes(data)
    (run_host.source / "f").write_bytes(data)
    native = RunningHost.does(run_host, "env", "-C", tmp_path, "-u", "LD_PRELOAD", "python3", "-c", SCRIPT)
    assert run_host.python(SCRIPT) == native
    assert (run_host.settled() / "f").read_bytes()[4096:4097] == b"Z"


def test_remap_file_pages_by_number_is_refused(run_host: RunningHost) -> None:
    """It would show zeros, and no event reports it."""
    (run_host.source / "f").write_bytes(b"A" * 65536)
    calls = """
    m = call(MMAP, 0, 8 * P, 3, 1, fd, 0)
    print(call(REMAP_FILE_PAGES, m, P, 0, 5, 0), byte(m))
    """
    script = SCRIPT[: SCRIPT.index("    print(")] + calls.strip("\n")
    assert run_host.python(script) == "EINVAL b'A'\n"


def test_every_call_that_the_table_decides_is_decided_by_number_too() -> None:
    calls = (TOP / "native/program/calls.c").read_text()
    decided = set(re.findall(r"^\t\{ ROW\((\w+)\)", calls, re.M))
    raw = (TOP / "native/program/preload/raw.c").read_text()
    assert set(re.findall(r"DECIDE\(__NR_(\w+)\)", raw)) == decided | {"mremap"}
