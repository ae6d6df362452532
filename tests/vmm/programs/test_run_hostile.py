# SPDX-License-Identifier: Apache-2.0
"""Programs that do to the host what no honest one does, or what an honest one does seldom: others
are served on, and nobody is shown what is not in the file.
"""

import json
import os
import socket

from patience import PATIENCE, looks
from run_host import RunningHost

from daxfault.vmm.programs import sockets

PAGE = 4096
# Makes a mapping of one page longer in place, without a touch, gives the first page up, and when the
# host has given up another file that it let go later, looks at the rest.
GROWN = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p
word, number = ctypes.c_size_t, ctypes.c_int
libc.mmap.argtypes = [ctypes.c_void_p, word, number, number, number, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
def mapped(name):
    fd = os.open(name, os.O_RDWR)
    at = libc.mmap(None, 3 * 4096, 3, 1, fd, 0)
    assert libc.munmap(at + 4096, 2 * 4096) == 0  # so that there is room
    return at
at = mapped("grown")
assert ctypes.string_at(at, 1) == b"0"
if sys.argv[1] == "place":
    assert libc.mremap(ctypes.c_void_p(at), 4096, 3 * 4096, 0) == at
    new, gone = at + 4096, at
else:
    new = libc.mremap(ctypes.c_void_p(at), 0, 3 * 4096, 1)
    assert new not in (0, 2**64 - 1)
    new, gone = new + 4096, at
assert libc.munmap(gone, 4096) == 0
other = mapped("other")
assert libc.munmap(other, 4096) == 0
print("ready", flush=True)
sys.stdin.readline()
print(ctypes.string_at(new, 1).decode() + ctypes.string_at(new + 4096, 1).decode())
ctypes.memset(new, ord("x"), 1)
"""


def test_mapping_that_nobody_told_of_is_served_after_the_one_it_came_from_is_gone(
    run_host: RunningHost,
) -> None:
    for how in ("place", "twice"):
        for name in ("grown", "other"):
            content = b"".join(str(i).encode() * PAGE for i in range(3))
            (run_host.source / name).write_bytes(content)
        with run_host.start("python3", "-c", GROWN, how) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            for _ in looks():
                if not any(name.endswith("/other") for name in run_host.ask("status")["files"]):
                    break
            out, err = process.communicate("\n", timeout=PATIENCE)
        assert (process.returncode, out) == (0, "12\n"), err
        assert run_host.settled().joinpath("grown").read_bytes()[PAGE : PAGE + 1] == b"x"


def test_control_request_nested_too_deeply_is_refused(run_host: RunningHost) -> None:
    path = sockets.control(os.stat(run_host.mount).st_dev)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(os.fspath(path))
        sock.sendall(b"[" * 60000 + b"\n")
        assert "error" in json.loads(sock.makefile("rb").readline())
    assert run_host.ask("status")


def test_programs_that_unmap_and_end_at_once_leave_the_host_alive(run_host: RunningHost) -> None:
    (run_host.source / "file").write_bytes(b"x" * 4 * PAGE)
    script = """
import mmap, os, sys
fd = os.open("file", os.O_RDWR)
for i in range(200):
    if os.fork() == 0:
        m = mmap.mmap(fd, 16384)
        m[i % 4 * 4096 + i // 4] = 65 + i % 26
        m.close()
        os._exit(0)
    if i % 8 == 7:
        os.wait()
while True:
    try:
        os.wait()
    except ChildProcessError:
        break
"""
    run_host.python(script)
    content = run_host.settled().joinpath("file").read_bytes()
    assert all(content[i % 4 * PAGE + i // 4] == 65 + i % 26 for i in range(200))


def test_madvise_that_would_remove_stores_is_refused(run_host: RunningHost) -> None:
    (run_host.source / "removed").write_bytes(b"a" * PAGE)
    script = """
import mmap, os
with open("removed", "r+b") as file, mmap.mmap(file.fileno(), 4096) as m:
    m[:1] = b"b"
    try:
        m.madvise(mmap.MADV_REMOVE)
    except OSError as e:
        print(os.strerror(e.errno), m[:2].decode())
"""
    assert run_host.python(script) == "Operation not supported ba\n"
    assert run_host.settled().joinpath("removed").read_bytes()[:2] == b"ba"
