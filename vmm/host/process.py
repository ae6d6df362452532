# SPDX-License-Identifier: Apache-2.0
"""A reference to a process that stays valid when its pid is reused.

Owns a pidfd.  Must not know the role of the process.
"""

from __future__ import annotations

import os

import trio


class Process:
    """Process `pid`; OSError when it has ended or cannot be watched."""

    def __init__(self, pid: int) -> None:
        self._fd = os.pidfd_open(pid)

    async def ended(self) -> None:
        """Return when all its threads have ended."""
        await trio.lowlevel.wait_readable(self._fd)

    def close(self) -> None:
        """Safe to call twice.  Waiting tasks get trio.ClosedResourceError."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            trio.lowlevel.notify_closing(fd)
            os.close(fd)
