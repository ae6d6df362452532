# SPDX-License-Identifier: Apache-2.0
"""The guest stand-in before and without a working host.

Covers arguments, exit codes, hosts that refuse or break the protocol, script
errors, and accesses to the bare window, which no host has to answer. Nothing
here resolves a fault.
"""

import errno
import fcntl
import importlib.resources
import json
import os
import random
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from messages import HEADER, HELLO, RANGE
from needs import require
from patience import PATIENCE
from raw_host import Peer, welcome

from daxfault.native import Abi, lib

CPUID = 0x44010  # ASYNC_PF, ASYNC_PF_INT, ERROR


@pytest.fixture(scope="module")
def standin() -> Path:
    """The built executable: DAXFAULT_STANDIN, or the installed one."""
    named = os.environ.get("DAXFAULT_STANDIN")
    if named:
        return Path(named)
    try:
        found = Path(str(importlib.resources.files("daxfault.native") / "bin" / "daxfault-standin"))
    except ModuleNotFoundError:
        found = None
    if found is None or not found.exists():
        require(False, "daxfault-standin, built")
    return found


@pytest.fixture
def peer(standin: Path) -> Iterator[Peer]:
    p = Peer(standin)
    yield p
    p.close()


def run(standin: Path, *arguments: str, pass_fds: tuple[int, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [standin, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        pass_fds=pass_fds, timeout=PATIENCE, check=False,
    )  # fmt: skip


# ---------------------------------------------------------------- arguments


def test_help_names_every_option_and_command(standin: Path) -> None:
    done = run(standin, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    options = ("--fd", "--socket", "--window", "--abi", "--no-errors", "--no-async", "--as-posted")
    commands = ("kcopy_bare", "sys_read", "irqoff", "work", "unmap", "kill", "async", "trace", "quit")
    for word in options + commands:
        assert word in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--fd", "0", "--socket", "x"],
        ["--fd", "x"],
        ["--fd", "-1"],
        ["--fd", ""],
        ["--fd", "99999999999"],
        ["--fd", "999"],
        ["--fd", "0"],
        ["--fd"],
        ["--socket", "x", "--window", "0"],
        ["--socket", "x", "--window", "1M"],
        ["--socket", "x", "--window", "3M"],
        ["--socket", "x", "--window", "2MB"],
        ["--socket", "x", "--window", "-2M"],
        ["--socket", "x", "--window", "0x"],
        ["--socket", "x", "--window", "99999999999G"],
        ["--bogus"],
        ["--socket", "x", "more"],
    ],
    ids=" ".join,
)
def test_usage_errors_exit_2(standin: Path, arguments: list[str]) -> None:
    done = run(standin, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "daxfault-standin: " in done.stderr


def test_a_stream_socket_is_refused(standin: Path) -> None:
    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with a, b:
        done = run(standin, "--fd", str(a.fileno()), pass_fds=(a.fileno(),))
    assert done.returncode == 2
    assert "SOCK_SEQPACKET" in done.stderr


@pytest.mark.parametrize("name", ["absent", "n" * 200])
def test_a_socket_nobody_listens_on_exits_3(standin: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    done = run(standin, "--socket", str(path))
    assert done.returncode == 3
    assert str(path) in done.stderr


def test_it_connects_to_a_path(standin: Path, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen()
        listener.settimeout(PATIENCE)
        process = subprocess.Popen([standin, "--socket", path], stdin=subprocess.DEVNULL)
        listener.accept()[0].close()
        assert process.wait(PATIENCE) in (2, 3)  # 2: no userfaultfd here


# ---------------------------------------------------------------- the hello


def test_hello_hands_over_window_userfaultfd_and_event_area(peer: Peer) -> None:
    kind, length, seq, error, _, version, pid, window, window_len, abi, cpuid = peer.welcome()
    assert (kind, length, error, version) == (lib.DF_HELLO, HELLO.size, 0, 3)
    assert seq > 0
    assert pid == peer.process.pid
    assert window % RANGE == 0
    assert window_len == 1 << 30
    assert (abi, cpuid) == (Abi.REPORT, CPUID)

    userfaultfd, area = peer.fds
    assert os.readlink(f"/proc/self/fd/{userfaultfd}") == "anon_inode:[userfaultfd]"
    assert fcntl.fcntl(userfaultfd, fcntl.F_GETFL) & os.O_NONBLOCK
    assert os.fstat(area).st_size == 8192
    with pytest.raises(PermissionError):
        os.ftruncate(area, 0)

    code, events, _ = peer.run(b"")
    assert code == 0
    assert [e["event"] for e in events] == ["ready"]
    assert (events[0]["window"], events[0]["cpuid"]) == (hex(window), CPUID)


def test_options_reach_the_hello(standin: Path) -> None:
    peer = Peer(standin, "--no-errors", "--window", "0x4M")
    try:
        *_, window_len, _, cpuid = peer.welcome()
        assert (window_len, cpuid) == (4 << 20, CPUID & ~0x40000)
        assert peer.run(b"")[0] == 0
    finally:
        peer.close()


def test_a_host_may_grant_less(peer: Peer) -> None:
    peer.say(welcome(peer.hello(), cpuid=0))
    code, events, _ = peer.run(b"")
    assert (code, events[0]["cpuid"]) == (0, 0)


def test_a_host_that_hangs_up_before_the_hello(standin: Path) -> None:
    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    a.close()
    with b:
        done = run(standin, "--fd", str(b.fileno()), pass_fds=(b.fileno(),))
    assert done.returncode in (2, 3)  # 2: no userfaultfd here


def test_a_host_that_hangs_up_on_the_hello(peer: Peer) -> None:
    peer.hello()
    peer.socket.close()
    code, _, stderr = peer.run(b"")
    assert code == 3
    assert "the host closed the connection" in stderr


def test_a_host_that_refuses(peer: Peer) -> None:
    peer.socket.send(welcome(peer.hello(), error=errno.EACCES))
    code, _, stderr = peer.run(b"")
    assert code == 3
    assert os.strerror(errno.EACCES) in stderr


def test_a_refusal_may_be_a_bare_header(peer: Peer) -> None:
    _, _, seq, *_ = peer.hello()
    peer.socket.send(HEADER.pack(lib.DF_HELLO + lib.DF_REPLY, HEADER.size, seq, errno.EACCES, 0))
    code, _, stderr = peer.run(b"")
    assert code == 3
    assert os.strerror(errno.EACCES) in stderr


@pytest.mark.parametrize(
    "changed",
    [
        {"version": 4},
        {"version": 0},
        {"cpuid": 0x80000000},
        {"type": lib.DF_HELLO},
        {"type": 2 + lib.DF_REPLY},
        {"seq": 12345},
        {"error": -5},
        {"len": 0},
        {"len": HELLO.size + 1},
        {"len": 1 << 31},
    ],
    ids=str,
)
def test_a_host_that_answers_nonsense(peer: Peer, changed: dict[str, int]) -> None:
    peer.say(welcome(peer.hello(), **changed))
    code, _, stderr = peer.run(b"")
    assert code == 3
    assert stderr.startswith("daxfault-standin: the host ")


@pytest.mark.parametrize("length", [1, 23, 24, HELLO.size - 1, HELLO.size + 1, 4096], ids=str)
def test_a_host_that_answers_in_the_wrong_length(peer: Peer, length: int) -> None:
    peer.socket.send(welcome(peer.hello(), len=length).ljust(length, b"\0")[:length])
    assert peer.run(b"")[0] == 3


def test_a_host_that_sends_descriptors_nobody_asked_for(peer: Peer) -> None:
    reply = welcome(peer.hello())
    socket.send_fds(peer.socket, [reply], [0, 0])
    assert peer.run(b"")[0] == 3


# ---------------------------------------------------------------- a host that leaves


@pytest.mark.parametrize("farewell", [None, b"x", bytes(HEADER.size), bytes(4096)])
def test_a_lost_host_is_told_and_accesses_still_end(peer: Peer, farewell: bytes | None) -> None:
    peer.welcome()
    assert json.loads(peer.process.stdout.readline())["event"] == "ready"
    if farewell is None:
        peer.socket.close()
    else:
        peer.socket.send(farewell)
    assert json.loads(peer.process.stdout.readline())["event"] == "host_lost"

    code, events, _ = peer.run(b"vcpu 0 touch 0\nwait\nopen f /dev/null ro\n")
    assert code == 3
    assert [e["event"] for e in events] == ["done", "idle", "error"]
    assert events[0]["outcome"] == "sigsegv"
    assert events[2]["message"] == "the host is gone"


# ---------------------------------------------------------------- scripts


@pytest.mark.parametrize(
    "line",
    [
        b"bogus",
        b"open",
        b"open f /dev/null",
        b"open f /dev/null wo",
        b"open f /dev/null/absent ro",
        b"close f",
        b"map f 0 2M 0 r",
        b"unmap 0",
        b"unmap 0 0",
        b"unmap 1 4096",
        b"unmap 1G 4096",
        b"unmap 0 2G",
        b"unmap 0xffffffffffffffff 1",
        b"vcpu",
        b"vcpu 0",
        b"vcpu 0 jump 0",
        b"vcpu 63 touch 0",
        b"vcpu -1 touch 0",
        b"vcpu 0 touch",
        b"vcpu 0 touch 0 0",
        b"vcpu 0 touch 1G",
        b"vcpu 0 touch 0x0x1",
        b"vcpu 0 touch +1",
        b"vcpu 0 read 0 0",
        b"vcpu 0 read 0 4097",
        b"vcpu 0 read 1G 1",
        b"vcpu 0 write 0 0",
        b"vcpu 0 write 0 zz",
        b"vcpu 0 fill 0 1 256",
        b"vcpu 0 scan 0 4096 0",
        b"vcpu 0 remap 0 4096 1G",
        b"vcpu 0 sigbus maybe",
        b"vcpu 0.96 touch 0",
        b"vcpu 0. touch 0",
        b"vcpu .0 touch 0",
        b"vcpu 0.0.0 touch 0",
        b"vcpu 0 irqoff",
        b"vcpu 0 irqoff irqoff touch 0",
        b"vcpu 0 work",
        b"vcpu 0 work 600001",
        b"kill 0",
        b"kill 0 0",
        b"async maybe",
        b"trace",
        b"trace maybe",
        b"wait 63",
        b"wait 0 1",
        b"stat 1",
        b"quit now",
        b"a b c d e f g h i j k",
        b"vcpu 0 touch 0\0",
        b'"\\\x01\xff',
        b"x" * 100_000,
    ],
    ids=lambda line: line[:30].decode(errors="replace"),
)
def test_a_bad_line_is_an_error_event_and_exit_2(peer: Peer, line: bytes) -> None:
    peer.welcome()
    code, events, _ = peer.run(b"# first\n\n" + line + b"\nstat # last\n")
    assert code == 2
    assert [e["event"] for e in events] == ["ready", "error", "stat"]
    assert events[1]["line"] == 3
    assert events[1]["message"]
    assert events[2]["vcpus"] == []


def test_quit_does_not_read_on(peer: Peer) -> None:
    peer.welcome()
    code, events, _ = peer.run(b"quit\nbogus\n")
    assert (code, len(events)) == (0, 1)


WORDS = """
vcpu wait stat map unmap open close touch read sum write fill scan kcopy remap sigbus block handle
kill async trace on off dump work irqoff 0.1 1.95 2.96
f r w ro rw 0 1 2 62 63 4096 2M 1G 0x10 -1 ff 00 # /dev/null / \x7f
"""


def test_no_line_is_deadly(peer: Peer) -> None:
    seed = 20200331
    rng = random.Random(seed)
    words = WORDS.split()
    lines = [" ".join(rng.choices(words, k=rng.randrange(9))) for _ in range(2000)]
    # what would wait for an answer of the host is left out
    script = "\n".join(x for x in lines if not x.split()[:1] or x.split()[0] not in ("open", "unmap"))
    peer.welcome()
    code, events, _ = peer.run(script.encode() + b"\nwait\nstat\n")
    assert code == 2, f"seed {seed}"
    assert events[-1]["event"] == "stat"


# ---------------------------------------------------------------- the bare window


def test_the_reserved_window_faults_at_the_exact_address(peer: Peer) -> None:
    *_, window, _, _, _ = peer.welcome()
    code, events, _ = peer.run(
        b"vcpu 0 touch 12345\n"
        b"vcpu 0 read 4090 10\n"
        b"vcpu 0 scan_all 0 8K 4K\n"
        b"vcpu 0 kcopy 777 10\n"
        b"vcpu 0 kstore 778 10\n"
        b"vcpu 0 sys_write 0 10\n"
        b"vcpu 0 sys_read 0 10\n"
        b"vcpu 0 fork 99\n"
        b"vcpu 0 remap 1 4096 8192\n"
    )
    assert code == 0
    done = [e for e in events if e["event"] == "done"]
    assert [e["seq"] for e in done] == list(range(1, 10))
    assert [e["outcome"] for e in done] == (
        ["sigsegv"] * 3 + ["efault"] * 4 + ["sigsegv" if events[0]["fork"] else "error", "error"]
    )
    assert done[0]["address"] == hex(window + 12345)
    assert done[1]["address"] == hex(window + 4090)
    assert (done[2]["faults"], done[2]["steps"], done[2]["done"]) == (2, 0, 8192)
    assert done[3]["address"] == hex(window + 777)
    assert done[4]["address"] == hex(window + 778)
    assert [e["error"] for e in done[5:7]] == [errno.EFAULT] * 2
    assert done[8]["error"] == errno.EINVAL
    assert all(e["events"] == 0 for e in done)


def test_a_panic_ends_one_vcpu_and_is_the_exit_code(peer: Peer) -> None:
    *_, window, _, _, _ = peer.welcome()
    code, events, _ = peer.run(
        b"vcpu 0 kcopy_bare 33 10\nwait 0\nvcpu 0 touch 0\nvcpu 1 touch 0\nwait\nstat\n"
    )
    assert code == 1
    done = [e for e in events if e["event"] == "done"]
    assert [(e["vcpu"], e["outcome"]) for e in done] == [(0, "panic"), (0, "error"), (1, "sigsegv")]
    assert done[0]["address"] == hex(window + 33)
    assert int(done[0]["instruction"], 16) > 0
    assert done[1]["error"] == errno.ESRCH
    assert [v["state"] for v in events[-1]["vcpus"]] == ["dead", "idle"]


def test_every_vcpu_at_once(peer: Peer) -> None:
    peer.welcome()
    vcpus, rounds = 63, 100
    script = "".join(f"vcpu {v} touch {v}\n" for _ in range(rounds) for v in range(vcpus))
    code, events, _ = peer.run(script.encode() + b"wait\nstat\n")
    assert code == 0
    assert [v["sigsegv"] for v in events[-1]["vcpus"]] == [rounds] * vcpus
    done = [(e["vcpu"], e["seq"]) for e in events if e["event"] == "done"]
    assert sorted(done) == [(v, s) for v in range(vcpus) for s in range(1, rounds + 1)]
