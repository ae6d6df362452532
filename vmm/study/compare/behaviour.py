# SPDX-License-Identifier: Apache-2.0
"""The behaviour columns: an access under a design to a page that fails.

Owns the access of each column and its right outcome.  Every result is observed.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable

import trio

from daxfault.native import PAGE_SIZE
from daxfault.vmm.designs import Design
from daxfault.vmm.study.compare.cell import Cell, Column, Outcome
from daxfault.vmm.study.compare.judge import Wanted, judge, stopped
from daxfault.vmm.study.compare.trial import CUT, DEAD, Testbed, Trial

Run = Callable[[Testbed, Design], Awaitable[Cell]]

QUEUE = 64  # ASYNC_PF_PER_VCPU
_FAR = 96 * PAGE_SIZE  # a page of the file far from all other accesses
_SLOW = 0.1  # seconds
_UNTIL_CLEARED = 3600.0  # a delay that inject_clear() ends
_ZEROS = "00" * 16

BEHAVIOUR: dict[str, tuple[Column, Run]] = {}


def column(name: str, title: str, right: Outcome, meaning: str) -> Callable[[Run], Run]:
    def add(run: Run) -> Run:
        BEHAVIOUR[name] = (Column(name, title, "behaviour", right, meaning), run)
        return run

    return add


async def _truncated(trial: Trial) -> None:
    """Let the guest touch a page, then cut it off."""
    await trial.access(f"touch {DEAD}")
    await trial.forget()
    await trial.truncate(CUT)


async def _told(trial: Trial, cell: Cell) -> Cell:
    cell.events = await trial.events()
    return cell


async def _one(trial: Trial, text: str, wanted: Wanted) -> Cell:
    """The outcome of one access after the truncation."""
    await _truncated(trial)
    return await _told(trial, judge(await trial.access(text), wanted))


@column("user-read", "user read", Outcome.SIGBUS, "A load of a page that was cut off: SIGBUS at its address.")
async def _user_read(testbed: Testbed, design: Design) -> Cell:
    async with testbed.trial(design) as t:
        return await _one(t, f"touch {DEAD + 5}", Wanted(Outcome.SIGBUS, t.base + DEAD + 5))


@column("user-write", "user write", Outcome.SIGBUS, "A store to a page that was cut off: SIGBUS.")
async def _user_write(testbed: Testbed, design: Design) -> Cell:
    async with testbed.trial(design) as t:
        return await _one(t, f"write {DEAD + 5} 55", Wanted(Outcome.SIGBUS, t.base + DEAD + 5))


@column(
    "kernel-entry",
    "guest kernel, table entry",
    Outcome.EFAULT,
    "A copy in guest kernel with an exception table entry: the exact count, then -EFAULT.",
)
async def _kernel_entry(testbed: Testbed, design: Design) -> Cell:
    async with testbed.trial(design) as t:
        wanted = Wanted(Outcome.EFAULT, t.base + DEAD, done=16)
        return await _one(t, f"kcopy {DEAD - 16} 64", wanted)


@column(
    "kernel-bare",
    "guest kernel, no entry",
    Outcome.PANIC,
    "The same without an entry: nothing can go on there, so the guest kernel panics and says where.",
)
async def _kernel_bare(testbed: Testbed, design: Design) -> Cell:
    async with testbed.trial(design) as t:
        wanted = Wanted(Outcome.PANIC, t.base + DEAD)
        return await _one(t, f"kcopy_bare {DEAD - 16} 64", wanted)


@column(
    "system-call",
    "real system call",
    Outcome.EFAULT,
    "write(2) of the kernel below from a page that was cut off: EFAULT.",
)
async def _system_call(testbed: Testbed, design: Design) -> Cell:
    async with testbed.trial(design) as t:
        return await _one(t, f"sys_write {DEAD} 64", Wanted(Outcome.EFAULT, done=0))


@column(
    "interrupts-off",
    "interrupts off",
    Outcome.EFAULT,
    "A copy in guest kernel with interrupts disabled and a table entry: the same -EFAULT.",
)
async def _interrupts_off(testbed: Testbed, design: Design) -> Cell:
    async with testbed.trial(design) as t:
        wanted = Wanted(Outcome.EFAULT, t.base + DEAD, done=16)
        return await _one(t, f"irqoff kcopy {DEAD - 16} 64", wanted)


@column(
    "async-off",
    "async faults off",
    Outcome.SIGBUS,
    "A user load in a guest that has not enabled asynchronous page faults: the same SIGBUS.",
)
async def _async_off(testbed: Testbed, design: Design) -> Cell:
    async with testbed.trial(design, async_pf=False) as t:
        return await _one(t, f"touch {DEAD + 5}", Wanted(Outcome.SIGBUS, t.base + DEAD + 5))


@column(
    "two-tasks",
    "two tasks, one page",
    Outcome.SIGBUS,
    "Two tasks of a vCPU touch the same page that was cut off: SIGBUS for each, at its own address.",
)
async def _two_tasks(testbed: Testbed, design: Design) -> Cell:
    async with testbed.trial(design) as t:
        await _truncated(t)
        first = await t.begin(f"touch {DEAD + 5}", task=1)
        second = await t.begin(f"touch {DEAD + 9}", task=2)
        wanted = (Wanted(Outcome.SIGBUS, t.base + DEAD + off) for off in (5, 9))
        return await _told(t, judge(await t.end(first, second), *wanted))


@column(
    "queue-full",
    "queue full",
    Outcome.SIGBUS,
    "64 slow faults of the vCPU are outstanding when another task touches what was cut off: SIGBUS.",
)
async def _queue_full(testbed: Testbed, design: Design) -> Cell:
    pages = 16 * QUEUE
    dead = (pages - 8) * PAGE_SIZE
    async with testbed.trial(design, pages=pages) as t:
        await t.access(f"touch {dead}")
        await t.truncate(dead - PAGE_SIZE)
        t.file.inject(0, dead - PAGE_SIZE, delay=_UNTIL_CLEARED)
        slow = []
        for i in range(QUEUE):
            # one after another: a task that is preempted in its fault may get the event of another
            slow.append(await t.begin(f"touch {i * 15 * PAGE_SIZE}", task=1 + i))
            await t.parked(i + 1)
        end = await t.end(await t.begin(f"touch {dead + 5}", task=1 + QUEUE))
        t.file.inject_clear()
        cell = judge(end, Wanted(Outcome.SIGBUS, t.base + dead + 5))
        if cell.ok:
            others = await t.end(*slow)
            if any(done is None or done.outcome != "ok" for done in others.done):
                cell = Cell(Outcome.WRONG, "the slow faults did not end in bytes", ok=False)
        return await _told(t, cell)


@column(
    "grown",
    "truncated, then grown",
    Outcome.BYTES,
    "The page is touched while it is cut off, then the file grows again: zeros are read.",
)
async def _grown(testbed: Testbed, design: Design) -> Cell:
    async with testbed.trial(design, watch=3600.0) as t:
        await _truncated(t)
        began = trio.current_time()
        first = await t.begin(f"touch {DEAD + 5}", task=1)
        with trio.move_on_after(testbed.seconds):
            await t.end(first)
        seconds = trio.current_time() - began
        stood, cycles = t.stopped, t.host.records.total
        await t.truncate(DEAD + 16 * PAGE_SIZE)
        end = await t.end(await t.begin(f"read {DEAD} 16", task=2))
        cell = judge(end, Wanted(Outcome.BYTES, value=_ZEROS))
        if stood:
            after = "; it went on when the file grew" if cell.outcome is Outcome.BYTES else ""
            cell = stopped(f"before the file grew{after}")
        elif cycles > 1:
            cell.detail = f"it looped {cycles} times in {seconds:.2f} s, until the file grew"
        return await _told(t, cell)


@column(
    "io-error",
    "I/O error",
    Outcome.SIGBUS,
    "The page source answers EIO: SIGBUS, as for a memory mapping of a file on a bad disk.",
)
async def _io_error(testbed: Testbed, design: Design) -> Cell:
    async with testbed.trial(design) as t:
        t.file.inject(_FAR, PAGE_SIZE, error=errno.EIO)
        end = await t.access(f"touch {_FAR + 5}")
        return await _told(t, judge(end, Wanted(Outcome.SIGBUS, t.base + _FAR + 5)))


@column(
    "no-space",
    "no space",
    Outcome.SIGBUS,
    "A store to a page for which the file system has no space (ENOSPC): SIGBUS.",
)
async def _no_space(testbed: Testbed, design: Design) -> Cell:
    async with testbed.trial(design) as t:
        t.file.inject(_FAR, PAGE_SIZE, error=errno.ENOSPC, stores=True)
        end = await t.access(f"write {_FAR + 5} 55")
        return await _told(t, judge(end, Wanted(Outcome.SIGBUS, t.base + _FAR + 5)))


@column(
    "killed",
    "killed while parked",
    Outcome.KILLED,
    "A task sleeps on a slow page; it gets SIGKILL, then the file is truncated: it dies, nobody else does.",
)
async def _killed(testbed: Testbed, design: Design) -> Cell:
    async with testbed.trial(design) as t:
        t.file.inject(_FAR, PAGE_SIZE, delay=_UNTIL_CLEARED)
        wait = await t.begin(f"touch {_FAR + 5}", task=1)
        await t.parked(1)
        await t.guest.kill(0, 1)
        await t.truncate(CUT)
        cell = judge(await t.end(wait), Wanted(Outcome.KILLED))
        t.file.inject_clear()
        if cell.ok:
            value = t.content[:16].hex()
            other = judge(await t.access("read 0 16", task=2), Wanted(Outcome.BYTES, value=value))
            if not other.ok:
                cell = Cell(Outcome.WRONG, f"another task then: {other.text}", ok=False)
        return await _told(t, cell)


@column(
    "slow-page",
    "slow page, read-only",
    Outcome.BYTES,
    "A load of a good page whose source takes its time, in a read-only mapping: its bytes.",
)
async def _slow_page(testbed: Testbed, design: Design) -> Cell:
    async with testbed.trial(design, mode="r") as t:
        t.file.inject(_FAR, PAGE_SIZE, delay=_SLOW)
        end = await t.access(f"read {_FAR} 16", task=1)
        wanted = Wanted(Outcome.BYTES, t.base + _FAR, value=t.content[_FAR : _FAR + 16].hex())
        return await _told(t, judge(end, wanted))


@column(
    "wake-all",
    "wake-all",
    Outcome.BYTES,
    "Asynchronous faults are switched off and on while a task sleeps on a good page: its bytes.",
)
async def _wake_all(testbed: Testbed, design: Design) -> Cell:
    async with testbed.trial(design) as t:
        t.file.inject(_FAR, PAGE_SIZE, delay=_UNTIL_CLEARED)
        wait = await t.begin(f"read {_FAR} 16", task=1)
        await t.parked(1)
        await t.guest.set_async(False)
        await t.guest.set_async(True)
        t.file.inject_clear()
        wanted = Wanted(Outcome.BYTES, t.base + _FAR, value=t.content[_FAR : _FAR + 16].hex())
        return await _told(t, judge(await t.end(wait), wanted))


@column(
    "kernel-after-user",
    "kernel copy after a user error",
    Outcome.EFAULT,
    "A user task has had its error; then guest kernel meets another page: an error of its own.",
)
async def _kernel_after_user(testbed: Testbed, design: Design) -> Cell:
    page = DEAD + 4 * PAGE_SIZE
    async with testbed.trial(design) as t:
        await _truncated(t)
        first = await t.access(f"touch {DEAD + 5}", task=1)
        if first.loop or None in first.done:
            return await _told(t, judge(first, Wanted(Outcome.SIGBUS, t.base + DEAD + 5)))
        end = await t.access(f"kcopy {page - 16 + 32} 64", task=2)
        return await _told(t, judge(end, Wanted(Outcome.EFAULT, t.base + page + 16, done=0)))
