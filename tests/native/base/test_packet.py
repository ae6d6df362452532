# SPDX-License-Identifier: Apache-2.0
"""packet.c: one packet and the descriptors it carries, over a socket pair."""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import resource
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkout import ROOT
from needs import require

FDS = 4  # PACKET_FDS


@pytest.fixture(scope="module")
def packet(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    require(compiler, "a C compiler")
    library = tmp_path_factory.mktemp("packet") / "packet.so"
    source = ROOT / "native" / "base" / "packet.c"
    flags = ["-D_GNU_SOURCE", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler or "cc", *flags, "-o", library, source], check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.packet_receive.restype = ctypes.c_ssize_t
    return loaded


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with here, there:
        here.settimeout(None)
        yield here, there


def send(packet: ctypes.CDLL, sock: socket.socket, data: bytes, fds: list[int]) -> int:
    result: int = packet.packet_send(
        sock.fileno(), data, ctypes.c_size_t(len(data)), (ctypes.c_int * len(fds))(*fds), len(fds)
    )
    return result


def receive(packet: ctypes.CDLL, sock: socket.socket, size: int) -> tuple[int, bytes, list[int]]:
    data = ctypes.create_string_buffer(size)
    fds = (ctypes.c_int * FDS)()
    n = ctypes.c_int(-1)
    got = packet.packet_receive(sock.fileno(), data, ctypes.c_size_t(size), fds, ctypes.byref(n))
    return got, data.raw[: max(got, 0)], list(fds[: n.value])


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("count", range(FDS + 1))
def test_packet_with_descriptors_arrives_whole(
    packet: ctypes.CDLL, pair: tuple[socket.socket, socket.socket], count: int, tmp_path: Path
) -> None:
    here, there = pair
    names = [tmp_path / str(n) for n in range(count)]
    sent = [os.open(name, os.O_RDWR | os.O_CREAT) for name in names]
    assert send(packet, here, b"message", sent) == 0
    got, data, fds = receive(packet, there, 64)
    assert (got, data, len(fds)) == (7, b"message", count)
    for ours, theirs in zip(sent, fds, strict=True):
        assert os.path.sameopenfile(ours, theirs)
        assert not os.get_inheritable(theirs)
        os.close(ours)
        os.close(theirs)


def test_packet_with_too_many_descriptors_is_not_sent(
    packet: ctypes.CDLL, pair: tuple[socket.socket, socket.socket]
) -> None:
    assert send(packet, pair[0], b"x", [0] * (FDS + 1)) == -errno.EINVAL


def test_packet_that_is_too_long_is_refused_and_its_descriptors_closed(
    packet: ctypes.CDLL, pair: tuple[socket.socket, socket.socket]
) -> None:
    here, there = pair
    assert send(packet, here, b"longer", [0, 1]) == 0
    before = open_descriptors()
    assert receive(packet, there, 4) == (-errno.EPROTO, b"", [])
    assert open_descriptors() == before


def test_empty_packet_is_an_end_and_its_descriptors_are_closed(
    packet: ctypes.CDLL, pair: tuple[socket.socket, socket.socket]
) -> None:
    here, there = pair
    assert send(packet, here, b"", [0]) == 0
    before = open_descriptors()
    assert receive(packet, there, 4) == (0, b"", [])
    assert open_descriptors() == before


def test_packet_with_more_descriptors_than_fit_is_refused_and_the_others_closed(
    packet: ctypes.CDLL, pair: tuple[socket.socket, socket.socket]
) -> None:
    here, there = pair
    assert send(packet, here, b"full", [0, 1, 2]) == 0
    gc.collect()  # what it would close meanwhile makes room below the limit
    before = open_descriptors()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + 1, limits[1]))
    try:
        got = receive(packet, there, 64)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert got == (-errno.EMFILE, b"", [])
    assert open_descriptors() == before


def test_packet_of_a_closed_connection_is_an_end_or_an_error(
    packet: ctypes.CDLL, pair: tuple[socket.socket, socket.socket]
) -> None:
    here, there = pair
    here.close()
    assert receive(packet, there, 4) == (0, b"", [])
    assert send(packet, there, b"x", []) == -errno.EPIPE
