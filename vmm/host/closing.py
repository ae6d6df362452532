# SPDX-License-Identifier: Apache-2.0
"""Closing descriptors that a peer sent.

Owns the threads that do it, at most one per peer.  No task may wait for a close(2), nor get its
result: it sends a request to the file's server, which may be this process (fs/fuse/file.c,
fuse_flush()) and may never answer, and its error does not concern the host.  The threads are daemons:
the process may end before them.
"""

from __future__ import annotations

import collections
import logging
import os
import threading
from collections.abc import Iterable

import trio

PENDING_MAX = 16  # of a peer; no message is received from it while it has more

log = logging.getLogger(__name__)


class Closing:
    """The descriptors of one peer."""

    def __init__(self, peer: int) -> None:
        """`peer`: its process id, for the log."""
        self._peer = peer
        self._fds: collections.deque[int] = collections.deque()
        self._lock = threading.Lock()
        self._runs = False

    def close(self, fds: Iterable[int]) -> None:
        """Have these closed soon, without waiting.  Call it in the trio thread."""
        with self._lock:
            self._fds.extend(fds)
            if self._runs or not self._fds:
                return
            self._runs = True
        # a daemon thread of trio, not counted by any capacity limiter
        trio.lowlevel.start_thread_soon(self._run, lambda _: None, name="df-close")

    async def room(self) -> None:
        """Return when at most PENDING_MAX descriptors are left to close."""
        while len(self._fds) > PENDING_MAX:  # noqa: ASYNC110 - closed by a thread that cannot set an Event
            await trio.sleep(0.01)

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._fds:
                    self._runs = False
                    return
                fd = self._fds.popleft()
            try:
                os.close(fd)  # it is closed, whatever the error (close(2))
            except OSError as e:
                log.info("guest %d: closing a descriptor that it sent: %s", self._peer, e.strerror)
