# SPDX-License-Identifier: Apache-2.0
"""The keeper: stopped, killed, replaced; and what it leaves of a host that was killed."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import messages
import pytest
from needs import require_root
from patience import PATIENCE, looks, until, within
from raw_program import RawProgram
from run_host import RunningHost, require_programs

FILES = 400  # more than a socket holds messages
MAP_ALL = """
import mmap, os, sys
maps = []
for name in sorted(os.listdir()):
    with open(name, "r+b") as f:
        maps.append(mmap.mmap(f.fileno(), 0))
print(len(maps), flush=True)
input()
print(maps[int(input())][1 << 20])
"""
PROMPT = 5.0  # seconds, for what takes 0.1 on a machine that is not busy


@pytest.fixture
def host(tmp_path: Path) -> Iterator[RunningHost]:
    """One that may be killed."""
    require_root()  # to unmount what it leaves, if it does
    require_programs()
    host = RunningHost(tmp_path)
    try:
        yield host
    finally:
        host.kill()
        subprocess.run(["umount", "-f", "-l", host.mount], check=False, stderr=subprocess.DEVNULL)


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    found: list[int] = []
    for task in tasks:
        with contextlib.suppress(OSError):
            found += map(int, task.read_text().split())
    return found


def keepers(host: RunningHost) -> list[int]:
    """The two processes of the host's keeper, the one that holds descriptors last."""

    def look() -> list[int]:
        outer = [pid for pid in children(host.process.pid) if _is_keeper(pid)]
        return outer + [pid for one in outer for pid in children(one)]

    return until(lambda: len(found := look()) == 2 and found, "a keeper of two processes")


def _is_keeper(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text() == "daxfault-keeper\n"
    return False


def new_keeper(host: RunningHost, old: list[int]) -> list[int]:
    for _ in looks():
        if not set(now := keepers(host)) & set(old):
            return now
    raise AssertionError


def holds(keeper: list[int], descriptors: int) -> None:
    """Wait until a keeper has so many page caches."""
    for _ in looks():
        links = []
        for fd in Path(f"/proc/{keeper[1]}/fd").iterdir():
            with contextlib.suppress(OSError):
                links.append(os.readlink(fd))
        if sum(link.startswith("/memfd:daxfault:") for link in links) == descriptors:
            return


def files(host: RunningHost, many: int) -> None:
    """Larger than what is read ahead."""
    for number in range(many):
        with open(host.source / f"{number:04}", "wb") as file:
            file.write(b"a")
            file.truncate(2 << 20)


@contextlib.contextmanager
def mapping(host: RunningHost) -> Iterator[subprocess.Popen[str]]:
    process = host.start(sys.executable, "-c", MAP_ALL)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    with within(what="a program's answer"):
        return process.stdout.readline().strip()


@pytest.mark.parametrize("which", [0, 1], ids=["outer", "inner"])
@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL], ids=["stopped", "killed"])
def test_host_killed_after_its_keeper_was_gives_sigbus(
    host: RunningHost, how: signal.Signals, which: int
) -> None:
    files(host, 3)
    with mapping(host) as process:
        assert said(process) == "3"
        old = keepers(host)
        holds(old, 3)
        os.kill(old[which], how)
        now = old if (how, which) == (signal.SIGSTOP, 0) else new_keeper(host, old)
        holds(now, 3)
        host.process.kill()
        process.communicate("\n1\n", timeout=PATIENCE)
        assert process.returncode == -signal.SIGBUS
        if now is old:
            os.kill(old[0], signal.SIGCONT)


def test_stopped_keeper_holds_up_nobody_and_is_replaced(host: RunningHost) -> None:
    files(host, FILES)
    old = keepers(host)
    os.kill(old[1], signal.SIGSTOP)
    with mapping(host) as process:
        assert said(process) == str(FILES)
        holds(new_keeper(host, old), FILES)
        out, err = process.communicate("\n7\n", timeout=PATIENCE)
        assert (out, process.returncode) == ("0\n", 0), err
    host.end()
    assert host.process.returncode == 0


def test_keepers_that_die_one_after_the_other_cost_nothing(host: RunningHost) -> None:
    files(host, 3)
    with mapping(host) as process:
        assert said(process) == "3"
        keeper = keepers(host)
        for _ in range(3):
            os.kill(keeper[1], signal.SIGKILL)
            keeper = new_keeper(host, keeper)
            holds(keeper, 3)
        out, err = process.communicate("\n1\n", timeout=PATIENCE)
        assert (out, process.returncode) == ("0\n", 0), err
    host.end()
    assert host.process.returncode == 0


# ---- what a killed host leaves


def test_host_killed_leaves_no_mount_and_no_socket(host: RunningHost) -> None:
    sockets = Path(host.programs_environment["DAXFAULT_SOCKET"])
    names = {sockets, sockets.with_suffix("")}
    assert all(path.is_socket() for path in names)
    host.kill()
    with within(PROMPT, "cleaning up"):
        until(lambda: not host.is_mounted() and not any(path.exists() for path in names), "cleaned up")


