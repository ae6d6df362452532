# SPDX-License-Identifier: Apache-2.0
"""All programs of a host: accepts them, writes their stores back, and records those that died of a
mapping.

Owns the tasks for all programs.  Must not know how a program was started.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import trio

from daxfault import native
from daxfault.native import File
from daxfault.native.program_wire import Sigbus
from daxfault.vmm.errors import logged
from daxfault.vmm.host import memory
from daxfault.vmm.host.host import Host
from daxfault.vmm.host.records import Newest
from daxfault.vmm.host.session import FileServer
from daxfault.vmm.programs.address_space import area_at, areas, described
from daxfault.vmm.programs.faults import Rules
from daxfault.vmm.programs.files import Files, Held
from daxfault.vmm.programs.session import ProgramSession

log = logging.getLogger(__name__)

WRITE_BACK_SECONDS = 5.0  # as the kernel's own flusher (vm.dirty_writeback_centisecs)
FULL_SECONDS = 0.02  # between two attempts, while the page caches are over their limit
PRESSURE_SECONDS = 1.0  # between two looks at the machine's memory
DEATHS_KEPT = 1024  # with their stacks; bounded, as a program may send any number of reports


@dataclasses.dataclass(frozen=True, slots=True)
class Death:
    """A SIGBUS for which a program had no handler.

    `file` and `offset` (bytes) are those of the failed page, None when no served file is mapped there.
    `stack`: addresses in the program, innermost frame first; empty unless it was requested.
    """

    time_ns: int
    pid: int
    tid: int
    address: int
    code: int
    file: str | None
    offset: int | None
    stack: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Times in ns of CLOCK_MONOTONIC, addresses in hexadecimal."""
        return dataclasses.asdict(self) | {"address": hex(self.address)}


class Programs:
    """Serves programs through `host`."""

    def __init__(
        self, host: Host, server: FileServer, mount: Path, *, cache_limit: int | None = None
    ) -> None:
        """`mount` is where `server` serves; `cache_limit`: bytes that page caches may have, 0: no limit,
        None: a share of the memory there is."""
        self.cache_limit = memory.default_limit() if cache_limit is None else cache_limit
        native.cache_limit(self.cache_limit)
        self.host = host
        self.files = Files(server, self._opened)
        self.rules = Rules(self._mapped)
        self._mount = mount
        self.deaths: Newest[Death] = Newest(DEATHS_KEPT)
        self.served = 0  # programs in total

    def make(self, sock: socket.socket, pid: int) -> ProgramSession:
        self.served += 1
        return ProgramSession(sock, pid, self.host.engine, self.files, self)

    def _opened(self, held: Held) -> None:
        self.rules.opened(self.path_of(held), held.file)

    def _mapped(self) -> Iterator[tuple[str, File]]:
        return ((self.path_of(held), held.file) for held in self.files)

    def path_of(self, held: Held) -> str:
        """Its path relative to the mount, when a program mapped it first."""
        return os.path.relpath(held.name, self._mount)

    @property
    def busy(self) -> bool:
        """A program maps a file, or its stores are being written back."""
        return self.files.used

    async def sigbus(self, pid: int, message: Sigbus) -> None:
        """Record the death of a program; it waits until its address space has been read."""
        # In a thread: a task that waits for this mount may hold the lock of the address space.  Of the
        # thread that died: a process whose first thread has ended shows nothing.  A thread of another
        # process is no thread of this one, whatever the message says.
        task = f"{pid}/task/{message.tid or pid}"
        mapped = await trio.to_thread.run_sync(areas, task, limiter=trio.CapacityLimiter(1))
        area = area_at(mapped, message.address)
        held = None if area is None or area.file is None else self.files.find(area.file)
        offset = None if held is None or area is None else message.address - area.start + area.offset
        stack = tuple(described(mapped, frame) for frame in message.frames)
        name = None if held is None else held.name
        self.deaths.add(
            Death(time.monotonic_ns(), pid, message.tid, message.address, message.code, name, offset, stack)
        )

    async def listen(
        self,
        path: str,
        *,
        user: int | None = None,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Accept programs that connect to `path`, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_unmapped)
            nursery.start_soon(self._write_back)
            if self.cache_limit:
                nursery.start_soon(self._ease)
            nursery.start_soon(self.files.reap)
            nursery.start_soon(self.rules.watch)
            await self.host.accept(path, self.make, user=user, task_status=task_status)

    async def _watch_unmapped(self) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                await trio.lowlevel.wait_readable(self.host.engine.unmapped_fd())
                for guest, file in self.host.engine.unmapped():
                    session = self.host.session(guest)
                    if isinstance(session, ProgramSession):
                        nursery.start_soon(self._unmapped, session, file)

    async def _unmapped(self, session: ProgramSession, file: int) -> None:
        with logged(log, "program %d: releasing file %d", session.pid, file):
            await session.unmapped(file)

    async def _write_back(self) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                await trio.sleep(FULL_SECONDS)
                with trio.move_on_after(WRITE_BACK_SECONDS):
                    await self._full()
                self.files.start_write_back(nursery)

    async def _ease(self) -> None:
        """Keep to less than the limit while the machine is short of memory: the next faults evict."""
        while True:
            await trio.sleep(PRESSURE_SECONDS)
            with logged(log, "looking at the machine's memory"):
                left, all = memory.available(), memory.total()
                native.cache_limit(memory.eased(self.cache_limit, native.cache_used(), left, all))

    async def _full(self) -> None:
        """Return when stores must be written back to free memory."""
        if not self.cache_limit:
            await trio.sleep_forever()
        await trio.lowlevel.wait_readable(native.cache_full_fd())
        os.read(native.cache_full_fd(), 8)
