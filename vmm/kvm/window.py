# SPDX-License-Identifier: Apache-2.0
"""The memory under the window's memslot, and the rescues for a dead tail.

Owns the mapping and the memslot's extent.  Must not run vCPUs, and must not touch the memory.

A mapping of a truncated file does not fail in a way that KVM reports when the guest takes async
page faults: the vCPU loops.  A rescue makes it fail openly.  It harms no guest, because the tail is
dead in any case, so a suspicion suffices for it.
"""

from __future__ import annotations

import enum
import os
from typing import Protocol

from daxfault.native import PAGE_SIZE
from daxfault.native.kvm import WINDOW, WINDOW_LENGTH, Kvm, Mapping

SLOT = 1


class Rescue(enum.StrEnum):
    """How a dead tail is made to fail, and the exit that the vCPU then takes."""

    UNMAP = "unmap"  # the file is unmapped: EFAULT
    FORBID = "forbid"  # its mapping is made PROT_NONE: EFAULT
    SHRINK = "shrink"  # the memslot ends before it: MMIO, with the exact gpa
    POISON = "poison"  # poison moved over it: SIGBUS, with the page's hva


class Memory(Protocol):
    """The memory under a window."""

    mapping: Mapping

    def live(self) -> int:
        """Bytes from the start that are not dead; whole pages.  May block."""
        ...

    def revive(self, start: int) -> None:
        """Map [start, end) again.  May block."""
        ...

    async def serve(self) -> None:
        """Serve the memory's faults until cancelled; some memory needs nothing."""
        ...

    def release(self) -> None:
        """Answer every fault with its page or an error, from now on: the machine ends.  May block."""
        ...

    def close(self) -> None: ...


class FileMemory:
    """A MAP_SHARED mapping of a file: the case of the 2020 series.  `fd` is taken over, closed in fact:
    of a file of our own mount that is for a thread.

    With `writable`, KVM leaves dirty what the guest has only read (kvm_release_page_dirty(); a load's
    fault maps for writing where it may).  Of a file on a FUSE mount such pages are written back, and if it
    was truncated behind the mount, that makes it longer again.
    """

    def __init__(self, fd: int, offset: int = 0, *, writable: bool = True) -> None:
        self._offset = offset
        self._access = os.O_RDWR if writable else os.O_RDONLY
        # Kept without access: at a kill the kernel closes what we have, and a descriptor of our own mount
        # would then wait for an answer of ours (FUSE_FLUSH), for ever.
        try:
            self._fd = self._reopen(fd, os.O_PATH)
            try:
                self.mapping = Mapping.of_file(fd, offset, WINDOW_LENGTH, writable=writable)
            except BaseException:
                os.close(self._fd)
                raise
        finally:
            os.close(fd)

    @staticmethod
    def _reopen(fd: int, flags: int) -> int:
        return os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC)

    def live(self) -> int:
        size = os.fstat(self._fd).st_size - self._offset
        return min(WINDOW_LENGTH, max(0, (size + PAGE_SIZE - 1) // PAGE_SIZE * PAGE_SIZE))

    def revive(self, start: int) -> None:
        fd = self._reopen(self._fd, self._access)
        try:
            self.mapping.map_tail_again(fd, self._offset, start)
        finally:
            os.close(fd)

    async def serve(self) -> None:
        """The kernel does."""

    def release(self) -> None:
        """The kernel does."""

    def close(self) -> None:
        self.mapping.close()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class Window:
    """The memslot over a Memory."""

    def __init__(self, kvm: Kvm, memory: Memory) -> None:
        self.memory = memory
        self.hva = memory.mapping.hva
        self.rescued: Rescue | None = None
        self._kvm = kvm
        self._failing = WINDOW_LENGTH  # from here on a rescue has made it fail
        kvm.memslot(SLOT, WINDOW, WINDOW_LENGTH, self.hva)

    def gpa_of(self, hva: int) -> int | None:
        offset = hva - self.hva
        return WINDOW + offset if 0 <= offset < WINDOW_LENGTH else None

    def dead(self, gpa: int) -> bool:
        """A guest's access there can only fail.  May block."""
        return 0 <= gpa - WINDOW < WINDOW_LENGTH and gpa - WINDOW >= min(self._failing, self.memory.live())

    def rescue(self, how: Rescue) -> bool:
        """Make the dead tail fail openly; -> False when nothing is dead that does not fail already.
        May block.  OSError when the kernel refuses."""
        start = self.memory.live()
        if start >= self._failing:
            return False
        mapping = self.memory.mapping
        if how is Rescue.UNMAP:
            mapping.unmap_tail(start)
        elif how is Rescue.FORBID:
            mapping.forbid_tail(start)
        elif how is Rescue.POISON:
            mapping.poison_tail(start)
        else:
            self._extend(start)
        self._failing, self.rescued = start, how
        return True

    def revive(self) -> None:
        """The file has grown: undo the rescue.  Every vCPU must have stopped.  May block."""
        if self.rescued is None:
            return
        if self.rescued is Rescue.SHRINK:
            self._extend(WINDOW_LENGTH)
        else:
            self.memory.revive(self._failing)
        self._failing, self.rescued = WINDOW_LENGTH, None

    def _extend(self, length: int) -> None:
        self._kvm.memslot(SLOT, WINDOW, length, self.hva)

    def close(self) -> None:
        """After the machine has gone.  Safe to call twice."""
        self.memory.close()
