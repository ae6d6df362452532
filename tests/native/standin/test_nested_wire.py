# SPDX-License-Identifier: Apache-2.0
"""A stand-in that is a host: the command that makes it one, and guests that misbehave.

A bad guest loses its connection; the next one is served.
"""

import contextlib
import errno
import os
import random
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import raw_guest
from nests import DATA, gone
from raw_guest import RawGuest, closing
from stage import PAGE, RANGE, eventually, stage
from trio.testing import trio_test

from daxfault.vmm.designs import DESIGNS
from daxfault.vmm.study.standin import StandIn, StandInError
from daxfault.vmm.study.standin import nested as guest_of

# ---- the command and the wire


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("0 2M 5 0 0", "wrong number of arguments"),
        ("x 2M 5 0 0 wake,wake,wake", "not a number"),
        ("0 0 5 0 0 wake,wake,wake", "a range needs a length"),
        ("0 1G 5 0 0 wake,wake,wake", "beyond the window"),
        ("1 4096 5 0 0 wake,wake,wake", "not a multiple of the page size"),
        ("0 2M 6 0 0 wake,wake,wake", "no such ABI"),
        ("0 2M 5 0 4 wake,wake,wake", "unknown bits"),
        ("0 2M 5 0x100000000 0 wake,wake,wake", "unknown bits"),
        ("0 2M 5 0 0 wake,wake", "not three answers"),
        ("0 2M 5 0 0 wake,wake,wake,wake", "not three answers"),
        ("0 2M 5 0 0 wake,wake,sleep", "not three answers"),
        ("0 2M 5 0 0 wake,wake,report/", "not three answers"),
    ],
)
@trio_test
async def test_host_command_that_makes_no_sense_is_refused(tmp_path: Path, words: str, message: str) -> None:
    async with stage(tmp_path) as s, s.guest(window=2 * RANGE) as l1:
        with pytest.raises(StandInError, match=message):
            await l1._ask(f"host {tmp_path}/l1 {words}")
        # and it changed nothing
        await l1.host(tmp_path / "l1", 0, RANGE, DESIGNS["report"])
        with pytest.raises(StandInError, match="a host already"):
            await l1.host(tmp_path / "l1", 0, RANGE, DESIGNS["report"])


@trio_test
async def test_host_command_for_a_path_that_cannot_be_bound_says_why(tmp_path: Path) -> None:
    async with stage(tmp_path) as s, s.guest(window=2 * RANGE) as l1:
        with pytest.raises(StandInError, match="not a host"):
            await l1.hosted()
        with pytest.raises(StandInError, match=f"{tmp_path}/no/l1: No such file or directory"):
            await l1.host(tmp_path / "no" / "l1", 0, RANGE, DESIGNS["report"])


