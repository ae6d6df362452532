# SPDX-License-Identifier: Apache-2.0
"""The host: guests, and the answers to their failed faults.

Owns the engine and the guests' sessions.  Faults that resolve never come here.  The design of the
guest decides about a failed fault, in a separate thread, so that neither a slow file server nor a busy
event loop delays an error.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import functools
import logging
import os
import select
import socket
import struct
import threading
from collections.abc import AsyncIterator, Callable, Container
from typing import Any, Protocol

import trio

from daxfault import native
from daxfault.native import Answer, Engine, Failure, Guest
from daxfault.native.descriptors import connections_of_one_process, room_for_guest
from daxfault.native.wire import ProtocolError
from daxfault.vmm.designs import Design, Verdict
from daxfault.vmm.errors import alone, logged
from daxfault.vmm.host.healer import Healer
from daxfault.vmm.host.peer import Peer
from daxfault.vmm.host.records import Newest, Record
from daxfault.vmm.host.session import HELLO_SECONDS, FileServer, Session
from daxfault.vmm.host.watchdog import Loop, Watchdog

log = logging.getLogger(__name__)

_REFUSED_SECONDS = 1.0  # how long a peer may take to send the request that is refused
_REFUSED_MAX = 8  # peers that are refused at a time; the connections of others are closed
# accept(2): the peer has left already, or a resource is used up at the moment
_ACCEPT_LATER = (errno.ECONNABORTED, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Served(Protocol):
    """The session of a guest of any kind; session.Session is one, and documents the methods."""

    pid: int
    design: Design
    guest: Guest | None

    async def greet(self, seconds: float) -> Guest: ...

    async def serve(self) -> None: ...

    async def gone(self) -> None: ...

    async def close(self) -> None: ...

    async def orphans_gone(self) -> None: ...

    async def release(self) -> None: ...

    def name_of(self, file: int) -> str: ...


class Host:
    """Serves guests.  Make one with `hosting()`."""

    def __init__(self, files: FileServer, engine: Engine, watchdog: Watchdog | None) -> None:
        self.engine = engine
        self.records: Newest[Record] = Newest()
        self.loops: list[Loop] = []
        self.hello_seconds = HELLO_SECONDS
        self._files = files
        self.healer = Healer(native.File.by_id)
        self._watchdog = watchdog
        self._sessions: dict[int, Served] = {}
        self._connections: collections.Counter[int] = collections.Counter()  # by process
        self._refused = 0  # peers whose connection is not closed yet
        self._ended = threading.Event()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._decide_all, name="df-policy", daemon=True)
        self._thread.start()

    # ---- guests

    async def guest(
        self,
        sock: socket.socket,
        pid: int,
        design: Design,
        task_status: trio.TaskStatus[Session] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve the guest behind `sock`, process `pid`, until its service ends; takes over `sock`.

        It ends when the connection closes, the process dies (pidfd_open(2)) or a message breaks the
        protocol.  Other guests are not affected.
        """
        await self.serve(Session(sock, pid, self.engine, self._files, design), task_status)

    async def serve(
        self, session: Served, task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve a guest of any kind until its service ends."""
        try:
            guest = await session.greet(self.hello_seconds)
            self._sessions[guest.id] = session
            task_status.started(session)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._until_gone, session, nursery.cancel_scope)
                await session.serve()
                nursery.cancel_scope.cancel()
        except Exception as e:
            reason = alone(e)
            why = str(reason) or type(reason).__name__
            expected = isinstance(reason, ProtocolError | trio.TooSlowError | OSError)
            # an unexpected exception is a bug of the host; it too ends only this guest's connection
            trace = None if expected else e
            log.warning(
                "guest %d: %s; its connection is closed, other guests go on",
                session.pid,
                why,
                exc_info=trace,
            )
        finally:
            with trio.CancelScope(shield=True), logged(log, "guest %d: its end", session.pid):
                await session.close()
            if session.guest is not None:
                self._sessions.pop(session.guest.id, None)
            try:
                await session.orphans_gone()
            finally:
                with trio.CancelScope(shield=True), logged(log, "guest %d: its files", session.pid):
                    await session.release()

    async def listen(
        self, path: str, design: Design, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve guests that connect to a unix socket at `path`, until cancelled.

        Accepts processes of this user and of root only (SO_PEERCRED, unix(7)).
        """
        make = functools.partial(Session, engine=self.engine, files=self._files, design=design)
        await self.accept(path, make, task_status=task_status)

    async def accept(
        self,
        path: str,
        make: Callable[[socket.socket, int], Served],
        *,
        user: int | None = None,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve the session `make(socket, pid)` of each process that connects to a unix socket at
        `path`, until cancelled.  Also accepts processes of `user`."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as listener:
            try:
                listener.bind(path)
            except OSError as e:
                # a path that is too long has no errno
                raise OSError(e.errno or errno.ENAMETOOLONG, e.strerror or str(e), path) from None
            try:
                # no connection succeeds before listen(); umask(2) would affect all threads
                os.chmod(path, 0o600)
                if user is not None:
                    os.chown(path, user, -1, follow_symlinks=False)
                listener.listen()
                native.keep_socket(listener.fileno())
                server = trio.socket.from_stdlib_socket(listener)
                async with trio.open_nursery() as nursery:
                    task_status.started()
                    while True:
                        try:
                            conn, _ = await server.accept()
                        except OSError as e:
                            if e.errno not in _ACCEPT_LATER:
                                raise
                            log.warning("%s: %s; new guests wait", path, e.strerror)
                            await trio.sleep(0.1)  # no event reports when the resource is free again
                            continue
                        await self._adopt(conn, make, {0, os.geteuid(), user}, nursery)
            finally:
                native.keep_no_socket(listener.fileno())
                with contextlib.suppress(OSError):
                    os.unlink(path)

    async def _adopt(
        self,
        conn: trio.socket.SocketType,
        make: Callable[[socket.socket, int], Served],
        users: Container[int | None],
        nursery: trio.Nursery,
    ) -> None:
        pid, uid, _ = struct.unpack("3i", conn.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        sock = socket.socket(fileno=conn.detach())
        if uid not in users:
            log.warning("guest %d: refused, it runs as user %d", pid, uid)
            sock.close()
        elif self._connections[pid] >= connections_of_one_process() or not room_for_guest():
            log.warning("guest %d: refused, descriptors run out", pid)
            nursery.start_soon(self._refuse, Peer(sock, pid))
        else:
            self._connections[pid] += 1
            nursery.start_soon(self._serve_peer, make(sock, pid), pid)

    async def _serve_peer(self, session: Served, pid: int) -> None:
        try:
            await self.serve(session)
        finally:
            self._connections[pid] -= 1
            if not self._connections[pid]:
                del self._connections[pid]

    async def _refuse(self, peer: Peer) -> None:
        self._refused += 1
        try:
            with contextlib.suppress(OSError), trio.move_on_after(_REFUSED_SECONDS):
                if self._refused <= _REFUSED_MAX:
                    await peer.refuse(errno.EMFILE)
        finally:
            self._refused -= 1
            peer.close()

    @staticmethod
    async def _until_gone(session: Served, scope: trio.CancelScope) -> None:
        await session.gone()
        scope.cancel()

    def session(self, guest: int) -> Served | None:
        """The session of the guest with this id."""
        return self._sessions.get(guest)

    # ---- failed faults

    async def heal(self) -> None:
        """Have poisoned pages read again, including those of forked children, until cancelled."""
        await self.healer.run()

    def _decide_all(self) -> None:
        """The policy thread: answer every failed fault, in order of arrival."""
        poll = select.poll()
        poll.register(self.engine.failures_fd(), select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while not self._ended.is_set():
            failures = self.engine.failures()
            for failure in failures:
                try:
                    self._decide(failure)
                except Exception:
                    # fail closed: this access ends in an error
                    log.exception("policy for %s", failure)
                    self.engine.answer(failure, Answer.POISON)
                self.healer.failed(failure)
            if not failures:
                poll.poll()

    def _decide(self, failure: Failure) -> None:
        session = self._sessions.get(failure.guest)
        verdict = Verdict(Answer.POISON) if session is None else session.design.decide(failure)
        loop = self._watchdog.saw(failure) if self._watchdog else None
        if loop is not None:
            self.loops.append(loop)
            verdict = Verdict(Answer.POISON)  # end the detected loop
        delivery = self.engine.answer(failure, verdict.answer, verdict.otherwise)
        if session is None:
            record = Record(failure, 0, "-", "-", delivery)
        else:
            name = session.name_of(failure.file)
            record = Record(failure, session.pid, name, session.design.name, delivery)
        self.records.add(record)

    async def close(self) -> None:
        """End the policy thread, then the engine."""
        self._ended.set()
        os.eventfd_write(self._wake, 1)
        await trio.to_thread.run_sync(self._thread.join)
        await trio.to_thread.run_sync(self.engine.close)
        os.close(self._wake)


@contextlib.asynccontextmanager
async def hosting(
    files: FileServer,
    *,
    watchdog: Watchdog | None = None,
    engine: Engine | None = None,
) -> AsyncIterator[tuple[Host, trio.Nursery]]:
    """A host over `files` while the body runs, and the nursery of its guests' tasks.

    At the end, closes the guests' connections and then the engine.
    """
    host = Host(files, engine or native.Engine(), watchdog)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.heal)
            yield host, nursery
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await host.close()
