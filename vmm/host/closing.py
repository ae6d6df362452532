# SPDX-License-Identifier: Apache-2.0
"""Closing descriptors that a peer sent.

Owns the threads that do it, one a peer at a time.  Must not let the answer of a close(2) reach
anybody: it asks the file's server, which may be this very process (fs/fuse/file.c, fuse_flush()), may
report an error that is none of ours, and may never answer.  So no task waits for it, and the thread can
be left behind.
"""

from __future__ import annotations

import collections
import logging
import os
import threading
from collections.abc import Iterable

import trio

PENDING_MAX = 16  # of a peer; it is not listened to while it has more

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
        """Close these, soon.  In the trio thread."""
        with self._lock:
            self._fds.extend(fds)
            if self._runs or not self._fds:
                return
            self._runs = True
        # a daemon thread of trio's own, which counts against nobody's limit
        trio.lowlevel.start_thread_soon(self._run, lambda _: None, name="df-close")

    async def room(self) -> None:
        """Return when few are waiting to be closed."""
        while len(self._fds) > PENDING_MAX:  # noqa: ASYNC110 - a thread of no trio's closes them
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
                log.info("guest %d: closing a descriptor of its: %s", self._peer, e.strerror)
