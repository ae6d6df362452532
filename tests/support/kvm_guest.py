# SPDX-License-Identifier: Apache-2.0
"""A KVM guest for a test, over a file of its own.

Owns the requirement that KVM is there, and the file.
"""

import contextlib
import os
from collections.abc import AsyncIterator
from typing import Any

from needs import require

from daxfault.native import PAGE_SIZE, kvm
from daxfault.native.kvm_script import Got, Op, Step
from daxfault.vmm.kvm.machine import Machine, machine
from daxfault.vmm.kvm.window import FileMemory

PAGE = PAGE_SIZE
PAGES = 16  # of the file
CUT = 8  # pages that a truncation leaves
RING0, RING3 = 0x40000000, 0x50000000  # where each sees the window


def require_kvm() -> None:
    why = kvm.unsupported()
    require(why is None, str(why))


def view(ring: int, offset: int) -> int:
    """The gva of an offset in the window."""
    return (RING3 if ring == 3 else RING0) + offset


@contextlib.asynccontextmanager
async def file_guest(**options: Any) -> AsyncIterator[tuple[Machine, int]]:
    """A guest over a memfd of PAGES pages; -> it, and a descriptor to truncate."""
    require_kvm()
    fd = os.memfd_create("window")
    try:
        os.ftruncate(fd, PAGES * PAGE)
        async with machine(lambda: FileMemory(os.dup(fd)), **options) as guest:
            yield guest, fd
    finally:
        os.close(fd)


async def warm(guest: Machine, ring: int) -> None:
    """Have the guest write and read every page that is to be cut off."""
    pages = PAGES - CUT
    spread = {"offset": CUT * PAGE, "repeat": pages, "stride": PAGE, "ring": ring, "table": True}
    results = await guest.run(Step(Op.STORE, arg=0x5A, **spread), Step(Op.LOAD, **spread))
    assert [(result.got, result.done) for result in results] == [(Got.OK, pages)] * 2
    assert results[1].data[0] == 0x5A
