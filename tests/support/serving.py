# SPDX-License-Identifier: Apache-2.0
"""A mount, a host and guests for a test, in the test's own trio loop.

Owns putting them up and taking them down, whatever the test does.  Calls on the
mount go through `call`: a thread, since this very loop must answer them.
"""

import contextlib
import dataclasses
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import trio
from needs import require, require_fuse
from patience import PATIENCE

from daxfault import fsd, native
from daxfault.vmm.designs import DESIGNS, Design
from daxfault.vmm.host.host import Host, hosting
from daxfault.vmm.host.records import Record
from daxfault.vmm.host.watchdog import Watchdog
from daxfault.vmm.study.standin import StandIn, standin

PAGE = native.PAGE_SIZE
RANGE = native.RANGE_SIZE


@dataclasses.dataclass
class Serving:
    """`backing` is served at `mount`; `host` serves guests, who live in `nursery`."""

    backing: Path
    mount: Path
    fs: fsd.Filesystem
    host: Host
    nursery: trio.Nursery

    def make(self, name: str, data: bytes) -> Path:
        """Make a backing file; -> its path on the mount."""
        (self.backing / name).write_bytes(data)
        return self.mount / name

    @contextlib.asynccontextmanager
    async def guest(self, design: str | Design = "report", **options: Any) -> AsyncIterator[StandIn]:
        chosen = DESIGNS[design] if isinstance(design, str) else design
        async with standin(self.host, self.nursery, chosen, **options) as guest:
            yield guest

    @contextlib.asynccontextmanager
    async def mapped(
        self, name: str, data: bytes, mode: str = "w", design: str | Design = "report", **options: Any
    ) -> AsyncIterator[StandIn]:
        """A guest that has the file mapped at the start of its window, as `f`."""
        path = self.make(name, data)
        length = max(RANGE, (len(data) + RANGE - 1) // RANGE * RANGE)
        async with self.guest(design, **options) as guest:
            await guest.open("f", path, "rw" if mode == "w" else "ro")
            await guest.map("f", 0, length, 0, mode)
            yield guest


async def call(function: Callable[..., Any], *args: Any) -> Any:
    """A blocking call on the mount."""
    return await trio.to_thread.run_sync(function, *args)


async def eventually(condition: Callable[[], Any], what: str) -> Any:
    """Wait until `condition` is true: for what has no event to wait for (inotify, a kernel's release)."""
    with trio.move_on_after(PATIENCE):
        while not (found := condition()):  # noqa: ASYNC110 - the condition is no event of ours
            await trio.sleep(0.001)
        return found
    raise AssertionError(f"never: {what}")


async def recorded(s: Serving, count: int) -> list[Record]:
    """The records of failed faults, of which there are at least `count`: a guest is told first, and then
    it is recorded."""
    await eventually(lambda: s.host.records.total >= count, f"{count} records")
    return list(s.host.records)


async def noticed(guest: StandIn, name: str, size: int) -> None:
    """Wait until the host has acted upon a change of size behind the mount."""
    file = guest.session.file(name)

    def acted() -> bool:
        state = file.state()
        return state.known_size == size and not state.retrying

    await eventually(acted, f"{name} noticed to have {size} bytes")


@contextlib.asynccontextmanager
async def serving(
    top: Path,
    *,
    backing: Path | None = None,
    loop_seconds: float = 0.1,
    engine: native.Engine | None = None,
) -> AsyncIterator[Serving]:
    """Mount `top`/backing, or another directory, at `top`/mount, with a host."""
    require_fuse()
    try:
        native.uffd_probe()
    except OSError as exc:
        require(False, f"userfaultfd: {exc}")
    backing = backing or top / "backing"
    mount = top / "mount"
    backing.mkdir(exist_ok=True)
    mount.mkdir(exist_ok=True)
    fs = fsd.Filesystem(backing)
    watchdog = Watchdog(seconds=loop_seconds, cycles=50)
    with trio.fail_after(4 * PATIENCE):
        async with fsd.mounted(fs, mount), hosting(fs, watchdog=watchdog, engine=engine) as (host, nursery):
            yield Serving(backing, mount, fs, host, nursery)
    assert not os.path.ismount(mount)  # noqa: ASYNC240 - it is gone, nobody waits