def test_host_killed_while_a_thread_of_it_cannot_die_leaves_errors(host: RunningHost, tmp_path: Path) -> None:
    """It closes a descriptor of another file server, which does not answer."""
    files(host, 1)
    source, mount = tmp_path / "other source", tmp_path / "other"
    for directory in (source, mount):
        directory.mkdir()
    (source / "h").write_bytes(b"h")
    server = subprocess.Popen(
        [sys.executable, "-m", "daxfault", "mount", source, mount], stdout=subprocess.PIPE, text=True, cwd="/"
    )
    with contextlib.ExitStack() as stack:
        stack.callback(server.communicate, timeout=PATIENCE)
        stack.callback(server.terminate)
        stack.callback(server.send_signal, signal.SIGCONT)
        assert server.stdout is not None
        assert server.stdout.readline()
        process = stack.enter_context(mapping(host))
        assert said(process) == "1"
        program = stack.enter_context(RawProgram(host.programs_environment["DAXFAULT_SOCKET"]))
        fd = os.open(mount / "h", os.O_RDWR)
        server.send_signal(signal.SIGSTOP)
        program.attach()
        program.ask(messages.serve(), fd)
        host.process.kill()
        with within(PROMPT, "errors after the host's death"):
            process.communicate("\n0\n")
            assert process.returncode == -signal.SIGBUS
            until(lambda: not host.is_mounted(), "no mount")
        assert host.process.poll() is None  # one of its threads waits, and cannot be killed
        server.send_signal(signal.SIGCONT)
        host.process.wait(PATIENCE)
        os.close(fd)


def test_plain_mount_killed_is_gone(tmp_path: Path) -> None:
    require_root()
    source, mount = tmp_path / "source", tmp_path / "mount"
    for directory in (source, mount):
        directory.mkdir()
    server = subprocess.Popen(
        [sys.executable, "-m", "daxfault", "mount", source, mount], stdout=subprocess.PIPE, text=True, cwd="/"
    )
    assert server.stdout is not None
    with within(what="a mount"):
        assert server.stdout.readline()
    assert mount.is_mount()
    server.kill()
    server.communicate()
    with within(PROMPT, "cleaning up"):
        until(lambda: f" {mount} " not in Path("/proc/self/mountinfo").read_text(), "no mount")


# ---- what programs stored


STORE = """
import mmap, os, sys
size = 3 << 20
with open("f", "r+b") as f:
    m = mmap.mmap(f.fileno(), 0)
for page in (0, 1, 300, 511, 512, len(m) // 4096):
    m[page * 4096:page * 4096 + 6] = b"stored"
print("ready", flush=True)
sys.stdin.read()
"""


def test_host_killed_loses_no_store_and_keeps_others_bytes(host: RunningHost) -> None:
    size = (3 << 20) + 100
    (host.source / "f").write_bytes(b"-" * size)
    process = host.start(sys.executable, "-c", STORE)
    try:
        assert said(process) == "ready"
        # pages beside those that were stored to are exposed, too: this one is somebody else's
        with open(host.source / "f", "r+b") as file:
            file.seek(2 * 4096)
            file.write(b"theirs")
        host.kill()
        assert host.process.stderr is not None

        def written() -> bool:
            data = (host.source / "f").read_bytes()
            return all(data[p * 4096 :].startswith(b"stored") for p in (0, 1, 300, 511, 512, size // 4096))

        until(written, "stores in the backing file")
    finally:
        process.kill()
        process.communicate()
    expected = bytearray(b"-" * size)
    expected[2 * 4096 : 2 * 4096 + 6] = b"theirs"
    for page in (0, 1, 300, 511, 512, size // 4096):
        expected[page * 4096 : page * 4096 + 6] = b"stored"
    assert (host.source / "f").read_bytes() == expected


def test_process_that_holds_descriptors_can_do_little_else(host: RunningHost) -> None:
    fields = {}
    for line in Path(f"/proc/{keepers(host)[1]}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        fields[name] = value.strip()
    assert fields["NoNewPrivs"] == "1"
    assert fields["Seccomp"] == "2"
    for kind in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(fields[kind], 16) == 0


# ---- a host and its keeper that are killed at once


def test_next_host_removes_what_a_host_and_its_keeper_left(host: RunningHost, tmp_path: Path) -> None:
    sockets = Path(host.programs_environment["DAXFAULT_SOCKET"])
    (record,) = sockets.parent.glob(f"{host.process.pid}-*.host")
    for pid in keepers(host):
        os.kill(pid, signal.SIGSTOP)
    both = [host.process.pid, *keepers(host)]
    for pid in both:
        os.kill(pid, signal.SIGKILL)
    host.process.communicate()
    assert host.is_mounted()
    assert sockets.exists()
    assert record.exists()
    (tmp_path / "next").mkdir()
    with RunningHost(tmp_path / "next") as other:
        assert not host.is_mounted()
        assert other.is_mounted()
        assert not record.exists()
        # another mount may have the same number, and so its sockets the same names
        assert not sockets.exists() or str(sockets) == other.programs_environment["DAXFAULT_SOCKET"]


def test_next_host_leaves_living_hosts_alone(host: RunningHost, tmp_path: Path) -> None:
    (tmp_path / "next").mkdir()
    with RunningHost(tmp_path / "next"):
        pass
    files(host, 1)
    with mapping(host) as process:
        out, err = process.communicate("\n0\n", timeout=PATIENCE)
        assert (out, process.returncode) == ("1\n0\n", 0), err
    host.end()
    assert host.process.returncode == 0
