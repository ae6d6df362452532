# SPDX-License-Identifier: Apache-2.0
"""What a program's calls come to when the host refuses, breaks the protocol, dies or is late."""

import ast
import os
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest
from patience import PATIENCE
from program_host import Answer, Gate, ProgramHost, carry, cut, garble, hang_up, printed, program, refuse

# One mmap() that something is the matter with, then one that is well; nothing may be left of the first.
TWICE = """
fd = os.open(sys.argv[1], os.O_RDWR)
before = descriptors()
first = failing(map, fd)
left = set(descriptors().values()) - set(before.values())
print(first, caches(), all(link.startswith("socket:") for link in left), len(left) <= 1)
at = map(fd)
print([byte(at + i * PAGE) for i in range(4)], len(descriptors()) - len(before))
"""
WELL = "[1, 2, 3, 4] 1"


@pytest.mark.parametrize("what", ["attach", "serve", "mmap", "mapped"])
def test_mmap_that_the_host_refuses_fails_with_its_errno(program_host: ProgramHost, what: str) -> None:
    program_host.next(what, refuse(112))
    lines = printed(program_host, TWICE, program_host.file("file"))
    assert lines == ["EHOSTDOWN 0 True True", WELL]


@pytest.mark.parametrize("what", ["attach", "serve", "mmap", "mapped"])
def test_mmap_when_the_host_hangs_up_is_enodev(program_host: ProgramHost, what: str) -> None:
    program_host.next(what, hang_up)
    lines = printed(program_host, TWICE, program_host.file("file"))
    assert lines == ["ENODEV 0 True True", WELL]


@pytest.mark.parametrize("what", ["attach", "serve", "mmap", "mapped"])
@pytest.mark.parametrize(
    "answer",
    [
        garble(seq=99),
        garble(type=1),
        garble(len=8),
        garble(error=-5),
        garble(error=5000),
        cut(24 - 4),
        lambda reply, fds: (reply + bytes(200), fds),
        lambda reply, fds: (b"x", fds),
    ],
    ids=["sequence", "type", "length", "negative errno", "no errno", "cut", "long", "a byte"],
)
def test_mmap_with_a_wrong_reply_is_enodev_and_keeps_no_descriptor(
    program_host: ProgramHost, what: str, answer: Answer
) -> None:
    program_host.next(what, answer)
    lines = printed(program_host, TWICE, program_host.file("file"))
    assert lines == ["ENODEV 0 True True", WELL]


@pytest.mark.parametrize(
    ("what", "count"), [("attach", 2), ("attach", 5), ("serve", 1), ("mmap", 0), ("mmap", 2), ("mapped", 1)]
)
def test_reply_with_the_wrong_descriptors_is_no_reply(
    program_host: ProgramHost, what: str, count: int
) -> None:
    with open("/dev/null") as null:
        program_host.next(what, carry(*[null.fileno()] * count))
        lines = printed(program_host, TWICE, program_host.file("file"))
    # more than there is room for are dropped by the kernel, as when the program has no number for them
    assert lines == ["EMFILE 0 True True" if count > 4 else "ENODEV 0 True True", WELL]


