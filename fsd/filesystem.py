# SPDX-License-Identifier: Apache-2.0
"""The file system of one mount, put together.

Owns the order in which the parts are made and ended.  Must not do any part's work.

    Base          state, threads, attribute replies         replies.py
    Names         lookup, mkdir, rename, ...                names.py
    Directories   opendir, readdir, ...                     directories.py
    Opened        native.File an inode, changes, pins       in_use.py
    Files         open, read, write, ...                    files.py
    Attributes    getattr, setattr, xattr, statfs           attributes.py
"""

from __future__ import annotations

import logging
import os

from daxfault.fsd.attributes import Attributes
from daxfault.fsd.watch import Watch

log = logging.getLogger(__name__)


class Filesystem(Attributes):
    """Passes a backing directory through, file data by way of one native.File an inode.

    Constructor arguments and errors are Base's.  Every method but `close` is
    for the trio thread that serves the mount.  It can be mounted once, with
    `mounted` (mount.py), which closes it; one that is not mounted is for its
    maker to close.
    """

    def __init__(
        self,
        backing: str | os.PathLike[str],
        *,
        attr_timeout: float = 1.0,
        entry_timeout: float = 1.0,
        max_descriptors: int | None = None,
        xattr: bool = True,
        direct_io: bool = False,
    ) -> None:
        super().__init__(
            backing,
            attr_timeout=attr_timeout,
            entry_timeout=entry_timeout,
            max_descriptors=max_descriptors,
            xattr=xattr,
            direct_io=direct_io,
        )
        self._stale = {}
        self._invalidating = set()
        self._nursery = None
        self.watch = Watch()

    def close(self) -> None:
        """End everything that clients left open; a second call does nothing.

        Guests' stores are written back first; where that fails it is logged,
        since nobody is left to be told.
        """
        for file in list(self.files()):
            try:
                file.write_back()
            except OSError as exc:
                log.error("file %d: stores of guests could not be written back: %s", file.id, exc)
        for inode in self.inodes:
            if inode.file is not None:
                inode.file.close()
                inode.file = None
        self.handles.clear()
        while self.directories:
            os.close(self.directories.popitem()[1].fd)
        self.watch.close()
        self.inodes.close()
