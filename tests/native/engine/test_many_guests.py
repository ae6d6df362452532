# SPDX-License-Identifier: Apache-2.0
"""Many guests and vCPUs at once, and deaths among them."""

import contextlib
import dataclasses
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from killable_host import Lines, killable_host
from serving import PAGE, RANGE, Serving, call, noticed, serving
from trio.testing import trio_test

from daxfault.vmm.errors import alone
from daxfault.vmm.study.standin import StandIn

GUESTS, VCPUS, FILES = 10, 16, 3
ROUNDS = int(os.environ.get("DAXFAULT_ROUNDS", "25"))
SEED = int(os.environ.get("DAXFAULT_SEED", "1"))
PAGES = 40
STRIPE = 16  # bytes; every vCPU of every guest owns one in each page: 160 in 2,560 of 4,096 bytes


@dataclasses.dataclass
class Model:
    """What the files hold."""

    files: list[bytearray]
    errors: int = 0

    def readable(self, file: int, offset: int) -> bool:
        """Whether a load there meets a page: the last one counts to its end."""
        return offset < (len(self.files[file]) + PAGE - 1) // PAGE * PAGE


async def one_access(guest: StandIn, me: int, vcpu: int, model: Model, dice: random.Random) -> None:
    """A store to this vCPU's own stripe, or a read of it: nobody else writes there."""
    file, page = dice.randrange(FILES), dice.randrange(PAGES)
    stripe = (me * VCPUS + vcpu) * STRIPE
    offset = page * PAGE + stripe
    at = file * RANGE + offset
    data = model.files[file]
    if dice.random() < 0.4:
        new = dice.randbytes(STRIPE)
        got = await guest.access(vcpu, f"write {at} {new.hex()}")
        if model.readable(file, offset):
            assert got.outcome == "ok"
            kept = new[: max(0, len(data) - offset)]  # what is stored behind EOF is not the file's
            data[offset : offset + len(kept)] = kept
            return
    else:
        got = await guest.access(vcpu, f"read {at} {STRIPE}")
        if model.readable(file, offset):
            expected = data[offset : offset + STRIPE]
            assert (got.outcome, bytes.fromhex(got.value)[: len(expected)]) == ("ok", expected)
            return
    assert (got.outcome, got.address) == ("sigbus", guest.window + at)
    model.errors += 1


async def change(s: Serving, guest: StandIn, model: Model, dice: random.Random) -> None:
    """Truncate, extend or write each file, through or behind the mount, while no vCPU runs."""
    for n, data in enumerate(model.files):
        name = f"file{n}"
        what = dice.choice(["mount", "behind", "write", "nothing"])
        if what == "write":
            offset, more = dice.randrange(len(data) + 1), dice.randbytes(dice.randrange(1, 2 * PAGE))
            await call(write_at, s.mount / name, offset, more)
            data[offset : offset + len(more)] = more
        elif what != "nothing":
            size = dice.randrange(PAGES * PAGE) if dice.random() < 0.6 else PAGES * PAGE
            del data[size:]
            data.extend(bytes(size - len(data)))
            if what == "mount":
                await call(os.truncate, s.mount / name, size)
            else:
                os.truncate(s.backing / name, size)
                await noticed(guest, name, size)


