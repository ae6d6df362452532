# SPDX-License-Identifier: Apache-2.0
"""A SIGBUS in a program with the preloaded library: the host is told, and nothing else is different."""

import os
import signal
import subprocess
from pathlib import Path

import pytest
from patience import PATIENCE
from program_host import PAGE, Gate, ProgramHost, hang_up, program, refuse, run

# The page cache ends after the first page; so does what can be touched.
TOUCH = """
fd = os.open(sys.argv[1], os.O_RDWR)
at = map(fd)
ready = byte(at)
cache = next(line.split("-")[0] for line in open("/proc/self/maps") if "/memfd:daxfault:" in line)
print(at, os.getpid(), flush=True)
sys.stdin.read(1)
"""


def touched(
    host: ProgramHost, script: str, *arguments: object, **environment: str
) -> tuple[int, list[str], str]:
    """Run TOUCH and the script, with the file truncated in between; -> its end, and what it printed."""
    file = host.file("file")
    with subprocess.Popen(
        program(TOUCH + script, file, *arguments),
        env=host.environment(**environment),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        os.ftruncate(host.cache(file), PAGE)
        out, err = process.communicate("x", timeout=PATIENCE)
    return process.returncode, [*first.split(), *out.split()], err


def test_sigbus_without_a_handler_is_told_and_kills(program_host: ProgramHost) -> None:
    end, (at, pid), err = touched(program_host, "byte(at + PAGE + 5)")
    assert (end, err) == (-signal.SIGBUS, "")
    (told,) = program_host.saying("sigbus")
    assert told == {
        "address": int(at) + PAGE + 5,
        "tid": int(pid),
        "code": 2,  # BUS_ADRERR
        "nframes": 0,
        "frames": [],
    }


def test_sigbus_of_a_thread_is_told_with_its_id(program_host: ProgramHost) -> None:
    script = """
import threading
def touch():
    print(threading.get_native_id(), flush=True)
    byte(at + 3 * PAGE)
thread = threading.Thread(target=touch)
thread.start()
thread.join()
"""
    end, (at, pid, tid), _ = touched(program_host, script)
    assert end == -signal.SIGBUS
    (told,) = program_host.saying("sigbus")
    assert (told["address"], told["tid"]) == (int(at) + 3 * PAGE, int(tid))
    assert tid != pid


def test_sigbus_with_stacks_asked_for_is_told_with_one(program_host: ProgramHost) -> None:
    end, _, err = touched(program_host, "byte(at + PAGE)", DAXFAULT_STACKS="1")
    assert (end, err) == (-signal.SIGBUS, "")
    (told,) = program_host.saying("sigbus")
    assert 5 < told["nframes"] == len(told["frames"])
    assert all(0x1000 < frame < 1 << 47 for frame in told["frames"])


def test_sigbus_of_the_programs_own_handler_is_its_own(program_host: ProgramHost) -> None:
    script = """
handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: os._exit(number + 100))
libc.signal(signal.SIGBUS, handler)
byte(at + PAGE)
"""
    end, _, _ = touched(program_host, script)
    assert end == signal.SIGBUS + 100
    assert not program_host.saying("sigbus")


def test_sigbus_that_somebody_sent_is_no_fault(program_host: ProgramHost) -> None:
    for how in ["os.kill(os.getpid(), signal.SIGBUS)", "signal.raise_signal(signal.SIGBUS)"]:
        end, _, _ = touched(program_host, how + "\nos._exit(0)")
        assert end == -signal.SIGBUS
    assert not program_host.saying("sigbus")


def test_sigbus_of_a_program_that_maps_nothing_of_ours_is_not_told(program_host: ProgramHost) -> None:
    script = """
fd = os.memfd_create("other")
at = map(fd)
byte(at)
"""
    assert run(program_host, script).returncode == -signal.SIGBUS
    assert not program_host.said


@pytest.mark.parametrize("action", ["SIG_IGN", "SIG_DFL"])
def test_sigbus_that_the_program_has_disposed_of_is_not_told(program_host: ProgramHost, action: str) -> None:
    """Either kills it, as the kernel has it for a fault."""
    end, _, _ = touched(program_host, f"signal.signal(signal.SIGBUS, signal.{action})\nbyte(at + PAGE)")
    assert end == -signal.SIGBUS
    assert not program_host.saying("sigbus")


def test_sigbus_ignored_from_the_start_stays_so(program_host: ProgramHost) -> None:
    script = """
signal.signal(signal.SIGBUS, signal.SIG_IGN)
os.execv(sys.executable, [sys.executable, "-IS", "-c",
    "import os, signal; os.kill(os.getpid(), signal.SIGBUS); print('alive')"])
"""
    assert run(program_host, script).stdout == "alive\n"


def test_sigbus_in_a_system_call_is_efault_and_no_signal(program_host: ProgramHost) -> None:
    script = """
pipe = os.pipe()[1]
print(failing(os.write, pipe, (ctypes.c_char * 10).from_address(at + PAGE)))
"""
    end, words, _ = touched(program_host, script)
    assert (end, words[2:]) == (0, ["EFAULT"])
    assert not program_host.saying("sigbus")


def test_sigbus_of_a_forked_child_is_told_as_its_own(program_host: ProgramHost) -> None:
    script = """
pid = os.fork()
if not pid:
    byte(at + PAGE)
    os._exit(0)
print(pid, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), byte(at))
"""
    end, words, _ = touched(program_host, script)
    assert (end, words[3:]) == (0, [str(-signal.SIGBUS), "1"])
    told = [said for said in program_host.said if said.what == "sigbus"]
    assert [(said.pid, said.values["tid"]) for said in told] == [(int(words[2]),) * 2]
    # nothing was mapped by the child: it presents itself to say this, and is not served
    (connection,) = {said.connection for said in told}
    assert [said.what for said in program_host.said if said.connection == connection] == ["attach", "sigbus"]


def test_sigbus_while_another_thread_waits_for_the_host_is_told_all_the_same(
    program_host: ProgramHost,
) -> None:
    gate = Gate()
    script = """
import threading
threading.Thread(target=map, args=(fd,)).start()
print("mapping", flush=True)
sys.stdin.read(1)
byte(at + PAGE)
"""
    file = program_host.file("file")
    with subprocess.Popen(
        program(TOUCH + script, file),
        env=program_host.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        os.ftruncate(program_host.cache(file), PAGE)
        program_host.next("mmap", gate)
        process.stdin.write(b"x")
        process.stdin.flush()
        assert gate.reached.wait(PATIENCE)
        process.communicate(b"x", timeout=PATIENCE)
        gate.opened.set()
    assert process.returncode == -signal.SIGBUS
    assert len(program_host.saying("sigbus")) == 1


@pytest.mark.parametrize("answer", [hang_up, refuse(1)], ids=["dies", "refuses"])
def test_sigbus_when_the_host_has_no_ear_kills_all_the_same(
    program_host: ProgramHost, answer: object
) -> None:
    program_host.next("sigbus", answer)
    program_host.next("sigbus", answer)
    end, _, err = touched(program_host, "byte(at + PAGE)")
    assert (end, err) == (-signal.SIGBUS, "")


def test_sigbus_that_kills_says_what_it_was(program_host: ProgramHost, tmp_path: Path) -> None:
    """The parent's siginfo, and whatever a debugger is shown: the fault's own."""
    script = """
import struct
pid = os.fork()
if not pid:
    libc.ptrace(0, 0, None, None)  # PTRACE_TRACEME
    byte(at + PAGE + 7)
    os._exit(0)
seen = []
while True:
    status = os.waitpid(pid, 0)[1]
    if not os.WIFSTOPPED(status):
        break
    info = ctypes.create_string_buffer(128)
    libc.ptrace(0x4202, pid, None, info)  # PTRACE_GETSIGINFO
    number, _, code, address = struct.unpack_from("iiixxxxQ", info)
    seen.append((number, code, address - at - PAGE))
    libc.ptrace(7, pid, None, ctypes.c_void_p(os.WSTOPSIG(status)))  # PTRACE_CONT
print(seen, os.waitstatus_to_exitcode(status))
"""
    _, words, _ = touched(program_host, script)
    assert " ".join(words[2:]) == f"[(7, 2, 7), (7, 2, 7)] {-signal.SIGBUS}"


def test_sigbus_of_many_threads_at_once_is_told_and_kills(program_host: ProgramHost) -> None:
    script = """
import threading
barrier = threading.Barrier(4)
def touch(page):
    barrier.wait()
    byte(at + page * PAGE)
for i in range(4):
    threading.Thread(target=touch, args=(1 + i % 3,)).start()
"""
    end, _, err = touched(program_host, script)
    assert (end, err) == (-signal.SIGBUS, "")
    assert program_host.saying("sigbus")
