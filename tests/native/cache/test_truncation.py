# SPDX-License-Identifier: Apache-2.0
"""Truncation in all its forms, as a guest sees it."""

import os
from pathlib import Path

import pytest
from serving import PAGE, Serving, call, noticed, serving
from trio.testing import trio_test

from daxfault.vmm.study.standin import StandIn

DATA = bytes(i * 7 % 251 for i in range(8 * PAGE + 100))


async def shrink(s: Serving, guest: StandIn, via: str, size: int) -> None:
    """Truncate `file` through or behind the mount, by ftruncate, O_TRUNC or another process's descriptor."""
    if via == "mount":
        await call(os.truncate, s.mount / "file", size)
    elif via == "open":
        assert size == 0
        await call(lambda: os.close(os.open(s.mount / "file", os.O_WRONLY | os.O_TRUNC)))
    else:
        with (s.backing / "file").open("r+b") as other:
            os.ftruncate(other.fileno(), size)
            await noticed(guest, "file", size)


CASES = [(via, size) for via in ("mount", "behind") for size in (0, PAGE, 3 * PAGE, 3 * PAGE + 100)]


@pytest.mark.parametrize(("via", "size"), [*CASES, ("open", 0)])
@pytest.mark.parametrize("mode", ["r", "w"])
@trio_test
async def test_truncation_of_mapped_file_ends_in_sigbus_and_zeroed_tail(
    tmp_path: Path, via: str, size: int, mode: str
) -> None:
    async with serving(tmp_path) as s, s.mapped("file", DATA, mode) as guest:
        everything = await guest.access(0, f"sum 0 {len(DATA)}")
        assert everything.outcome == "ok"
        await shrink(s, guest, via, size)
        dead = (size + PAGE - 1) // PAGE * PAGE
        if size:
            last = (size - 1) // PAGE * PAGE
            tail = await guest.access(0, f"read {last} {PAGE}")
            assert bytes.fromhex(tail.value) == DATA[last:size].ljust(PAGE, b"\0")
        for offset in (dead, dead + 5, dead + PAGE + 4095):
            got = await guest.access(0, f"touch {offset}")
            assert (got.outcome, got.address, got.si_code) == ("sigbus", guest.window + offset, 2)
            assert got.error == 14
        assert (s.backing / "file").stat().st_size == size


@pytest.mark.parametrize("via", ["mount", "behind"])
@trio_test
async def test_truncation_then_growth_reads_zeros(tmp_path: Path, via: str) -> None:
    async with serving(tmp_path) as s, s.mapped("file", DATA) as guest:
        await guest.access(0, f"sum 0 {len(DATA)}")
        await shrink(s, guest, via, PAGE + 10)
        assert (await guest.access(0, f"touch {2 * PAGE}")).outcome == "sigbus"
        # a page poisoned because the access was in a system call heals too
        assert (await guest.access(0, f"sys_write {3 * PAGE} 16")).outcome == "efault"
        await shrink(s, guest, via, len(DATA))
        for offset in (PAGE, 2 * PAGE, 3 * PAGE):
            got = await guest.access(0, f"read {offset} {PAGE}")
            kept = DATA[PAGE : PAGE + 10] if offset == PAGE else b""
            assert bytes.fromhex(got.value) == kept.ljust(PAGE, b"\0")
