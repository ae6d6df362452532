# SPDX-License-Identifier: Apache-2.0
"""Memory under the window whose faults this process serves: by the engine, or per page for experiments.

Owns the userfaultfd and its reader.  The page of a failed fault is poisoned: KVM then raises SIGBUS in
the vCPU's thread, and never loops (kvm_send_hwpoison_signal(), arch/x86/kvm/mmu/mmu.c).
"""

from __future__ import annotations

import enum
import errno
import os

import trio

from daxfault import native
from daxfault.native import PAGE_SIZE, Answer, Engine, Uffd
from daxfault.native.kvm import WINDOW_LENGTH, Mapping
from daxfault.native.uffd import Event, EventKind, Mode
from daxfault.vmm.host.uffd_features import bits, has


class CachedMemory:
    """A file's page cache, whose pages the engine's threads install; the caller still owns `file`.

    The engine knows the file's length and installs no page past it, so no rescue is needed.
    """

    def __init__(self, engine: Engine, file: native.File, offset: int = 0) -> None:
        self._engine = engine
        self._file = file
        fd = file.cache_fd(writable=True)
        try:
            self.mapping = Mapping.of_file(fd, offset, WINDOW_LENGTH)
        finally:
            os.close(fd)
        features = bits("THREAD_ID", "EXACT_ADDRESS", "MISSING_SHMEM", "MINOR_SHMEM")
        modes = Mode.MISSING | Mode.MINOR
        if has(native.uffd_probe(), "WP_UNPOPULATED"):
            features |= bits("PAGEFAULT_FLAG_WP", "WP_HUGETLBFS_SHMEM", "WP_UNPOPULATED")
            modes |= Mode.WP
        self._uffd = Uffd(features)
        self._uffd.register(self.mapping.hva, WINDOW_LENGTH, modes)
        self._guest = engine.guest(os.dup(self._uffd.fileno()), features, os.getpid())
        self._guest.map(self.mapping.hva, WINDOW_LENGTH, file, offset, writable=True)

    def live(self) -> int:
        return WINDOW_LENGTH

    def revive(self, start: int) -> None:
        """Does nothing: the engine heals pages itself."""

    async def serve(self) -> None:
        """Answer the engine's failures until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(self._engine.failures_fd())
            for failure in self._engine.failures():
                self._engine.answer(failure, Answer.POISON)

    def release(self) -> None:
        self._guest.close()

    def close(self) -> None:
        self._guest.close()
        self.mapping.close()
        self._uffd.close()


class Reply(enum.Enum):
    """The answer to a fault in anonymous memory."""

    COPY = "copy"
    POISON = "poison"


class AnonymousMemory:
    """Anonymous memory for experiments and probes: each page is copied, or poisoned, `delay` seconds
    after its fault.  A page begins with its number, 8 bytes, little-endian.

    `faults` counts them.  Python serves the faults: it is slow.
    """

    def __init__(self, reply: Reply, *, delay: float = 0.0) -> None:
        self.reply = reply
        self.faults = 0
        self._delay = delay
        self.mapping = Mapping.anonymous(WINDOW_LENGTH)
        self._uffd = Uffd(0)
        self._uffd.register(self.mapping.hva, WINDOW_LENGTH, Mode.MISSING)

    def live(self) -> int:
        return WINDOW_LENGTH

    def revive(self, start: int) -> None:
        """Does nothing: a poisoned page stays poisoned."""

    async def serve(self) -> None:
        """Answer faults until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                await trio.lowlevel.wait_readable(self._uffd.fileno())
                for event in self._uffd.events():
                    if event.kind is EventKind.PAGEFAULT:
                        self.faults += 1
                        nursery.start_soon(self._answer, event)

    async def _answer(self, event: Event) -> None:
        await trio.sleep(self._delay)
        page = event.address // PAGE_SIZE * PAGE_SIZE
        number = (page - self.mapping.hva) // PAGE_SIZE
        try:
            if self.reply is Reply.COPY:
                self._uffd.copy(page, number.to_bytes(8, "little").ljust(PAGE_SIZE, b"\0"))
            else:
                self._uffd.poison(page, PAGE_SIZE)
        except OSError as e:
            if e.errno != errno.EEXIST:
                raise
            self._uffd.wake(page, PAGE_SIZE)  # two faults on one page

    def release(self) -> None:
        """Poison all pages, so that a waiting vCPU gets an error; a close of the userfaultfd would give it
        zeros."""
        for page in range(self.mapping.hva, self.mapping.hva + WINDOW_LENGTH, PAGE_SIZE):
            try:
                self._uffd.poison(page, PAGE_SIZE)
            except OSError as e:
                if e.errno != errno.EEXIST:
                    raise

    def close(self) -> None:
        self.mapping.close()
        self._uffd.close()
