# SPDX-License-Identifier: Apache-2.0
"""Programs that break the protocol, or misuse what they are given: each loses its own connection or
its own bytes, and another one on the same host goes on.
"""

import contextlib
import ctypes
import errno
import json
import mmap
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import messages
import pytest
from mapscript import Mapper, compiled
from messages import GONE, message
from patience import looks
from raw_guest import uffd
from raw_program import RawProgram
from run_host import RunningHost
from serving import serving
from trio.testing import trio_test

from daxfault.native import lib
from daxfault.native import program_wire as wire
from daxfault.native.wire import ProtocolError
from daxfault.vmm.programs.programs import DEATHS_KEPT, Programs

PAGE = 4096
PAGES = 8
Connect = Callable[[], RawProgram]


def letters(first: str) -> bytes:
    return b"".join(bytes([ord(first) + n]) * PAGE for n in range(PAGES))


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("mapper"))


def start(host: RunningHost, program: Path, name: str) -> Mapper:
    """One with the whole file mapped at m."""
    mapper = Mapper(host, program)
    assert mapper(f"open f {name} rw") == "0"
    assert mapper(f"map m f 0 {PAGES}p rw s") == "mapped"
    return mapper


@pytest.fixture(scope="module")
def witness(run_host: RunningHost, program: Path) -> Iterator[Mapper]:
    (run_host.source / "w").write_bytes(letters("a"))
    mapper = start(run_host, program, "w")
    yield mapper
    mapper.close()


@pytest.fixture(autouse=True)
def goes_on(run_host: RunningHost, program: Path, witness: Mapper) -> Iterator[None]:
    """Who would notice: one that was there before, and one that comes after."""
    yield
    assert witness(f"advise m 0 {PAGES}p dontneed") == "0"
    assert [witness(f"load m {n}p 1") for n in range(PAGES)] == [f"[{chr(97 + n)}]" for n in range(PAGES)]
    assert witness("store m 7p h") == "1"
    assert witness(f"msync m 0 {PAGES}p s") == "0"
    other = start(run_host, program, "w")
    try:
        assert other("load m 3p 2") == "[d*2 ]"
    finally:
        other.close()


@pytest.fixture
def connect(run_host: RunningHost) -> Iterator[Connect]:
    with contextlib.ExitStack() as stack:
        path = run_host.programs_environment["DAXFAULT_SOCKET"]
        yield lambda: stack.enter_context(RawProgram(path))


@pytest.fixture
def file(run_host: RunningHost) -> Iterator[int]:
    """A file `f`, open for reading and writing."""
    path = run_host.mount / "f"
    path.write_bytes(letters("A"))
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)
    path.unlink()


def held(host: RunningHost) -> bool:
    return any(name.endswith("/f") for name in host.ask("status")["files"])


def let_go(host: RunningHost) -> None:
    """Wait until the host has given `f` up."""
    for _ in looks():
        if not held(host):
            break


def descriptors(host: RunningHost) -> int:
    return len(os.listdir(f"/proc/{host.process.pid}/fd"))


@contextlib.contextmanager
def kept_by_none(host: RunningHost) -> Iterator[None]:
    """The host closes every descriptor that it is sent, or makes for who is, in the body."""
    before = descriptors(host)
    yield
    for _ in looks():  # a thread does it
        if descriptors(host) <= before:
            break


# ---- the order of messages, and who one is


@pytest.mark.parametrize(
    ("data", "fds"),
    [
        (messages.serve(), 1),
        (messages.mmapping(), 0),
        (messages.mmapping(), 1),
        (messages.mapped(0, PAGE), 0),
        (messages.msync(0, PAGE), 0),
        (messages.sigbus(0), 0),
        (messages.attach(version=lib.DF_WIRE_VERSION - 1), 0),
        (messages.attach(version=lib.DF_WIRE_VERSION + 1), 0),
        (messages.attach(pid=0), 0),
        (messages.attach(pid=-1), 0),
        (messages.attach(pid=1), 0),
        (messages.attach(pid=2**31 - 1), 0),
        (messages.attach(), 1),
        (messages.attach()[:-1], 0),
        (messages.attach() + b"x", 0),
        (message(lib.DF_ATTACH + lib.DF_REPLY), 0),
        (b"x", 0),
        (b"x" * 9000, 0),
        (b"x", 4),
    ],
)
def test_connection_that_does_not_begin_with_an_attachment_is_ended(
    run_host: RunningHost, connect: Connect, data: bytes, fds: int
) -> None:
    with open("/dev/null") as null, kept_by_none(run_host):
        assert connect().ask(data, *[null.fileno()] * fds) == GONE