def test_reply_of_another_version_is_enodev(program_host: ProgramHost) -> None:
    def older(reply: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
        return reply[:24] + bytes([1]) + reply[25:], fds

    program_host.next("attach", older)
    assert printed(program_host, TWICE, program_host.file("file")) == ["ENODEV 0 True True", WELL]


def test_mmap_without_a_host_is_enodev(tmp_path: Path) -> None:
    with ProgramHost(tmp_path) as host:
        file = host.file("file")
        script = "print(failing(map, os.open(sys.argv[1], os.O_RDWR)), caches(), len(descriptors()) <= 5)"
        for socket in [tmp_path / "nobody", "x" * 200, "x" * 9000, tmp_path, "/dev/null"]:
            assert printed(host, script, file, DAXFAULT_SOCKET=str(socket))[0].startswith("ENODEV 0 True")


def test_connection_that_the_host_has_ended_is_made_anew(program_host: ProgramHost) -> None:
    """The first is found dead by the second mmap(), which does not fail for it."""
    program_host.next("msync", hang_up)
    script = """
fd = os.open(sys.argv[1], os.O_RDWR)
at = map(fd)
print(failing(lambda: checked(libc.msync(at, PAGE, 4))), byte(map(fd)), byte(at + PAGE))
"""
    # msync() itself asks again, and the second host it reaches knows
    assert printed(program_host, script, program_host.file("file")) == ["None 1 2"]
    assert len(program_host.saying("attach")) == 2


def test_msync_when_the_host_is_gone_fails_where_it_matters(tmp_path: Path) -> None:
    script = """
import mmap
at = map(os.open(sys.argv[1], os.O_RDWR))
other = os.memfd_create("other")
os.ftruncate(other, PAGE)
elsewhere = map(other, PAGE)
print(flush=True)
input()
print([failing(lambda: checked(libc.msync(a, PAGE, 4))) for a in (at, elsewhere)])
"""
    with ProgramHost(tmp_path) as host:
        file = host.file("file")
        process = subprocess.Popen(
            program(script, file),
            env=host.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        process.stdout.readline()
    (tmp_path / "host.socket").unlink()
    out, _ = process.communicate("\n", timeout=PATIENCE)
    assert out == "['EIO', None]\n"


def test_mmap_with_signals_while_the_host_is_late_is_served_first(program_host: ProgramHost) -> None:
    """A handler that maps as well, of a signal that comes in the middle of a conversation."""
    gate = Gate()
    program_host.next("mmap", gate)
    script = """
fd = os.open(sys.argv[1], os.O_RDWR)
order = []
def handler(*_):
    order.append(("handler", byte(map(fd, PAGE, offset=PAGE))))
signal.signal(signal.SIGUSR1, handler)
order.append(("call", byte(map(fd))))
print(order, flush=True)
"""
    with subprocess.Popen(
        program(script, program_host.file("file")),
        env=program_host.environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert gate.reached.wait(PATIENCE)
        process.send_signal(signal.SIGUSR1)
        gate.opened.set()
        out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert sorted(ast.literal_eval(out)) == [("call", 1), ("handler", 2)]


def test_fork_while_another_thread_waits_for_the_host_is_followed(program_host: ProgramHost) -> None:
    gate = Gate()
    script = """
import threading
fd = os.open(sys.argv[1], os.O_RDWR)
first = map(fd)
print("ready", flush=True)
input()
thread = threading.Thread(target=map, args=(fd,))
thread.start()
print("mapping", flush=True)
input()
pid = os.fork()
if not pid:
    print([byte(first + i * PAGE) for i in range(4)], byte(map(fd)), flush=True)
    os._exit(0)
os.waitpid(pid, 0)
thread.join()
"""
    with subprocess.Popen(
        program(script, program_host.file("file")),
        env=program_host.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        program_host.next("mmap", gate)
        process.stdin.write("\n")
        process.stdout.readline()
        assert gate.reached.wait(PATIENCE)
        process.stdin.write("\n")
        gate.opened.set()
        out, _ = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (0, "[1, 2, 3, 4] 1\n")


@pytest.mark.parametrize("privilege", [os.geteuid() == 0])
def test_unprivileged_program_is_served_by_the_hosts_device(
    tmp_path: Path, privilege: bool, request: pytest.FixtureRequest
) -> None:
    """An ordinary user may not make a userfaultfd that sees the kernel's faults; it is lent the device."""
    if not privilege:
        pytest.skip("this is an ordinary user already")
    script = """
fd = os.open(sys.argv[1], os.O_RDWR)
os.setresuid(65534, 65534, 65534)
at = failing(map, fd)
print(at if at else [byte(map(fd) + i * PAGE) for i in range(4)])
"""
    for device, expected in [(True, "[1, 2, 3, 4]"), (False, "EPERM")]:
        with tempfile.TemporaryDirectory() as directory:
            os.chmod(directory, 0o755)
            with ProgramHost(Path(directory), device=device) as host:
                os.chmod(host.path, 0o777)
                assert printed(host, script, host.file("file")) == [expected]
