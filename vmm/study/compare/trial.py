# SPDX-License-Identifier: Apache-2.0
"""A guest under one design with a new file: the environment of each cell of the comparison.

Owns the mount, a host and a stand-in for each trial, and observing how accesses end.
Must not judge the outcome.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import trio

from daxfault import fsd, native
from daxfault.native import PAGE_SIZE, RANGE_SIZE, Delivery, File, Wait
from daxfault.vmm.designs import Design
from daxfault.vmm.errors import Unsupported
from daxfault.vmm.host.host import Host, hosting
from daxfault.vmm.host.scratch import scratch
from daxfault.vmm.host.watchdog import Loop, Watchdog
from daxfault.vmm.study.compare import sequence
from daxfault.vmm.study.compare.cell import Looped
from daxfault.vmm.study.standin import Done, StandIn, StandInError, standin

DEADLINE = 10.0  # seconds; an access that has not ended then, and neither loops nor is stopped, hangs
_TRACED = 4096
_EARLY = 0.01  # seconds after which the beginning of a long trace is saved

PAGES = 128
CUT = 32 * PAGE_SIZE + 100  # bytes left by the truncation
DEAD = 33 * PAGE_SIZE  # the first page past the end

_LOOP_CYCLES = 50


@dataclasses.dataclass(frozen=True, slots=True)
class End:
    """How accesses that were started together ended.

    `done[i]` is None for one that has not ended.  `loop`: detected by the watchdog; `stopped`: the host
    does not resume the vCPU.  If neither applies and one has not ended, it hangs.
    """

    done: tuple[Done | None, ...]
    loop: Looped | None
    stopped: bool

    @property
    def hangs(self) -> bool:
        return None in self.done and self.loop is None and not self.stopped


@dataclasses.dataclass(slots=True)
class Testbed:
    """The mount on which trials are made.  `seconds`: how long a loop is watched."""

    backing: Path
    mount: Path
    fs: fsd.Filesystem
    seconds: float
    trials: int = 0

    @contextlib.asynccontextmanager
    async def trial(
        self,
        design: Design,
        *,
        mode: str = "w",
        pages: int = PAGES,
        async_pf: bool = True,
        watch: float | None = None,
        trace: bool = True,
    ) -> AsyncIterator[Trial]:
        """A host, and a guest that has a new file of `pages` pages mapped at the start of its window.

        `watch`: seconds after which a loop is ended; by default those of the testbed.
        """
        self.trials += 1
        name = f"file{self.trials}"
        content = await trio.to_thread.run_sync(make_file, self.backing / name, pages)
        length = -(-len(content) // RANGE_SIZE) * RANGE_SIZE
        watchdog = Watchdog(seconds=self.seconds if watch is None else watch, cycles=_LOOP_CYCLES)
        async with (
            hosting(self.fs, watchdog=watchdog) as (host, nursery),
            standin(host, nursery, design, window=length, async_pf=async_pf) as guest,
        ):
            await guest.open("file", self.mount / name, "rw" if mode == "w" else "ro")
            base = await guest.map("file", 0, length, 0, mode)
            if trace:
                host.engine.trace(_TRACED)
                await guest.trace(True)
            # now its vCPU runs, and has taken the wake-all of enabling async pf
            await guest.access(0, "work 1")
            yield Trial(self, design, name, content, host, guest, base, trace)


@contextlib.asynccontextmanager
async def testbed(seconds: float) -> AsyncIterator[Testbed]:
    """Mount a new directory while the body runs."""
    with scratch() as place:
        fs = fsd.Filesystem(place.backing)
        async with fsd.mounted(fs, place.mount):
            yield Testbed(place.backing, place.mount, fs, seconds)


def make_file(path: Path, pages: int) -> bytes:
    """Make a file of random bytes; -> its contents."""
    content = os.urandom(pages * PAGE_SIZE)
    try:
        path.write_bytes(content)
    except OSError as e:
        raise Unsupported(f"{path}: {e.strerror}; TMPDIR names another place for it") from e
    return content


def _looped(loop: Loop) -> Looped:
    page = loop.failure.address // PAGE_SIZE * PAGE_SIZE
    return Looped(page, loop.failure.wait is Wait.TOLD, loop.cycles, loop.seconds)


Waiting = Callable[[], Awaitable[Done]]


class Trial:
    """A guest under a design, and operations on its file."""

    def __init__(
        self,
        testbed: Testbed,
        design: Design,
        name: str,
        content: bytes,
        host: Host,
        guest: StandIn,
        base: int,
        traced: bool,
    ) -> None:
        self.design = design
        self.content = content
        self.host = host
        self.guest = guest
        self.base = base
        self._path = testbed.mount / name
        self._traced = traced
        self._of_host: list[native.Trace] = []
        self._of_guest: list[dict[str, Any]] = []

    @property
    def file(self) -> File:
        """The file's data: its state, and the faults that can be injected into it."""
        return self.guest.session.file(self._path.name)

    async def truncate(self, size: int) -> None:
        """truncate(2) through the mount; when it returns, no guest has a page past `size`."""
        await trio.to_thread.run_sync(os.truncate, self._path, size)

    async def begin(self, text: str, task: int = 0, vcpu: int = 0) -> Waiting:
        return await self.guest.start(vcpu, text, task)

    async def access(self, text: str, task: int = 0, vcpu: int = 0) -> End:
        return await self.end(await self.begin(text, task, vcpu))

    async def end(self, *waits: Waiting) -> End:
        """Wait until each has ended, loops, is stopped, or the deadline has passed."""
        done: list[Done | None] = [None] * len(waits)
        seen = len(self.host.loops)
        put_by = not self._traced

        async def wait(i: int, result: Waiting) -> None:
            done[i] = await result()

        async with trio.open_nursery() as nursery:
            for i, result in enumerate(waits):
                nursery.start_soon(wait, i, result)
            began = trio.current_time()
            # the policy thread detects a loop or a stop, and cannot set a trio event
            while None in done and not self.stopped and len(self.host.loops) == seen:
                elapsed = trio.current_time() - began
                if elapsed > DEADLINE:
                    break
                if elapsed > _EARLY and not put_by:
                    put_by = True
                    await self._put_by()
                await trio.sleep(0.001)
            nursery.cancel_scope.cancel()
        loop = self.host.loops[seen] if len(self.host.loops) > seen else None
        return End(tuple(done), _looped(loop) if loop else None, self.stopped and None in done)

    @property
    def stopped(self) -> bool:
        """The host does not resume a vCPU of this guest."""
        return any(record.delivery is Delivery.STOP for record in self.host.records)

    async def parked(self, count: int, vcpu: int = 0) -> None:
        """Wait until `count` tasks of a vCPU sleep on a token.  Raises trio.TooSlowError."""
        with trio.fail_after(DEADLINE):
            while True:
                shown = await self.guest.stat()
                tasks = shown["vcpus"][vcpu]["tasks"]
                if sum(task["state"] == "parked" for task in tasks) >= count:
                    return
                await trio.sleep(0.002)

    async def _put_by(self) -> None:
        self._of_host += self.host.engine.traces()
        with contextlib.suppress(StandInError):
            self._of_guest += await self.guest.traced()

    async def forget(self) -> None:
        """Discard the events so far."""
        await self._put_by()
        self._of_host.clear()
        self._of_guest.clear()

    async def events(self) -> list[dict[str, Any]]:
        """The messages between host and guest, in the form of sequence.py."""
        if self._traced:
            await self._put_by()
        return sequence.merged(self._of_host, self._of_guest)
