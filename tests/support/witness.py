# SPDX-License-Identifier: Apache-2.0
"""A well-behaved guest beside guests that misbehave, to check that only these are affected.

Owns what must hold before and after: the guest reads right bytes, a new guest is served, and the
host has closed every descriptor it received.
"""

import contextlib
import os
import random
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing
from guest_process import Died, GuestProcess, guest_process
from raw_guest import RawGuest
from serving import PAGE, RANGE, Serving, call, eventually, serving

from daxfault import native
from daxfault.vmm.designs import DESIGNS
from daxfault.vmm.study.standin import StandIn

DATA = random.Random(1).randbytes(64 * PAGE)
OTHER = random.Random(2).randbytes(64 * PAGE)


async def well(guest: StandIn) -> None:
    """The guest reads right bytes, through fresh faults, and gets the right error."""
    await guest.access(0, f"dontneed 0 {len(DATA)}")
    for page in (0, 1, 40, 63):
        got = await guest.access(0, f"read {page * PAGE} {PAGE}")
        assert bytes.fromhex(got.value) == DATA[page * PAGE :][:PAGE]
    got = await guest.access(1, f"touch {len(DATA) + 5}")
    assert (got.outcome, got.address) == ("sigbus", guest.window + len(DATA) + 5)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@contextlib.asynccontextmanager
async def witnessed(tmp_path: Path, engine: native.Engine | None = None) -> AsyncIterator[Serving]:
    """A mount with a file `victim`, and a guest that checks before and after that it is served well."""
    async with serving(tmp_path, engine=engine) as s, s.mapped("witness", DATA, "r") as witness:
        s.make("victim", OTHER)
        await well(witness)
        # what the trio loop and its threads have open comes with the first calls
        await call(os.stat, s.mount / "victim")
        before = descriptors()
        yield s
        await well(witness)
        await eventually(lambda: descriptors() <= before, "every descriptor closed")
        async with s.guest() as another:
            await another.open("w", s.mount / "witness")
            await another.map("w", 0, RANGE, 0, "r")
            await well(another)


@contextlib.asynccontextmanager
async def connected(s: Serving) -> AsyncIterator[RawGuest]:
    """A raw guest that has not said hello; the host must end its service by itself at the end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ended = trio.Event()

    async def serve() -> None:
        await s.host.guest(ours, os.getpid(), DESIGNS["report"])
        ended.set()

    s.nursery.start_soon(serve)
    guest = RawGuest(theirs)
    try:
        yield guest
    finally:
        guest.close()
    await ended.wait()


@contextlib.asynccontextmanager
async def greeted(s: Serving) -> AsyncIterator[RawGuest]:
    async with connected(s) as guest:
        assert await guest.greet() == 0
        yield guest


@contextlib.asynccontextmanager
async def child(s: Serving, *, track: bool = False, hello: bool = True) -> AsyncIterator[GuestProcess]:
    """A guest of its own process, which may touch memory."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    async with guest_process(theirs) as guest:
        s.nursery.start_soon(s.host.guest, ours, guest.process.pid, DESIGNS["report"])
        if hello:
            assert await guest.do("hello", track) == native.Cpuid.ERROR
        yield guest


async def opened(s: Serving, guest: GuestProcess, flags: int = os.O_RDWR) -> int:
    return await guest.do("open", os.fspath(s.mount / "victim"), flags)


async def fails(guest: GuestProcess, offset: int) -> None:
    """A system call and a load at `offset` both end in an error; the load ends the child."""
    with pytest.raises(OSError, match="Bad address"):
        await guest.do("peek", offset, 8)
    with pytest.raises(Died) as death:
        await guest.do("load", offset)
    assert death.value.code == -signal.SIGBUS