def write_at(path: Path, offset: int, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        assert os.pwrite(fd, data, offset) == len(data)
    finally:
        os.close(fd)


@trio_test
async def test_many_guests_and_vcpus_on_several_files_agree_with_a_model(tmp_path: Path) -> None:
    """Ten guests of sixteen vCPUs; DAXFAULT_ROUNDS and DAXFAULT_SEED make it longer, and other."""
    dice = random.Random(SEED)
    model = Model([bytearray(dice.randbytes(PAGES * PAGE)) for _ in range(FILES)])

    try:
        async with serving(tmp_path) as s, contextlib.AsyncExitStack() as stack:
            for n, data in enumerate(model.files):
                s.make(f"file{n}", bytes(data))
            guests = []
            for _ in range(GUESTS):
                guest = await stack.enter_async_context(s.guest())
                for n in range(FILES):
                    await guest.open(f"f{n}", s.mount / f"file{n}", "rw")
                    await guest.map(f"f{n}", 0, RANGE, n * RANGE, "w")
                guests.append(guest)
            for _ in range(ROUNDS):
                async with trio.open_nursery() as nursery:
                    for me, guest in enumerate(guests):
                        for vcpu in range(VCPUS):
                            own = random.Random(dice.random())
                            nursery.start_soon(some_accesses, guest, me, vcpu, model, own)
                await change(s, guests[0], model, dice)
                for n, data in enumerate(model.files):
                    assert await call((s.mount / f"file{n}").read_bytes) == data
            assert model.errors > 10
            for guest in guests:
                await guest.unmap(0, FILES * RANGE)
            for n, data in enumerate(model.files):
                assert (s.backing / f"file{n}").read_bytes() == data
    except BaseExceptionGroup as e:
        raise alone(e) from None  # ten guests are ten nurseries


async def some_accesses(guest: StandIn, me: int, vcpu: int, model: Model, dice: random.Random) -> None:
    for _ in range(3):
        await one_access(guest, me, vcpu, model, dice)


@pytest.mark.parametrize("how", ["killed", "hangs up"])
@trio_test
async def test_death_of_one_guest_amid_faults_leaves_the_others_right_bytes(tmp_path: Path, how: str) -> None:
    data = random.Random(2).randbytes(2 * RANGE)

    async with serving(tmp_path) as s, contextlib.AsyncExitStack() as stack:
        path = s.make("file", data)
        guests = [await stack.enter_async_context(s.guest()) for _ in range(4)]
        for guest in guests:
            await guest.open("f", path, "rw")
            await guest.map("f", 0, 2 * RANGE, 0, "w")
        survivors, doomed = guests[1:], guests[0]
        begun = [await doomed.start(vcpu, f"scan_all 0 {2 * RANGE} {PAGE}") for vcpu in range(VCPUS)]

        async def reads(guest: StandIn, vcpu: int) -> None:
            for page in range(vcpu, len(data) // PAGE, 37):
                got = await guest.access(vcpu, f"read {page * PAGE} 32")
                assert bytes.fromhex(got.value) == data[page * PAGE :][:32]

        async with trio.open_nursery() as nursery:
            for guest in survivors:
                for vcpu in range(4):
                    nursery.start_soon(reads, guest, vcpu)
            if how == "killed":
                doomed.process.kill()
            else:
                doomed.session._peer.close()
        if how == "hangs up":  # it lives on without a host: every access ends, in whatever way
            for wait in begun:
                await wait()
            got = await doomed.access(0, "touch 0")
            assert (got.outcome == "ok" and got.value == data[0]) or got.outcome == "sigbus"


@pytest.fixture
def host(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    with killable_host(tmp_path) as process:
        yield process


def test_guest_of_host_that_was_killed_gets_errors_never_zeros_and_never_hangs(
    tmp_path: Path, host: "subprocess.Popen[str]"
) -> None:
    data = bytes(1 + i % 251 for i in range(2 * RANGE))
    (tmp_path / "backing" / "file").write_bytes(data)
    guest = Lines(tmp_path / "socket")
    try:
        guest.do(f"open f {tmp_path}/mount/file rw", "open")
        guest.do(f"map f 0 {2 * RANGE} 0 w", "map")
        for page in (0, 3):
            assert guest.do(f"vcpu 0 touch {page * PAGE}")["value"] == data[page * PAGE]
        assert guest.do(f"vcpu 0 write {PAGE} 070809")["outcome"] == "ok"
        assert guest.process.stdin is not None
        for vcpu in range(4):  # faults under way while it dies
            guest.process.stdin.write(f"vcpu {vcpu} scan_all 0 {2 * RANGE} {PAGE}\n")
        guest.process.stdin.flush()
        host.send_signal(signal.SIGKILL)
        host.wait()
        for _ in range(4):
            assert guest.read("done")["op"] == "scan_all"
        assert guest.do("stat", "stat")["host_lost"] is True
        # what it has it keeps; for the rest, every way to touch it is an error
        assert guest.do("vcpu 0 read 4096 3")["value"] == "070809"
        assert guest.do(f"vcpu 0 dontneed 0 {2 * RANGE}")["outcome"] == "ok"
        for page in (0, 1, 300):
            at = page * PAGE + 5
            got = guest.do(f"vcpu 0 touch {at}")
            assert (got["outcome"], int(got["address"], 16)) == ("sigbus", guest.window + at)
            assert guest.do(f"vcpu 1 sys_write {at} 8")["outcome"] == "efault"
            assert guest.do(f"vcpu 2 kcopy {at} 8")["outcome"] == "efault"
            assert guest.do(f"vcpu 3 fork {at}")["outcome"] in ("sigbus", "error")
    finally:
        guest.close()
