# SPDX-License-Identifier: Apache-2.0
"""Guests that break the protocol lose their connection, and nobody else notices (witness.py)."""

import errno
import fcntl
import os
import random
from collections.abc import Callable
from pathlib import Path

import messages
import pytest
import raw_guest
import trio
import trio.testing
from messages import GONE, READ, WINDOW_LEN, WRITE, Reply
from raw_guest import closing
from serving import PAGE, RANGE, call
from trio.testing import trio_test
from witness import DATA, connected, greeted, witnessed

# ---- messages

NOISE = random.Random(3).randbytes(8192)
GARBAGE = {
    "one byte": b"\1",
    "noise": NOISE[:56],
    "longer than any": NOISE,
    "an open": messages.opening(),
    "a hello cut short": messages.hello()[:-8],
    "a hello without descriptors": messages.hello(),
    "a reply": messages.message(1001, messages.hello()[messages.HEADER.size :]),
}


@pytest.mark.parametrize("what", GARBAGE)
@trio_test
async def test_guest_that_sends_garbage_instead_of_its_hello_is_hung_up_on(tmp_path: Path, what: str) -> None:
    async with witnessed(tmp_path) as s, connected(s) as guest:
        assert await guest.ask(GARBAGE[what]) == GONE


@pytest.mark.parametrize("what", GARBAGE)
@trio_test
async def test_guest_that_sends_garbage_after_its_hello_is_hung_up_on(tmp_path: Path, what: str) -> None:
    async with witnessed(tmp_path) as s, greeted(s) as guest:
        assert await guest.ask(GARBAGE[what]) == GONE


@trio_test
async def test_guest_that_leaves_before_its_hello_is_forgotten(tmp_path: Path) -> None:
    async with witnessed(tmp_path) as s, connected(s):
        pass


@trio_test
async def test_guest_that_never_says_hello_is_hung_up_on_when_time_is_out(tmp_path: Path) -> None:
    async with witnessed(tmp_path) as s:
        s.host.hello_seconds = 0.05
        async with connected(s) as guest:
            assert await guest.reply() == Reply(GONE)
        s.host.hello_seconds = 10.0


@trio_test
async def test_guest_that_says_hello_twice_is_hung_up_on(tmp_path: Path) -> None:
    async with witnessed(tmp_path) as s, greeted(s) as guest:
        assert await guest.greet() == GONE


@pytest.mark.parametrize("greet", [False, True])
@pytest.mark.parametrize("count", [1, 3, 64, 250])
@trio_test
async def test_guest_that_sends_the_wrong_number_of_descriptors_is_hung_up_on(
    tmp_path: Path, greet: bool, count: int
) -> None:
    async with witnessed(tmp_path) as s, connected(s) as guest:
        if greet:
            assert await guest.greet() == 0
        async with closing(os.open(tmp_path, os.O_RDONLY)) as fds:
            message = messages.release(1) if greet else messages.hello()
            assert await guest.ask(message, fds * count) == GONE


# ---- hellos


@pytest.mark.parametrize("pid", [1, 0, -1, 2**31 - 1])
@trio_test
async def test_hello_with_another_process_id_is_hung_up_on(tmp_path: Path, pid: int) -> None:
    async with (
        witnessed(tmp_path) as s,
        connected(s) as guest,
        closing(raw_guest.uffd(), raw_guest.area()) as fds,
    ):
        assert await guest.ask(messages.hello(pid=pid), fds) == GONE


def memfd() -> int:
    fd = os.memfd_create("not an event area")
    os.ftruncate(fd, PAGE)
    return fd


def pipe() -> int:
    reading, writing = os.pipe()
    os.close(writing)
    return reading


def reopened(fd: int, flags: int) -> int:
    try:
        return os.open(f"/proc/self/fd/{fd}", flags)
    finally:
        os.close(fd)


