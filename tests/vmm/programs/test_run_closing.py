# SPDX-License-Identifier: Apache-2.0
"""Descriptors of file servers that are dead, stopped, or the host itself: the host neither waits for
them nor dies of them.
"""

import contextlib
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import messages
import pytest
from messages import GONE
from needs import require_root
from patience import PATIENCE, looks, within
from raw_program import RawProgram
from run_host import RunningHost, require_programs

from daxfault.vmm.programs import environment

PEERS = 45  # more than trio has threads
MAP_LATER = "import mmap\ninput()\nwith open('f', 'r+b') as f: print(mmap.mmap(f.fileno(), 0)[0])"
MAP_FOR_EVER = "import mmap\nf = open('f', 'r+b')\nwhile True: mmap.mmap(f.fileno(), 0)[0]"
# Stores to the first page, and touches the last one when told to.
SIT = """
import mmap
f = open("f", "r+b")
m = mmap.mmap(f.fileno(), 0)
m[0] = ord("s")
print("stored", flush=True)
input()
m[-1]
"""


@pytest.fixture
def host(tmp_path: Path) -> Iterator[RunningHost]:
    """One that may be killed."""
    require_root()  # to unmount what it leaves
    require_programs()
    (tmp_path / "host").mkdir()
    host = RunningHost(tmp_path / "host")
    try:
        yield host
    finally:
        host.kill()
        subprocess.run(["umount", "-f", "-l", host.mount], check=False, stderr=subprocess.DEVNULL)
        assert not host.is_mounted()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A file server of somebody else's, and a file on it."""
    source, mount = tmp_path / "other source", tmp_path / "other"
    for directory in (source, mount):
        directory.mkdir()
    (source / "h").write_bytes(b"h" * 4096)
    require_root()  # to unmount what it leaves
    server = subprocess.Popen(
        [sys.executable, "-m", "daxfault", "mount", os.fspath(source), os.fspath(mount)],
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
    )
    try:
        assert server.stdout is not None
        with within(what="the other file server"):
            assert server.stdout.readline()
        yield server, mount / "h"
    finally:
        server.send_signal(signal.SIGCONT)
        server.terminate()
        server.communicate(timeout=PATIENCE)
        subprocess.run(["umount", "-l", mount], check=False, stderr=subprocess.DEVNULL)


def connected(host: RunningHost) -> RawProgram:
    return RawProgram(host.programs_environment["DAXFAULT_SOCKET"])


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGSTOP], ids=["dead", "stopped"])
def test_descriptors_of_a_server_that_does_not_answer_cost_their_own_connections(
    host: RunningHost, other: tuple[subprocess.Popen[str], Path], ending: signal.Signals
) -> None:
    server, path = other
    (host.source / "f").write_bytes(b"f" * 4096)
    with contextlib.ExitStack() as stack:
        # begun before: a process that is forked later closes these descriptors, too, and waits
        late = stack.enter_context(host.start(sys.executable, "-c", MAP_LATER))
        fds = [os.open(path, os.O_RDWR) for _ in range(PEERS)]
        server.send_signal(ending)
        for number, fd in enumerate(fds):
            program = stack.enter_context(connected(host))
            if number % 3 == 0:
                program.serve()
                assert program.ask(messages.mmapping(fd=fd)) == errno.EXDEV
            elif number % 3 == 1:
                program.attach()
                assert program.ask(messages.serve(), fd) == GONE
            else:
                assert program.ask(messages.attach(), fd) == GONE
        out, err = late.communicate("\n", timeout=PATIENCE / 4)
        assert (out, late.returncode) == ("102\n", 0), err
        if ending == signal.SIGSTOP:
            server.send_signal(signal.SIGCONT)
        for fd in fds:
            with contextlib.suppress(OSError):
                os.close(fd)
    host.end()
    assert host.process.returncode == 0


def test_host_holds_no_descriptor_of_its_own_mount_that_needs_a_flush(host: RunningHost) -> None:
    """close(2) of one would wait for the host itself, which when it is killed does not answer."""
    (host.source / "f").write_bytes(b"f" * 4096)
    with open(host.mount / "f", "r+b") as file, connected(host) as program:
        program.serve()
        os.close(program.cache(file.fileno()))
        for fd in os.listdir(f"/proc/{host.process.pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                name = os.readlink(f"/proc/{host.process.pid}/fd/{fd}")
                assert not name.startswith(f"{host.mount}/")


def test_host_killed_while_programs_map_is_gone_and_so_are_they(host: RunningHost) -> None:
    (host.source / "f").write_bytes(b"f" * 4 * 4096)
    mappers = [host.start(sys.executable, "-c", MAP_FOR_EVER) for _ in range(4)]
    sitting = host.start(sys.executable, "-c", SIT)
    try:
        assert sitting.stdout is not None
        with within(what="a program that maps"):
            assert sitting.stdout.readline() == "stored\n"
        installed = host.ask("status")["counters"]["installed"]
        for _ in looks():
            if host.ask("status")["counters"]["installed"] > installed + 100:
                break
        host.process.kill()
        host.process.wait(PATIENCE / 4)
        sitting.communicate("\n", timeout=PATIENCE / 4)
        assert sitting.returncode == -signal.SIGBUS
        for mapper in mappers:
            mapper.communicate(timeout=PATIENCE / 4)
            assert mapper.returncode != 0
    finally:
        # aborts the connection, for a host that hangs
        subprocess.run(["umount", "-f", host.mount], check=False, stderr=subprocess.DEVNULL)
        for process in (*mappers, sitting):
            process.kill()
            process.communicate()


def test_host_whose_connection_is_aborted_writes_back_and_says_so(tmp_path: Path) -> None:
    require_root()
    require_programs()
    source, mount = tmp_path / "source", tmp_path / "mount"
    for directory in (source, mount):
        directory.mkdir()
    (source / "f").write_bytes(b"f" * 2 * 4096)
    server = subprocess.Popen(
        [sys.executable, "-m", "daxfault", "mount", "--programs", os.fspath(source), os.fspath(mount)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
    )
    with contextlib.ExitStack() as stack, within(what="the host and its program"):
        stack.enter_context(server)
        stack.callback(server.kill)
        assert server.stdout is not None
        assert server.stdout.readline()
        program = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", SIT],
                cwd=mount,
                env=os.environ | environment.of_mount(mount),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        stack.callback(program.kill)
        assert program.stdout is not None
        assert program.stdout.readline() == "stored\n"
        # EBUSY, but MNT_FORCE has aborted the connection (fs/fuse/inode.c, fuse_umount_begin())
        subprocess.run(["umount", "-f", mount], check=False, stderr=subprocess.DEVNULL)
        _, said = server.communicate()
        assert server.returncode == 1
        assert "its FUSE connection was aborted" in said
        assert "Traceback" not in said
        assert (source / "f").read_bytes() == b"s" + b"f" * (2 * 4096 - 1)
        program.communicate("\n")
        assert program.returncode == -signal.SIGBUS
    assert not os.path.ismount(mount)
