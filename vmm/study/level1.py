# SPDX-License-Identifier: Apache-2.0
"""A stand-in as a nested host: a part of its window is a file for its own guests.

Owns that file and the host that serves it, which live as long as the stand-in.  A vCPU of the stand-in
reads each page of the file from the window, in guest kernel mode and with an entry in the exception
table, as get_user_pages() does in a host that is itself a guest.  If that access faults, that vCPU gets
the answer of the host below.  Must not decide faults of either level.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
import os
import threading
from collections.abc import AsyncIterator

import trio

from daxfault.native import Engine, File
from daxfault.vmm.host.host import Host, hosting
from daxfault.vmm.study.standin import StandIn, StandInError

_DEADLINE = 10.0  # seconds to wait for a page or an answer; a busy machine may delay a vCPU
# One vCPU per engine thread: an access that never ends delays no other page.
_VCPUS = (62, 61, 60, 59)


class WindowFile:
    """Part of a stand-in's window as the only file of a host (session.FileServer and session.Pinned).

    It is read-only, and pages are kept once they were read: a host does not notify its guests when a
    file changes.
    """

    inode = 0

    def __init__(self, guest: StandIn, moffset: int, length: int) -> None:
        self._guest = guest
        self._moffset = moffset
        self._memory = os.memfd_create("daxfault-level1", os.MFD_CLOEXEC)
        os.ftruncate(self._memory, length)
        self.file = File(os.dup(self._memory), writable=False)
        self.file.fetch_by(self._fetch)
        self.fetched = 0  # pages
        self._trio = trio.lowlevel.current_trio_token()
        self._vcpus = itertools.cycle(_VCPUS)
        self._own = threading.local()

    async def pin(self, fd: int) -> WindowFile:
        """The one file, for any descriptor: the stand-in has no mount."""
        return self

    def release(self) -> None:
        """Does nothing: the file outlives its guests."""

    def mapping_changed(self, inode: int) -> None:
        """Does nothing: there is no cache to invalidate."""

    def _fetch(self, offset: int, length: int) -> None:
        """Runs in a thread of the engine, or one that retries poisoned pages."""
        if not hasattr(self._own, "vcpu"):
            self._own.vcpu = next(self._vcpus)
        text = f"kread {self._moffset + offset} {length}"
        try:
            got = trio.from_thread.run(self._guest.access, self._own.vcpu, text, trio_token=self._trio)
        except (StandInError, trio.RunFinishedError, trio.Cancelled):
            raise OSError(errno.EIO, f"the stand-in is gone: {text}") from None
        if got.outcome != "ok":
            raise OSError(errno.EFAULT if got.outcome == "efault" else errno.EIO, f"{text}: {got.outcome}")
        os.pwrite(self._memory, bytes.fromhex(got.value), offset)
        self.fetched += 1

    def close(self) -> None:
        self.file.close()
        os.close(self._memory)


@dataclasses.dataclass(frozen=True, slots=True)
class Level1:
    """The host in a stand-in, and the nursery of its guests; standin() makes a guest."""

    host: Host
    guests: trio.Nursery
    file: WindowFile


@contextlib.asynccontextmanager
async def level1(guest: StandIn, moffset: int, length: int) -> AsyncIterator[Level1]:
    """Serve [moffset, moffset + length) of the guest's window as a file to nested guests.

    The end of the body ends the guest, because an access of its vCPUs may otherwise never end.
    """
    file = WindowFile(guest, moffset, length)
    engine = Engine(answer_seconds=_DEADLINE, source_seconds=_DEADLINE, fill_threads=len(_VCPUS))
    try:
        async with hosting(file, engine=engine) as (host, nursery):
            guests: trio.Nursery = await nursery.start(_until_gone, guest.process)
            try:
                yield Level1(host, guests, file)
            finally:
                guest.process.kill()
    finally:
        file.close()


async def _until_gone(process: trio.Process, task_status: trio.TaskStatus[trio.Nursery]) -> None:
    """A nursery that is cancelled when the process ends."""
    async with trio.open_nursery() as guests:
        task_status.started(guests)
        await process.wait()
        guests.cancel_scope.cancel()