UFFDS: dict[str, Callable[[Path], int]] = {
    "a regular file": lambda top: os.open(top / "file", os.O_CREAT | os.O_RDWR),
    "a file of our own mount": lambda top: os.open(top / "mount" / "victim", os.O_RDWR),
    "a pipe": lambda _: pipe(),
    "an eventfd": lambda _: os.eventfd(0),
    "a directory": lambda top: os.open(top, os.O_RDONLY),
    "a memfd": lambda _: memfd(),
    "a userfaultfd without UFFDIO_API": lambda _: raw_guest.uffd(None),
    "a userfaultfd without THREAD_ID": lambda _: raw_guest.uffd(raw_guest.EXACT_ADDRESS),
    "a userfaultfd without EXACT_ADDRESS": lambda _: raw_guest.uffd(raw_guest.THREAD_ID),
}


@pytest.mark.parametrize("what", UFFDS)
@trio_test
async def test_hello_with_unfit_userfaultfd_is_hung_up_on(tmp_path: Path, what: str) -> None:
    async with (
        witnessed(tmp_path) as s,
        connected(s) as guest,
        closing(await call(UFFDS[what], tmp_path), raw_guest.area()) as fds,
    ):
        assert await guest.ask(messages.hello(), fds) == GONE


AREAS: dict[str, Callable[[Path], int]] = {
    "not sealed": lambda _: memfd(),
    "sealed against growing only": lambda _: raw_guest.area(seals=fcntl.F_SEAL_GROW),
    "sealed against writing": lambda _: raw_guest.area(seals=fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_WRITE),
    "too small": lambda _: raw_guest.area(PAGE - 1),
    "empty": lambda _: raw_guest.area(0),
    "a regular file": lambda top: os.open(top / "file", os.O_CREAT | os.O_RDWR),
    "a file of our own mount": lambda top: os.open(top / "mount" / "victim", os.O_RDWR),
    "a pipe": lambda _: pipe(),
    "a directory": lambda top: os.open(top, os.O_RDONLY),
    "a userfaultfd": lambda _: raw_guest.uffd(),
    "read-only": lambda _: reopened(raw_guest.area(), os.O_RDONLY),
}


@pytest.mark.parametrize("what", AREAS)
@trio_test
async def test_hello_with_unfit_event_area_is_hung_up_on(tmp_path: Path, what: str) -> None:
    async with (
        witnessed(tmp_path) as s,
        connected(s) as guest,
        closing(raw_guest.uffd(), await call(AREAS[what], tmp_path)) as fds,
    ):
        assert await guest.ask(messages.hello(), fds) == GONE


# ---- requests


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (messages.setup(99, 0, RANGE, 0), errno.EBADF),
        (messages.setup(0, 0, RANGE, 0), errno.EBADF),
        (messages.setup(2**64 - 1, 0, RANGE, 0), errno.EBADF),
        (messages.setup(1, 0, RANGE, WINDOW_LEN), errno.EINVAL),
        (messages.setup(1, 0, 2 * RANGE, WINDOW_LEN - RANGE), errno.EINVAL),
        (messages.setup(1, 0, (1 << 62) - RANGE, 0), errno.EINVAL),
        (messages.setup(1, 0, RANGE, (1 << 62) - RANGE), errno.EINVAL),
        (messages.setup(1, 0, RANGE, 0), errno.EEXIST),
        (messages.setup(1, RANGE, 2 * RANGE, 0), errno.EEXIST),
        (messages.setup(1, (1 << 62) - RANGE, 2 * RANGE, RANGE), errno.EINVAL),
        (messages.setup(1, 0, RANGE, RANGE, WRITE), errno.EACCES),
        (messages.setup(1, 0, RANGE, RANGE, READ | WRITE), errno.EACCES),
        (messages.remove((WINDOW_LEN, RANGE)), errno.EINVAL),
        (messages.remove((0, (1 << 62) - RANGE)), errno.EINVAL),
        (messages.remove((0, RANGE), (0, 2 * WINDOW_LEN)), errno.EINVAL),
        (messages.release(1), errno.EBUSY),
        (messages.release(2), errno.EBADF),
        (messages.setup(1, 0, RANGE, 1), GONE),
        (messages.setup(1, PAGE, RANGE, RANGE), GONE),
        (messages.setup(1, 2**64 - RANGE, RANGE, RANGE), GONE),
        (messages.setup(1, 0, 2**64 - RANGE, RANGE), GONE),
        (messages.setup(1, 0, RANGE, 2**64 - RANGE), GONE),
        (messages.setup(1, 0, RANGE, RANGE, 4), GONE),
        (messages.remove((0, 1)), GONE),
        (messages.remove(), GONE),
    ],
)
@trio_test
async def test_request_that_cannot_be_granted_is_refused_and_changes_nothing(
    tmp_path: Path, message: bytes, expected: int
) -> None:
    """File handle 1 is read-only and mapped at 0."""

    async with witnessed(tmp_path) as s, greeted(s) as guest:
        assert await guest.open(s.mount / "victim") == (0, 1)
        assert await guest.ask(messages.setup(1, 0, RANGE, 0)) == 0
        assert await guest.ask(message) == expected
        if expected == GONE:
            return
        assert await guest.ask(messages.setup(1, 0, RANGE, 0)) == errno.EEXIST
        assert await guest.ask(messages.setup(1, 0, RANGE, RANGE)) == 0
        assert await guest.ask(messages.remove((0, 2 * RANGE))) == 0
        assert await guest.ask(messages.release(1)) == 0


