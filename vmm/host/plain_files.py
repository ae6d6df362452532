# SPDX-License-Identifier: Apache-2.0
"""Files without a file server: a guest's own descriptor is the backing file.

Owns one native.File for each inode.  For guests whose files need no server, and for
measuring the engine alone.
"""

from __future__ import annotations

import dataclasses
import os
import stat

from daxfault.native import File


class PlainPinned:
    """A file in use; see daxfault.vmm.host.session.Pinned."""

    def __init__(self, owner: PlainFiles, key: tuple[int, int], file: File) -> None:
        self.file = file
        self.inode = key[1]
        self._owner: PlainFiles | None = owner
        self._key = key

    def release(self) -> None:
        owner, self._owner = self._owner, None
        if owner is not None:
            owner.unpin(self._key)


@dataclasses.dataclass(slots=True)
class _Use:
    file: File
    pins: int = 0


class PlainFiles:
    """A daxfault.vmm.host.session.FileServer over whatever guests open."""

    def __init__(self) -> None:
        self._uses: dict[tuple[int, int], _Use] = {}

    async def pin(self, fd: int) -> PlainPinned:
        """OSError EINVAL when `fd` is not a regular file, else as open(2)."""
        st = os.fstat(fd)
        if not stat.S_ISREG(st.st_mode):
            raise OSError(22, f"descriptor {fd} is not a regular file")
        key = (st.st_dev, st.st_ino)
        use = self._uses.get(key)
        if use is None:
            use = self._uses[key] = _Use(self._open(fd))
        use.pins += 1
        return PlainPinned(self, key, use.file)

    def _open(self, fd: int) -> File:
        # opened again: the guest's descriptor may be O_APPEND, and shares its offset
        path = f"/proc/self/fd/{fd}"
        try:
            return File(os.open(path, os.O_RDWR | os.O_CLOEXEC), writable=True)
        except OSError:
            return File(os.open(path, os.O_RDONLY | os.O_CLOEXEC), writable=False)

    def unpin(self, key: tuple[int, int]) -> None:
        use = self._uses[key]
        use.pins -= 1
        if not use.pins:
            del self._uses[key]
            use.file.close()

    def mapping_changed(self, inode: int) -> None:
        """There is no cache to invalidate."""

    def file(self, path: str | os.PathLike[str]) -> File:
        """The native.File of a path that a guest has open.  KeyError when none has."""
        st = os.stat(path)
        return self._uses[st.st_dev, st.st_ino].file
