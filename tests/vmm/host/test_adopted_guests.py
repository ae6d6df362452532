# SPDX-License-Identifier: Apache-2.0
"""Guests that connect by themselves, to host.listen()."""

import errno
import os
import resource
import socket
import sys
from pathlib import Path

import messages
import pytest
import trio
import trio.testing
from messages import GONE
from needs import require_root
from raw_guest import RawGuest
from serving import RANGE, call, eventually, serving
from trio.testing import trio_test
from witness import descriptors, witnessed

from daxfault.vmm.designs import DESIGNS

# ---- guests that come by themselves


async def adopted(path: Path) -> RawGuest:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    await call(sock.connect, os.fspath(path))
    return RawGuest(sock)


@trio_test
async def test_listening_socket_is_this_users_alone_and_gone_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    async with witnessed(tmp_path) as s:
        async with trio.open_nursery() as nursery:
            await nursery.start(s.host.listen, os.fspath(path), DESIGNS["report"])
            assert path.is_socket()
            assert path.stat().st_mode & 0o777 == 0o600
            nursery.cancel_scope.cancel()
        assert not path.exists()


@pytest.mark.parametrize("what", ["file", "socket", "missing directory", "name too long"])
@trio_test
async def test_listening_at_path_that_cannot_be_names_it_and_touches_nothing(
    tmp_path: Path, what: str
) -> None:
    async with serving(tmp_path) as s:
        path = tmp_path / "taken"
        if what == "file":
            path.write_text("mine")
        elif what == "socket":
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
                other.bind(os.fspath(path))
        else:
            path = tmp_path / "missing" / "socket" if "missing" in what else tmp_path / ("x" * 200)
        before = path.lstat() if path.exists() else None
        with pytest.raises(OSError, match=path.name):
            await s.host.listen(os.fspath(path), DESIGNS["report"])
        assert (path.lstat() if path.exists() else None) == before


@trio_test
async def test_guests_that_connect_are_served_and_their_garbage_ends_themselves_alone(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    async with witnessed(tmp_path) as s, trio.open_nursery() as nursery:
        await nursery.start(s.host.listen, os.fspath(path), DESIGNS["report"])
        first, second, third = [await adopted(path) for _ in range(3)]
        assert await first.greet() == 0
        assert await second.ask(b"garbage") == GONE
        third.close()
        assert await first.open(s.mount / "victim") == (0, 1)
        assert await first.ask(messages.setup(1, 0, RANGE, 0)) == 0
        first.close()
        second.close()
        await eventually(lambda: len(s.host._sessions) == 1, "the guests' end")
        nursery.cancel_scope.cancel()


@trio_test
async def test_guest_of_another_user_is_refused_even_if_the_socket_lets_it_in(tmp_path: Path) -> None:
    require_root()
    os.chmod(tmp_path, 0o755)
    attempt = """
import os, socket, sys
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
os.chdir(sys.argv[1])
os.setgid(65534)
os.setuid(65534)
try:
    sock.connect("socket")
except OSError as e:
    sys.exit(e.errno)
try:
    sock.send(b"let me in")
    sys.exit(1 if sock.recv(1) else 0)
except (BrokenPipeError, ConnectionResetError):
    sys.exit(0)
"""

    path = tmp_path / "socket"
    async with witnessed(tmp_path) as s, trio.open_nursery() as nursery:
        await nursery.start(s.host.listen, os.fspath(path), DESIGNS["report"])

        async def try_it() -> int:
            command = [sys.executable, "-c", attempt, os.fspath(tmp_path)]
            return (await trio.run_process(command, check=False)).returncode

        assert await try_it() == errno.EACCES
        path.chmod(0o666)
        assert await try_it() == 0  # let in by its mode, and hung up on by the host
        assert len(s.host._sessions) == 1
        nursery.cancel_scope.cancel()


@trio_test
async def test_listener_out_of_descriptors_goes_on_when_there_are_some(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    async with witnessed(tmp_path) as s, trio.open_nursery() as nursery:
        await nursery.start(s.host.listen, os.fspath(path), DESIGNS["report"])
        waiting = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors() - 1, hard))
        try:
            waiting.connect(os.fspath(path))
            await trio.testing.wait_all_tasks_blocked()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        guest = RawGuest(waiting)
        assert await guest.greet() == 0
        guest.close()
        nursery.cancel_scope.cancel()
