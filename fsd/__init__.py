# SPDX-License-Identifier: Apache-2.0
"""fsd: serves a directory through FUSE, with one page cache for each file.

Owns the file server: names, attributes, handles, and noticing changes.  Must not know the guests that
map a file; imports only native.

    async with fsd.mounted(fsd.Filesystem(backing), mountpoint) as mount:
        ...
"""

from daxfault.fsd.errors import MountError
from daxfault.fsd.filesystem import Filesystem
from daxfault.fsd.mount import Mount, mounted
from daxfault.fsd.pins import Pinned

__all__ = ["Filesystem", "Mount", "MountError", "Pinned", "mounted"]
