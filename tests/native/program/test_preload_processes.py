# SPDX-License-Identifier: Apache-2.0
"""Programs with the preloaded library that fork, share memory with a child, or lose their descriptors."""

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkout import PROGRAMS
from patience import PATIENCE
from program_host import ProgramHost, printed, program, refuse, run


@pytest.fixture(params=[True, False], ids=["forks told by the kernel", "forks not told"])
def either_host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ProgramHost]:
    """Hosts with CAP_SYS_PTRACE, and without."""
    with ProgramHost(tmp_path, children=request.param) as host:
        yield host


@pytest.fixture(scope="module")
def map_from(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What tests/programs/map_from.c says."""
    if not PROGRAMS.is_dir():
        pytest.skip("the C sources are not beside the tests")
    binary = tmp_path_factory.mktemp("map_from") / "map_from"
    flags = ["-std=gnu11", "-D_GNU_SOURCE", "-O1", "-g", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["cc", *flags, PROGRAMS / "map_from.c", "-o", binary, "-lpthread"], check=True)
    return binary


@pytest.mark.parametrize("mode", ["signals", "vfork", "_Fork", "cancel", "threads"])
def test_mapping_where_no_interpreter_can_is_served(
    either_host: ProgramHost, map_from: Path, mode: str
) -> None:
    file = either_host.file("file")
    done = subprocess.run(
        [map_from, mode, file],
        env=either_host.environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_child_of_a_clone_is_served_or_has_no_mapping(either_host: ProgramHost, map_from: Path) -> None:
    """No library is told of it, only the kernel's events are; without them the child must not read zeros."""
    file = either_host.file("file")
    done = subprocess.run(
        [map_from, "clone", file],
        env=either_host.environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    told = "" if either_host.children else f"child of clone(): ended by signal {signal.SIGSEGV:d}\n"
    assert (done.returncode, done.stderr) == (bool(told), told)


FORK = """
fd = os.open(sys.argv[1], os.O_RDWR)
at = map(fd)
before = len(descriptors())
pid = os.fork()
if not pid:
    print([byte(at + i * PAGE) for i in range(4)], len(descriptors()) <= before)
    store(at + 1, 42)
    print(byte(map(fd) + 1), flush=True)
    os._exit(0)
os.waitpid(pid, 0)
print(byte(at + 1), byte(map(fd, PAGE, offset=PAGE)))
"""


def test_forked_child_sees_what_its_parent_has_mapped(either_host: ProgramHost) -> None:
    lines = printed(either_host, FORK, either_host.file("file"))
    assert lines == ["[1, 2, 3, 4] True", "42", "42 2"]
    assert len(either_host.saying("attach")) == 2


def test_forked_child_of_a_host_that_is_not_told_presents_itself_first(tmp_path: Path) -> None:
    with ProgramHost(tmp_path, children=False) as host:
        printed(host, FORK, host.file("file"))
        child = [said for said in host.said if said.connection == 1]
    assert [said.what for said in child][:3] == ["attach", "serve", "mapped"]
    assert child[2].values == {"start": 0, "len": 1 << 47}
    assert child[0].pid == child[0].values["pid"] != host.said[0].pid


def test_forked_child_that_maps_nothing_new_says_nothing(program_host: ProgramHost) -> None:
    script = """
at = map(os.open(sys.argv[1], os.O_RDWR))
pid = os.fork()
if not pid:
    os._exit(byte(at + PAGE))
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    assert printed(program_host, script, program_host.file("file")) == ["2"]
    assert len(program_host.saying("attach")) == 1


def test_parents_connection_ends_with_it_though_a_child_lives_on(program_host: ProgramHost) -> None:
    script = """
at = map(os.open(sys.argv[1], os.O_RDWR))
if not os.fork():
    sys.stdin.read()
    print(byte(at))
"""
    with subprocess.Popen(
        program(script, program_host.file("file")),
        env=program_host.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.wait(PATIENCE) == 0
        program_host.wait(lambda: 0 in program_host.ended)
        out, _ = process.communicate(timeout=PATIENCE)
    assert out == "1\n"


CHILDREN = """
import resource
fd = os.open(sys.argv[1], os.O_RDWR)
at, own = map(fd), map(fd, flags=PRIVATE)
sys.stdout.flush()
null, pipe = os.open("/dev/null", os.O_WRONLY), os.pipe()[1]
if len(sys.argv) > 2:
    for rest in range(len(descriptors()), 16):
        os.dup(null)
    resource.setrlimit(resource.RLIMIT_NOFILE, (16, int(sys.argv[2])))
def child(task):
    pid = os.fork()
    if not pid:
        os._exit(task())
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
print([child(task) for task in (
    lambda: byte(at), lambda: byte(own + PAGE), lambda: byte(at + 2 * PAGE),
    lambda: failing(os.write, pipe, (ctypes.c_char * 10).from_address(at + 3 * PAGE)) == "EFAULT",
    lambda: os.execv("/bin/true", ["true"]))])
print(byte(at))
"""
SIGBUS = -signal.SIGBUS
SIGKILL = -signal.SIGKILL


@pytest.mark.parametrize("limits", [[], [4096]], ids=["", "at the limit of descriptors"])
def test_forked_child_that_cannot_be_served_gets_no_zeros(tmp_path: Path, limits: list[int]) -> None:
    """It may still do what most children do, exec; and it cannot read what nobody will fill."""
    with ProgramHost(tmp_path, children=False) as host:
        host.next("serve", lambda reply, fds: (reply, fds))  # the parent's
        for _ in range(5):
            host.next("serve", refuse(1))
        lines = printed(host, CHILDREN, host.file("file"), *limits)
    assert lines == [f"[{SIGBUS}, {SIGBUS}, {SIGBUS}, 1, 0]", "1"]


def test_forked_child_at_the_limit_of_descriptors_is_served(tmp_path: Path) -> None:
    with ProgramHost(tmp_path, children=False) as host:
        lines = printed(host, CHILDREN, host.file("file"), 4096)
    assert lines == ["[1, 2, 3, 0, 0]", "1"]


def test_forked_child_that_can_neither_be_served_nor_warned_is_killed(tmp_path: Path) -> None:
    with ProgramHost(tmp_path, children=False) as host:
        done = run(host, CHILDREN, host.file("file"), 16)
    assert done.stdout == f"[{SIGKILL}, {SIGKILL}, {SIGKILL}, {SIGKILL}, {SIGKILL}]\n1\n"
    assert (
        done.stderr.splitlines()
        == ["daxfault: a forked child's mappings can neither be served nor removed"] * 5
    )


# ---- descriptors


def test_program_that_closes_all_descriptors_goes_on(program_host: ProgramHost) -> None:
    closers = """
import resource
def close_one_by_one():
    for fd in range(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0]):
        failing(os.close, fd)
def close_range():
    assert not libc.syscall(436, 3, 0xffffffff, 0)
def closefrom():
    libc.closefrom(3)
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
old = []
for close in (close_one_by_one, close_range, closefrom):
    old.append(map(os.open(sys.argv[1], os.O_RDWR)))
    close()
    fd = os.open(sys.argv[1], os.O_RDWR)
    print(fd, [byte(a + PAGE) for a in (*old, map(fd, flags=PRIVATE))], failing(libc.msync, old[0], PAGE, 4))
"""
    lines = printed(program_host, closers, program_host.file("file"))
    assert lines == [f"3 [{', '.join(['2'] * n)}] None" for n in (2, 3, 4)]


def test_descriptors_0_to_2_closed_and_opened_again_are_the_programs(program_host: ProgramHost) -> None:
    script = """
out = os.dup(1)
for fd in (0, 1, 2):
    os.close(fd)
fd = os.open(sys.argv[1], os.O_RDWR)
at = map(fd)
opened = [fd, os.open("/dev/null", os.O_RDWR), os.open("/dev/null", os.O_RDWR)]
os.dup2(out, 1)
print(opened, byte(at))
"""
    assert printed(program_host, script, program_host.file("file")) == ["[0, 1, 2] 1"]


@pytest.mark.parametrize(
    "make",
    ["os.open('/dev/null', os.O_RDWR)", "socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).detach()"],
)
@pytest.mark.parametrize("close", [True, False], ids=["closed", "replaced"])
def test_descriptor_whose_number_is_another_files_now_is_not_touched(
    program_host: ProgramHost, make: str, close: bool
) -> None:
    script = """
import socket
fd = os.open(sys.argv[1], os.O_RDWR)
at = map(fd)
(ours,) = (int(n) for n, link in descriptors().items() if link.startswith("socket:"))
if sys.argv[3] == "True":
    os.close(ours)
theirs = eval(sys.argv[2])
os.dup2(theirs, ours)
link = os.readlink(f"/proc/self/fd/{ours}")
synced = failing(libc.msync, at, PAGE, 4)
print(byte(map(fd)), synced, os.readlink(f"/proc/self/fd/{ours}") == link, flush=True)
pid = os.fork()
if not pid:
    print(byte(map(fd)), os.readlink(f"/proc/self/fd/{ours}") == link, flush=True)
    os._exit(0)
os.waitpid(pid, 0)
"""
    lines = printed(program_host, script, program_host.file("file"), make, close)
    assert lines == ["1 None True", "1 True"]


def test_only_the_connection_is_kept_and_not_across_exec(program_host: ProgramHost) -> None:
    script = """
before = descriptors()
fd = os.open(sys.argv[1], os.O_RDWR)
at = [map(fd), map(fd, flags=PRIVATE), map(fd, flags=SHARED | FIXED, addr=map(-1, flags=PRIVATE | ANONYMOUS))]
new = {n: link for n, link in descriptors().items() if n not in before and int(n) != fd}
(number, link), = new.items()
print(int(number) >= 1000, link.startswith("socket:"), os.get_inheritable(int(number)))
"""
    assert printed(program_host, script, program_host.file("file")) == ["True True False"]
