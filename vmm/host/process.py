# SPDX-License-Identifier: Apache-2.0
"""A process, which stays this one even when its number is given to another.

Owns a pidfd.  Must not know what the process is to us.
"""

from __future__ import annotations

import os

import trio


class Process:
    """Process `pid`, OSError when it is gone or cannot be watched."""

    def __init__(self, pid: int) -> None:
        self._fd = os.pidfd_open(pid)

    async def ended(self) -> None:
        """Return when all its threads have ended."""
        await trio.lowlevel.wait_readable(self._fd)

    def close(self) -> None:
        """A second call does nothing.  Tasks that wait get trio.ClosedResourceError."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            trio.lowlevel.notify_closing(fd)
            os.close(fd)