@contextlib.asynccontextmanager
async def raw(tmp_path: Path, l1: StandIn) -> AsyncIterator[RawGuest]:
    """A guest of L1 that may say anything; L1 must serve a good one after it."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.connect(os.fspath(tmp_path / "l1"))
    guest = RawGuest(sock)
    try:
        yield guest
    finally:
        guest.close()
    async with guest_of(tmp_path / "l1", DESIGNS["report"]) as l2:
        await l2.open("f", os.devnull)
        await l2.map("f", 0, RANGE, 0)
        assert (await l2.access(0, "read 0 16")).value == DATA[:16].hex()


@contextlib.asynccontextmanager
async def l1_at(tmp_path: Path) -> AsyncIterator[StandIn]:
    async with stage(tmp_path) as s, s.mapped("file", DATA) as l1:
        await l1.host(tmp_path / "l1", 0, RANGE, DESIGNS["report"])
        yield l1


GARBAGE = {
    "one byte": b"\1",
    "noise": random.Random(3).randbytes(56),
    "longer than any": random.Random(3).randbytes(8192),
    "an open": raw_guest.opening(),
    "a hello cut short": raw_guest.hello()[:-8],
    "a hello without descriptors": raw_guest.hello(),
    "a reply": raw_guest.message(1001, bytes(40)),
    "a length that lies": raw_guest.message(2, bytes(16), length=64),
    "a mapping of half a page": raw_guest.setup(0, 2048, RANGE, 0),
    "a mapping of nothing": raw_guest.setup(0, 0, 0, 0),
    "a mapping for nothing": raw_guest.setup(0, 0, RANGE, 0, 0),
    "a removal of nothing": raw_guest.remove(),
    "a removal of more than it says": raw_guest.remove((0, RANGE), count=2),
    "a removal without end": raw_guest.remove((0, RANGE), count=2**32 - 1),
}


@pytest.mark.parametrize("greets", [False, True], ids=["first", "after its hello"])
@pytest.mark.parametrize("what", GARBAGE)
@trio_test
async def test_nested_guest_that_sends_garbage_is_hung_up_on(tmp_path: Path, what: str, greets: bool) -> None:
    async with l1_at(tmp_path) as l1, raw(tmp_path, l1) as guest:
        if greets:
            assert await guest.greet() == 0
        assert await guest.ask(GARBAGE[what]) == -1
        await eventually(lambda: gone(l1) and gone(l1)[0], "L1 says why")


BAD_HELLOS = {
    "another version": raw_guest.hello(version=raw_guest.VERSION + 1),
    "another process": raw_guest.hello(pid=1),
    "an unaligned window": raw_guest.hello(window=raw_guest.WINDOW + 1),
    "a window in the kernel": raw_guest.hello(window=2**63),
    "a window up to the end": raw_guest.hello(window=2**47 - PAGE),
    "no window": raw_guest.hello(window_len=0),
    "a window of everything": raw_guest.hello(window_len=2**46),
    "an unknown ABI": raw_guest.hello(abi=6),
}


@pytest.mark.parametrize("what", BAD_HELLOS)
@trio_test
async def test_nested_guest_with_a_hello_that_is_wrong_is_hung_up_on(tmp_path: Path, what: str) -> None:
    fds = [raw_guest.uffd(), raw_guest.area()]
    async with closing(*fds), l1_at(tmp_path) as l1, raw(tmp_path, l1) as guest:
        assert await guest.ask(BAD_HELLOS[what], fds) == -1


@pytest.mark.parametrize("what", ["no userfaultfd", "no features", "too many descriptors", "a small area"])
@trio_test
async def test_nested_guest_with_descriptors_that_are_wrong_is_hung_up_on(tmp_path: Path, what: str) -> None:
    uffds = {
        "no userfaultfd": raw_guest.area,
        "no features": lambda: raw_guest.uffd(raw_guest.THREAD_ID),
    }
    area = raw_guest.area(PAGE) if what == "a small area" else raw_guest.area()
    fds = [uffds.get(what, raw_guest.uffd)(), area]
    fds += [os.dup(area) for _ in range(20 if what == "too many descriptors" else 0)]
    async with closing(*fds), l1_at(tmp_path) as l1, raw(tmp_path, l1) as guest:
        assert await guest.ask(raw_guest.hello(), fds) == -1


@trio_test
async def test_nested_guest_is_refused_what_it_may_not_have(tmp_path: Path) -> None:
    async with l1_at(tmp_path) as l1, raw(tmp_path, l1) as guest:
        assert await guest.greet() == 0
        error, fh = await guest.open(os.devnull)
        assert error == 0
        refused = {
            raw_guest.setup(fh + 1, 0, RANGE, 0): errno.EBADF,
            raw_guest.setup(2**64 - 1, 0, RANGE, 0): errno.EBADF,
            raw_guest.setup(fh, 0, RANGE, 0, raw_guest.WRITE | raw_guest.READ): errno.EACCES,
            raw_guest.setup(fh, 0, RANGE, raw_guest.WINDOW_LEN): errno.EINVAL,
            raw_guest.setup(fh, 0, raw_guest.WINDOW_LEN, RANGE): errno.EINVAL,
            raw_guest.remove((raw_guest.WINDOW_LEN, RANGE)): errno.EINVAL,
            raw_guest.release(fh + 1): errno.EBADF,
            raw_guest.release(2**64 - 1): errno.EBADF,
        }
        for message, wanted in refused.items():
            assert await guest.ask(message) == wanted
        # and all of it is there to be had
        assert await guest.ask(raw_guest.setup(fh, 0, RANGE, 0)) == 0
        assert await guest.ask(raw_guest.release(fh)) == errno.EBUSY
        assert await guest.ask(raw_guest.remove((0, RANGE))) == 0
        assert await guest.ask(raw_guest.release(fh)) == 0
        handles = [await guest.open(os.devnull) for _ in range(65)]
        assert [error for error, _ in handles] == [0] * 64 + [errno.EMFILE]
