# SPDX-License-Identifier: Apache-2.0
"""Requests to a running host: its rules, its records, the environment of its programs.

Owns finding the host of a mount, and the requests: one JSON object per line in each direction, on a
unix socket.  Must not know the command line.

    {"do": "inject", "rule": "EIO,file=*.db"}  ->  {"is": 1}, the rule's id
    {"do": "remove", "id": 1}                  ->  {"is": 1}, how many; without id: all
    {"do": "rules"}                            ->  {"is": [{"id", "rule", "on"}, ...]}
    {"do": "records"}                          ->  {"is": [...]}, the newest failed faults
    {"do": "failed", "pid": 5, "file": 1, "offset": 4096}
                                               ->  {"is": {"path", "errno", "reason"}}, of a page whose
                                                   access by this process failed; file 1: memfd:daxfault:1
    {"do": "unwritten"}                        ->  {"is": [{"file", "bytes", "error"}, ...]}, stores of
                                                   programs that the last write-back could not write
    {"do": "write_back"}                       ->  the same, after another attempt
    {"do": "status"}                           ->  {"is": {...}}, counters and memory

A refusal is {"error": "..."}.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import logging
import os
import socket
from collections.abc import Callable
from typing import Any

import trio

from daxfault import native
from daxfault.vmm.errors import DaxfaultError, UsageError
from daxfault.vmm.programs import faults, sockets
from daxfault.vmm.programs.programs import Programs

log = logging.getLogger(__name__)


def _without_traceback(record: logging.LogRecord) -> bool:
    record.exc_info = None
    return True


# it tries again: descriptors that have run out are no error of the program
logging.getLogger("trio.serve_listeners").addFilter(_without_traceback)

LINE_MAX = 1 << 16
SECONDS = 10.0


class Control:
    """The host's end."""

    def __init__(self, programs: Programs) -> None:
        self._programs = programs

    async def listen(
        self, device: int, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Answer requests for the mount with this st_dev until cancelled; this user and root only."""
        sockets.make_directory()
        path = sockets.control(device)
        with contextlib.suppress(FileNotFoundError):
            path.unlink()  # left by a killed host: an st_dev belongs to one mount only
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as listener:
            listener.bind(os.fspath(path))
            ours = path.stat()
            try:
                path.chmod(0o600)
                listener.listen()
                server = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
                task_status.started()
                await trio.serve_listeners(self._talk, [server])
            finally:
                # if our mount ended first, another mount may have its st_dev now
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(path.stat(), ours):
                        path.unlink()

    async def _talk(self, stream: trio.SocketStream) -> None:
        if (uid := sockets.peer_user(stream.socket)) not in (0, os.geteuid()):
            log.warning("a process of user %d was refused", uid)
            return
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            line = b""
            async for some in stream:
                line += some
                while b"\n" in line:
                    request, line = line.split(b"\n", 1)
                    await stream.send_all(json.dumps(await self._answer(request)).encode() + b"\n")
                if len(line) > LINE_MAX:
                    return

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            do = request.pop("do")
            answers: dict[str, Callable[..., Any]] = {
                "inject": self._inject,
                "remove": self._remove,
                "rules": self._rules,
                "records": self._records,
                "failed": self._failed,
                "unwritten": self._unwritten,
                "write_back": self._write_back,
                "status": self._status,
            }
            answer = answers[do](**request)
            return {"is": await answer if inspect.isawaitable(answer) else answer}
        except (faults.BadRule, OSError) as e:
            return {"error": str(e)}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
            return {"error": f"not a request: {e}"}

    def _inject(self, rule: str) -> int:
        return self._programs.rules.add(faults.parse(rule))

    def _remove(self, id: int | None = None) -> int:
        return self._programs.rules.remove(id)

    def _rules(self) -> list[dict[str, Any]]:
        return [{"id": id, "rule": str(rule), "on": on} for id, rule, on in self._programs.rules]

    def _records(self) -> list[dict[str, Any]]:
        return [record.as_json() for record in self._programs.host.records]

    def _failed(self, pid: int, file: int, offset: int) -> dict[str, Any]:
        held = self._programs.files.find(file)
        if held is None:
            return {"path": None, "errno": None, "reason": None}
        # past the end the kernel itself fails the access, without a record
        if offset >= held.file.size:
            return {"path": held.name, "errno": "EFAULT", "reason": "eof"}
        page = offset // native.PAGE_SIZE * native.PAGE_SIZE
        for record in reversed(tuple(self._programs.host.records)):
            failure = record.failure
            if (record.pid, record.name, failure.offset) == (pid, held.name, page):
                known = record.as_json()
                return {"path": held.name, "errno": known["errno"], "reason": known["reason"]}
        return {"path": held.name, "errno": None, "reason": None}

    async def _unwritten(self) -> list[dict[str, Any]]:
        return [dataclasses.asdict(one) for one in await self._programs.files.unwritten()]

    async def _write_back(self) -> list[dict[str, Any]]:
        await self._programs.files.write_back()
        return await self._unwritten()

    def _status(self) -> dict[str, Any]:
        return {
            "programs": self._programs.served,
            "busy": self._programs.busy,
            "deaths": self._programs.deaths.total,
            "files": [held.name for held in self._programs.files],
            "cache_used": native.cache_used(),
            "cache_limit": self._programs.cache_limit,
            "counters": dataclasses.asdict(self._programs.host.engine.counters()),
        }


def ask(mount: str | os.PathLike[str], do: str, **arguments: Any) -> Any:
    """Send a request to the host of `mount`; -> its answer.

    UsageError when no host of this user or root serves it, or the host refuses; DaxfaultError when the
    host hangs up.
    """
    try:
        device = os.stat(mount).st_dev
    except OSError as e:
        raise UsageError(f"{mount}: {e.strerror}") from e
    path = sockets.control(device)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(SECONDS)
        try:
            sockets.check_directory()
            sock.connect(os.fspath(path))
            if (uid := sockets.peer_user(sock)) not in (0, os.geteuid()):
                raise UsageError(f"{path}: the socket belongs to user {uid}, who is not trusted")
            sock.sendall(json.dumps({"do": do, **arguments}).encode() + b"\n")
            line = sock.makefile("rb").readline()
        except OSError as e:
            raise UsageError(
                f"{mount}: no host serves programs there ({path}: {e.strerror or e}); "
                "start one with `daxfault run`"
            ) from e
    if not line:
        raise DaxfaultError(f"{mount}: its host hung up")
    answer = json.loads(line)
    if "error" in answer:
        raise UsageError(answer["error"])
    return answer["is"]
