# SPDX-License-Identifier: Apache-2.0
"""The memory under the window's memslot, and the rescues for a dead tail.

Owns the mapping and the memslot's extent.  Must not run vCPUs, and must not touch the memory.

When the guest uses async page faults, KVM does not report accesses past the end of a truncated file:
the vCPU loops.  A rescue changes the mapping so that they cause an exit.  A suspicion is enough for it:
it harms no guest, because the tail is dead in any case.
"""

from __future__ import annotations

import enum
import os
from typing import Protocol

from daxfault.native import PAGE_SIZE
from daxfault.native.kvm import WINDOW, WINDOW_LENGTH, Kvm, Mapping

SLOT = 1


class Rescue(enum.StrEnum):
    """The change that makes a dead tail fail, and the exit that it causes."""

    UNMAP = "unmap"  # the file is unmapped: EFAULT
    FORBID = "forbid"  # its mapping is made PROT_NONE: EFAULT
    SHRINK = "shrink"  # the memslot ends before it: MMIO, with the exact gpa
    POISON = "poison"  # poison moved over it: SIGBUS, with the page's hva


class Memory(Protocol):
    """The memory under a window."""

    mapping: Mapping

    def live(self) -> int:
        """Bytes from the start that are not dead, whole pages.  May block."""
        ...

    def revive(self, start: int) -> None:
        """Map [start, end) again.  May block."""
        ...

    async def serve(self) -> None:
        """Serve the memory's faults until cancelled; some memory needs nothing."""
        ...

    def release(self) -> None:
        """Answer every pending and later fault with its page or an error: the machine ends.  May block."""
        ...

    def close(self) -> None: ...


class FileMemory:
    """A MAP_SHARED mapping of a file: the case of the 2020 series.  Takes over `fd` and closes it; for a
    file of our own mount that must be done in a thread.

    With `writable`, KVM marks pages dirty that the guest has only read (kvm_release_page_dirty(); a
    load's fault maps for writing if it may).  On a FUSE mount these are written back, which extends a
    file again that was truncated behind the mount.
    """

    def __init__(self, fd: int, offset: int = 0, *, writable: bool = True) -> None:
        self._offset = offset
        self._access = os.O_RDWR if writable else os.O_RDONLY
        # Kept with O_PATH: when this process is killed, the kernel closes its descriptors, and a normal
        # one of our own mount would wait for this process (FUSE_FLUSH): a deadlock.
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
        """Does nothing: the kernel serves the faults."""

    def release(self) -> None:
        """Does nothing: the kernel serves the faults."""

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
        self._failing = WINDOW_LENGTH  # a rescue has made the part from here on fail
        kvm.memslot(SLOT, WINDOW, WINDOW_LENGTH, self.hva)

    def gpa_of(self, hva: int) -> int | None:
        offset = hva - self.hva
        return WINDOW + offset if 0 <= offset < WINDOW_LENGTH else None

    def dead(self, gpa: int) -> bool:
        """Whether a guest's access to `gpa` can only fail.  May block."""
        return 0 <= gpa - WINDOW < WINDOW_LENGTH and gpa - WINDOW >= min(self._failing, self.memory.live())

    def rescue(self, how: Rescue) -> bool:
        """Make accesses to the dead tail cause an exit; -> False when there is no new dead part.
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
        """Undo the rescue after the file has grown.  Every vCPU must have stopped.  May block."""
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
        """Free the memory, after the machine has been closed.  Safe to call twice."""
        self.memory.close()
