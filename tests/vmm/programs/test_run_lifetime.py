# SPDX-License-Identifier: Apache-2.0
"""A service lasts as long as the address space, whatever process or connection ended."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import messages
import pytest
from mapscript import Mapper, compiled
from needs import require
from patience import PATIENCE, looks, within
from raw_program import RawProgram
from run_host import RunningHost

from daxfault.vmm.programs.address_space import areas

PROGRAMS = Path(__file__).resolve().parents[2] / "programs"
PAGE = 4096


def built(name: str, directory: Path) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    require(compiler, "a C compiler")
    flags = ["-D_GNU_SOURCE", "-O1", "-Wall", "-Wextra", "-pthread"]
    program = directory / name
    subprocess.run([compiler or "cc", *flags, "-o", program, PROGRAMS / f"{name}.c"], check=True)
    return program


@pytest.fixture(scope="module")
def shared_space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built("shared_space", tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="module")
def mapper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("mapper"))


@pytest.fixture
def backing(run_host: RunningHost) -> Path:
    path = run_host.source / "f"
    path.write_bytes(b"A" * 256 * PAGE)
    return path


def links(host: RunningHost) -> list[str]:
    fds = f"/proc/{host.process.pid}/fd"
    found = []
    for name in os.listdir(fds):
        try:
            found.append(os.readlink(f"{fds}/{name}"))
        except FileNotFoundError:
            continue
    return found


def sockets(host: RunningHost) -> int:
    return sum(link.startswith("socket:") for link in links(host))


def services(host: RunningHost) -> int:
    return links(host).count("anon_inode:[userfaultfd]")


@pytest.fixture
def begun(run_host: RunningHost, backing: Path) -> Iterator[int]:
    """Sockets that the host has without programs; it has as many afterwards, and no service."""
    for _ in looks():
        if services(run_host) == 0:
            break
    yield sockets(run_host)
    for _ in looks():
        if services(run_host) == 0:
            break


@pytest.mark.parametrize("mode", ["exits", "killed", "files", "moved"])
def test_mapping_of_a_helper_in_the_same_memory_outlives_it(
    run_host: RunningHost, backing: Path, shared_space: Path, begun: int, mode: str
) -> None:
    with run_host.start(shared_space, mode, "f") as program:
        assert program.stdout is not None
        with within(what="the helper"):
            ready = program.stdout.readline()
        assert ready == "ready\n"
        for _ in looks():  # the helper's connection has ended, and the host knows
            if sockets(run_host) <= begun:
                break
        out, err = program.communicate("\n", timeout=PATIENCE)
    assert (program.returncode, out, err) == (0, "loaded A\n", "")
    data = run_host.settled().joinpath("f").read_bytes()
    assert (data[PAGE : PAGE + 1], data[3 * PAGE : 3 * PAGE + 1]) == (b"Z", b"Y")
    assert data.count(b"A") == 256 * PAGE - 2


def test_program_that_breaks_the_protocol_keeps_its_mappings(
    run_host: RunningHost, backing: Path, begun: int
) -> None:
    """Its connection is a descriptor among its others, which it may write to by mistake."""
    script = f"""if True:
        import mmap, os, socket, sys
        fd = os.open("f", os.O_RDWR)
        m = mmap.mmap(fd, {256 * PAGE})
        assert m[0] == 65
        for name in os.listdir("/proc/self/fd"):
            path = f"/proc/self/fd/{{name}}"
            if os.path.exists(path) and os.readlink(path).startswith("socket:"):
                s = socket.socket(fileno=os.dup(int(name)))
                s.send(b"x")
                assert s.recv(1) == b""  # the host has closed it
        assert m[200 * 4096] == 65
        m[4096] = 90
        m.flush()
        print(os.pread(fd, 1, 4096))
        """
    assert run_host.python(script) == "b'Z'\n"
    assert run_host.settled().joinpath("f").read_bytes()[PAGE : PAGE + 1] == b"Z"


def test_connections_that_are_closed_and_made_again_leave_nothing_behind(
    run_host: RunningHost, backing: Path, begun: int
) -> None:
    script = """if True:
        import mmap, os, sys
        for i in range(30):
            fd = os.open("f", os.O_RDWR)
            m = mmap.mmap(fd, 65536)
            assert m[i * 4096 % 65536] == 65
            m.close()
            os.closerange(3, 4096)
        print("done", flush=True)
        sys.stdin.read()
        """
    with run_host.start(sys.executable, "-c", script) as program:
        assert program.stdout is not None
        with within(what="thirty mappings"):
            done = program.stdout.readline()
        assert done == "done\n"
        for _ in looks():
            if services(run_host) <= 1 and sockets(run_host) <= begun + 1:
                break
        out, err = program.communicate(timeout=PATIENCE)
    assert (program.returncode, out, err) == (0, "", "")


def test_program_gone_without_a_word_is_written_back(
    run_host: RunningHost, backing: Path, mapper: Path, begun: int
) -> None:
    program = Mapper(run_host, mapper)
    try:
        assert program("open f f rw") == "0"
        assert program("map m f 0 8p rw s") == "mapped"
        assert program("store m 5p kept") == "4"
        os.kill(program.pid, signal.SIGKILL)
    finally:
        program.close()
    assert run_host.settled().joinpath("f").read_bytes()[5 * PAGE :][:4] == b"kept"


def test_mapping_grown_in_place_in_an_inner_pid_namespace_is_served(
    run_host: RunningHost, backing: Path, tmp_path: Path, begun: int
) -> None:
    """The number of the thread that faults is another process's outside."""
    require(os.geteuid() == 0, "root, to make a pid namespace")
    out = run_host.does(built("inner_pid", tmp_path), "f")
    assert out == "page 200: A\npage 201: A\n"


def test_death_in_a_thread_of_another_process_shows_nothing_of_it(tmp_path: Path) -> None:
    written = tmp_path / "report.json"
    with RunningHost(tmp_path, "--quiet", "--json", os.fspath(written)) as host:
        stranger = host.process.pid
        address = areas(stranger)[0].start
        with RawProgram(host.programs_environment["DAXFAULT_SOCKET"]) as program:
            program.serve()
            assert program.ask(messages.sigbus(address, tid=stranger, frames=[address])) == 0
        host.end()
    (death,) = json.loads(written.read_text())["deaths"]
    assert death["stack"] == [hex(address)]  # not the module of that process


def test_user_whom_the_host_of_a_mount_does_not_serve_is_refused_by_name(run_host: RunningHost) -> None:
    require(os.geteuid() == 0, "root, to be somebody else")
    run = [sys.executable, "-m", "daxfault", "run", "--mount", os.fspath(run_host.mount)]
    command = [*run, "--user", "nobody", "--", "true"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE, cwd="/")
    assert done.returncode != 0
    assert "--user nobody: the host of" in done.stderr
