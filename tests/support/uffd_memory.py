# SPDX-License-Identifier: Apache-2.0
"""Memory that is registered with a userfaultfd of this process.  Nothing may touch it without an answer."""

import contextlib
import mmap
from collections.abc import Iterator

from needs import require

from daxfault import native
from daxfault.native import Mode, Uffd

PAGE = native.PAGE_SIZE


class Memory:
    """`pages` of anonymous memory or of a memfd, registered for `modes`."""

    def __init__(self, uffd: Uffd, pages: int, modes: Mode, *, fd: int = -1) -> None:
        flags = mmap.MAP_SHARED if fd >= 0 else mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self.map = mmap.mmap(fd, pages * PAGE, flags)
        self.address = int(native.ffi.cast("uintptr_t", native.ffi.from_buffer(self.map)))
        uffd.register(self.address, pages * PAGE, modes)


@contextlib.contextmanager
def uffd_with(features: int) -> Iterator[Uffd]:
    try:
        offered = native.uffd_probe()
    except OSError as exc:
        require(False, f"userfaultfd: {exc}")
    require(offered & features == features, f"userfaultfd features {features & ~offered:#x}")
    with Uffd(features) as uffd:
        yield uffd