@trio_test
async def test_one_file_more_than_a_guest_may_open_is_emfile(tmp_path: Path) -> None:
    async with (
        witnessed(tmp_path) as s,
        greeted(s) as guest,
        closing(await call(os.open, s.mount / "victim", os.O_RDONLY)) as fds,
    ):
        for _ in range(1024):
            assert await guest.ask(messages.opening(), fds) == 0
        assert await guest.ask(messages.opening(), fds) == errno.EMFILE
        assert await guest.ask(messages.release(512)) == 0
        assert await guest.ask(messages.opening(), fds) == 0


FILES: dict[str, tuple[Callable[[Path], int], int]] = {
    "a directory": (lambda top: os.open(top / "mount", os.O_RDONLY), errno.EINVAL),
    "a directory elsewhere": (lambda top: os.open(top, os.O_RDONLY), errno.EXDEV),
    "the backing file": (lambda top: os.open(top / "backing" / "victim", os.O_RDONLY), errno.EXDEV),
    "a pipe": (lambda _: pipe(), errno.EXDEV),
    "a userfaultfd": (lambda _: raw_guest.uffd(), errno.EXDEV),
    "open for nothing (O_PATH)": (lambda top: os.open(top / "mount" / "victim", os.O_PATH), errno.EBADF),
    "open for writing only": (lambda top: os.open(top / "mount" / "victim", os.O_WRONLY), errno.EACCES),
}


@pytest.mark.parametrize("what", FILES)
@trio_test
async def test_open_of_descriptor_that_is_no_readable_file_of_the_mount_is_refused(
    tmp_path: Path, what: str
) -> None:
    make, expected = FILES[what]

    async with witnessed(tmp_path) as s, greeted(s) as guest:
        async with closing(await call(make, tmp_path)) as fds:
            assert await guest.ask(messages.opening(), fds) == expected
        assert (await guest.open(s.mount / "victim"))[0] == 0


@trio_test
async def test_guest_that_floods_opens_and_releases_and_never_reads_a_reply_holds_up_nobody(
    tmp_path: Path,
) -> None:
    async with (
        witnessed(tmp_path) as s,
        greeted(s) as guest,
        closing(await call(os.open, s.mount / "victim", os.O_RDONLY)) as fds,
    ):
        with trio.move_on_after(0.3):  # its socket is full long before
            while True:
                await guest.send(messages.opening(), fds)
                await guest.send(messages.release(1))
        async with s.guest() as another:
            assert await another.open("w", s.mount / "witness") == len(DATA)
