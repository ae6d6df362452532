# SPDX-License-Identifier: Apache-2.0
"""Records one run of a guest: every fault, message and request, on one clock.

Owns the recorded story, and collecting the three traces; timeline converts them.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio

from daxfault import fsd
from daxfault.fsd import tracing
from daxfault.native import PAGE_SIZE, RANGE_SIZE
from daxfault.vmm.designs import Design
from daxfault.vmm.errors import Unsupported
from daxfault.vmm.host.host import Host, hosting
from daxfault.vmm.host.scratch import scratch
from daxfault.vmm.host.watchdog import Watchdog
from daxfault.vmm.study.standin import Done, StandIn, standin
from daxfault.vmm.study.timeline import Recording

PAGES = 256
CUT = 64 * PAGE_SIZE + 100  # bytes left by the truncation
DEAD = 65 * PAGE_SIZE  # the first page past the end
SLOW = 0.01  # seconds a slow page takes
_LOOPS = 0.05  # seconds until a loop is ended, after thousands of cycles
_CYCLES = 50
_CAPACITY = 1 << 18
_PATIENCE = 1.0  # seconds; a longer access is shown unfinished

Progress = Callable[[str], None]
Wait = Callable[[], Awaitable[Done]]


async def record(design: Design, *, progress: Progress = lambda _: None) -> Recording:
    """Run the story under `design`, about a second.

    Two vCPUs with three tasks each read present pages, pages of a slow source, pages that were cut off,
    and the same pages after the file has grown.  Raises Unsupported, fsd.MountError or OSError, possibly
    in exception groups of one.
    """
    about = {"design": design.name, "summary": design.summary, "kernel": f"Linux {platform.release()}"}
    recording = Recording([], [], [], about)
    with scratch() as place:
        _make(place.backing / "file")
        fs = fsd.Filesystem(place.backing)
        tracing.trace(fs, recording.requests.append)
        async with (
            fsd.mounted(fs, place.mount),
            hosting(fs, watchdog=Watchdog(seconds=_LOOPS, cycles=_CYCLES)) as (host, nursery),
            standin(host, nursery, design, window=RANGE_SIZE) as guest,
        ):
            host.engine.trace(_CAPACITY)
            await guest.trace(True)
            await _Scenario(host, guest, place.mount / "file", recording, progress).run()
            await guest.trace(False)
            host.engine.trace(0)
    return recording


def _make(path: Path) -> None:
    try:
        path.write_bytes(os.urandom(PAGES * PAGE_SIZE))
    except OSError as e:
        raise Unsupported(f"{path}: {e.strerror}; TMPDIR names another place for it") from e


@dataclasses.dataclass(slots=True)
class _Scenario:
    host: Host
    guest: StandIn
    path: Path
    recording: Recording
    progress: Progress

    async def run(self) -> None:
        await self.guest.open("file", self.path, "rw")
        await self.guest.map("file", 0, RANGE_SIZE, 0, "w")
        there = {(0, 0): "scan 0 65536 4096", (1, 0): "touch 0x8000"}
        await self._at_once("pages that are there are read", there)
        await self._slow()
        await self._cut_off()
        await self._call("truncate, to grow", os.truncate, self.path, PAGES * PAGE_SIZE)
        again = {(vcpu, task): f"read {_dead(vcpu, task)} 16" for vcpu in (0, 1) for task in (0, 1)}
        await self._at_once("the file has grown again: zeros are read", again)

    async def _slow(self) -> None:
        """Two tasks of each vCPU wait for their pages, the third works meanwhile."""
        file = self.guest.session.file(self.path.name)
        file.inject(0, PAGES * PAGE_SIZE, delay=SLOW)
        accesses: dict[tuple[int, int], str] = {}
        for vcpu in (0, 1):
            accesses[vcpu, 0] = f"touch {(128 + 64 * vcpu) * PAGE_SIZE}"
            accesses[vcpu, 1] = f"touch {(160 + 64 * vcpu) * PAGE_SIZE}"
            accesses[vcpu, 2] = "work 20"
        await self._at_once("pages of a slow source are read", accesses)
        file.inject_clear()

    async def _cut_off(self) -> None:
        await self._call("truncate", os.truncate, self.path, CUT)
        await self._call("somebody else reads the file", self.path.read_bytes)
        accesses = {
            (0, 0): f"touch {_dead(0, 0)}",
            (0, 1): f"kcopy {_dead(0, 1)} 64",
            (1, 0): f"touch {_dead(1, 0)}",
            (1, 1): f"touch {_dead(1, 0)}",  # both on one page
            (1, 2): "work 5",
        }
        await self._at_once("the pages that were cut off are touched", accesses)

    async def _call(self, what: str, call: Callable[..., object], *args: object) -> None:
        """Run a call of the host's user on the mount, as a step."""
        self.progress(what)
        begin = time.monotonic_ns()
        await trio.to_thread.run_sync(call, *args)
        self.recording.steps.append((begin, time.monotonic_ns(), what))

    async def _at_once(self, what: str, accesses: dict[tuple[int, int], str]) -> None:
        """Start all accesses and wait for them; abandon those that have not ended in time."""
        self.progress(what)
        begin = time.monotonic_ns()
        for who, text in accesses.items():
            self.recording.accesses.setdefault(who, []).append(text)
        waits = [await self.guest.start(vcpu, text, task) for (vcpu, task), text in accesses.items()]
        with trio.move_on_after(_PATIENCE):
            async with trio.open_nursery() as nursery:
                for wait in waits:
                    nursery.start_soon(wait)
        self.recording.steps.append((begin, time.monotonic_ns(), what))
        self.recording.host += self.host.engine.traces()
        events: list[dict[str, Any]] = await self.guest.traced()
        self.recording.guest += events


def _dead(vcpu: int, task: int) -> int:
    """An address that is cut off, another one for each."""
    return DEAD + (16 * vcpu + 4 * task) * PAGE_SIZE + 5
