# SPDX-License-Identifier: Apache-2.0
"""Attribute replies to the kernel.

Owns the conversion of a stat result, and how long the kernel may cache attributes and names.
Must not call stat(2) itself.
"""

from __future__ import annotations

import os

from pyfuse3 import EntryAttributes

from daxfault.fsd.inodes import Inode


class Replies:
    """Builds attribute replies."""

    def __init__(self, attr_timeout: float, entry_timeout: float) -> None:
        """Timeouts are in seconds."""
        self._attr_timeout = attr_timeout
        self._entry_timeout = entry_timeout

    def attributes(self, inode: Inode, st: os.stat_result) -> EntryAttributes:
        """The reply for `inode`, whose backing file has the stat result `st`.

        While a guest maps the file for writing, times change without a request, so the kernel must not
        cache the attributes.
        """
        inode.size_sent(st.st_size)
        entry = EntryAttributes()
        entry.st_ino = inode.nodeid
        entry.st_mode = st.st_mode
        entry.st_nlink = st.st_nlink
        entry.st_uid = st.st_uid
        entry.st_gid = st.st_gid
        entry.st_rdev = st.st_rdev
        entry.st_size = st.st_size
        entry.st_blksize = st.st_blksize
        entry.st_blocks = st.st_blocks
        entry.st_atime_ns = st.st_atime_ns
        entry.st_mtime_ns = st.st_mtime_ns
        entry.st_ctime_ns = st.st_ctime_ns
        entry.entry_timeout = self._entry_timeout
        stores_unseen = inode.file is not None and inode.file.mapped_writable
        entry.attr_timeout = 0 if stores_unseen else self._attr_timeout
        return entry