@pytest.mark.parametrize(
    ("data", "fds"),
    [
        (messages.attach(), 0),
        (messages.mmapping(), 0),
        (messages.mmapping(), 1),
        (messages.mapped(0, PAGE), 0),
        (messages.msync(0, PAGE), 0),
    ],
)
def test_attachment_without_a_userfaultfd_after_it_is_ended(
    run_host: RunningHost, connect: Connect, data: bytes, fds: int
) -> None:
    with open("/dev/null") as null, kept_by_none(run_host):
        program = connect()
        program.attach()
        assert program.ask(data, *[null.fileno()] * fds) == GONE


@pytest.mark.parametrize("data", [messages.attach(), messages.serve()])
def test_second_attachment_on_a_connection_ends_it(
    run_host: RunningHost, connect: Connect, data: bytes
) -> None:
    with open("/dev/null") as null, kept_by_none(run_host):
        program = connect()
        program.serve()
        assert program.ask(data, *[null.fileno()] * (data == messages.serve())) == GONE


@trio_test
async def test_attachment_from_a_pid_namespace_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    """SO_PEERCRED says 0 then, which is also the tracer of a process that has none."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    with theirs:
        async with serving(tmp_path) as s:
            session = Programs(s.host, s.fs, s.mount).make(ours, 0)
            theirs.send(messages.attach())
            try:
                with pytest.raises(ProtocolError, match="another pid namespace"):
                    await session.greet()
            finally:
                await session.close()


@pytest.mark.parametrize(
    "make",
    [
        lambda: os.open("/dev/null", os.O_RDWR),
        lambda: os.open("/dev/userfaultfd", os.O_RDWR),
        lambda: os.open("/", os.O_PATH),
        lambda: os.memfd_create("anon_inode:[userfaultfd]"),
        lambda: os.eventfd(0),
        lambda: socket.socket(socket.AF_UNIX).detach(),
    ],
    ids=["file", "device", "path", "memfd", "eventfd", "socket"],
)
def test_service_by_what_is_no_userfaultfd_ends_the_connection(
    run_host: RunningHost, connect: Connect, make: Callable[[], int]
) -> None:
    with kept_by_none(run_host):
        program = connect()
        program.attach()
        fd = make()
        try:
            assert program.ask(messages.serve(), fd) == GONE
        finally:
            os.close(fd)


def test_service_by_a_userfaultfd_that_is_in_use_is_refused(run_host: RunningHost, connect: Connect) -> None:
    with kept_by_none(run_host):
        program = connect()
        program.attach()
        fd = uffd(0)  # UFFDIO_API is done
        try:
            assert program.ask(messages.serve(), fd) == errno.EINVAL
        finally:
            os.close(fd)
        assert program.reply().error == GONE


# ---- what may be mapped


def test_mmap_while_another_is_under_way_ends_the_connection(connect: Connect, file: int) -> None:
    program = connect()
    program.serve()
    os.close(program.cache(file))
    assert program.ask(messages.mmapping(fd=file)) == GONE


def test_connection_that_ends_within_an_mmap_lets_the_file_go(
    run_host: RunningHost, connect: Connect, file: int
) -> None:
    """The process itself goes on, and what it has mapped would be served on."""
    program = connect()
    program.serve()
    os.close(program.cache(file))
    assert held(run_host)
    program.close()
    let_go(run_host)


@pytest.mark.parametrize(
    ("path", "flags", "prot", "error"),
    [
        ("d", os.O_RDONLY | os.O_DIRECTORY, mmap.PROT_READ, errno.EINVAL),
        ("f", os.O_PATH, mmap.PROT_READ, errno.EBADF),
        ("f", os.O_WRONLY, mmap.PROT_WRITE, errno.EACCES),
        ("f", os.O_RDONLY, mmap.PROT_READ | mmap.PROT_WRITE, errno.EACCES),
        ("../source/w", os.O_RDWR, mmap.PROT_READ, errno.EXDEV),
        ("/dev/null", os.O_RDWR, mmap.PROT_READ, errno.EXDEV),
        ("/proc/self/maps", os.O_RDONLY, mmap.PROT_READ, errno.EXDEV),
    ],
)
def test_mmap_of_what_cannot_be_mapped_is_refused_and_the_next_one_is_served(
    run_host: RunningHost, connect: Connect, file: int, path: str, flags: int, prot: int, error: int
) -> None:
    (run_host.source / "d").mkdir(exist_ok=True)
    program = connect()
    program.serve()
    fd = os.open(run_host.mount / path, flags)
    try:
        assert program.ask(messages.mmapping(prot=prot, fd=fd)) == error
    finally:
        os.close(fd)
    cache = program.cache(file)
    with program.mapping(cache) as at:
        assert ctypes.string_at(at, 2) == b"AA"
    os.close(cache)


def test_mmap_of_a_page_cache_itself_is_refused(connect: Connect, file: int) -> None:
    program = connect()
    program.serve()
    cache = program.cache(file)
    assert program.ask(messages.mapped(0, 0)) == 0
    assert program.ask(messages.mmapping(fd=cache)) == errno.EXDEV
    os.close(cache)


# ---- where it was mapped


def test_mapping_at_what_is_no_range_of_pages_ends_the_connection_and_lets_the_file_go(
    run_host: RunningHost, connect: Connect, file: int
) -> None:
    for start, length in [
        (1, PAGE),
        (PAGE, PAGE - 1),
        (wire.ADDRESSES, PAGE),
        (PAGE, wire.ADDRESSES),
        (PAGE, 2**64 - PAGE),
        (2**64 - PAGE, PAGE),
    ]:
        program = connect()
        program.serve()
        os.close(program.cache(file))
        assert program.ask(messages.mapped(start, length)) == GONE
    let_go(run_host)


def test_mapping_where_nothing_of_ours_is_fails_and_lets_the_file_go(
    run_host: RunningHost, connect: Connect, file: int
) -> None:
    program = connect()
    program.serve()
    with mmap.mmap(-1, PAGE) as anonymous:
        somewhere = ctypes.addressof(ctypes.c_char.from_buffer(anonymous))
        for start in (0, PAGE, somewhere, wire.ADDRESSES - PAGE):
            os.close(program.cache(file))
            assert program.ask(messages.mapped(start, PAGE)) == errno.EINVAL
        anonymous[:1] = b"x"  # and that is still its own
    let_go(run_host)
    # told without an mmap() before, as by a forked child
    assert program.ask(messages.mapped(0, wire.ADDRESSES)) == 0
    assert program.ask(messages.mapped(0, 0)) == 0
    assert program.ask(messages.msync(0, wire.ADDRESSES)) == 0
    assert not held(run_host)


# ---- many


def test_five_hundred_connections_at_once_are_each_answered(run_host: RunningHost, connect: Connect) -> None:
    with kept_by_none(run_host):
        programs = [connect() for _ in range(500)]
        for program in programs:
            program.send(messages.attach())
        for program in programs:
            reply = program.reply()
            assert reply.error == 0
            for fd in reply.fds:
                os.close(fd)
        for program in programs:
            program.close()


def test_deaths_told_without_end_are_counted_and_the_newest_are_kept(tmp_path: Path) -> None:
    written, count = tmp_path / "report.json", DEATHS_KEPT + 100
    with RunningHost(tmp_path, "--quiet", "--json", os.fspath(written)) as host:
        with RawProgram(host.programs_environment["DAXFAULT_SOCKET"]) as program:
            program.serve()
            for address in range(count):
                assert program.ask(messages.sigbus(address, tid=2**31 - 1)) == 0
        assert host.ask("status")["deaths"] == count
        host.end()
    report = json.loads(written.read_text())
    assert report["deaths_total"] == count
    assert [death["address"] for death in report["deaths"]] == [
        hex(address) for address in range(count - DEATHS_KEPT, count)
    ]
