# SPDX-License-Identifier: Apache-2.0
"""Drives a guest stand-in: its process, its console, its answers.

Owns the child process and the JSON lines of native/standin.  Must not decide faults.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import trio

from daxfault import native
from daxfault.vmm.designs import Design
from daxfault.vmm.designs.rfc_v1 import POSTED
from daxfault.vmm.host.host import Host
from daxfault.vmm.host.session import Session

# events that answer the last command; `done` and `error` have the number of theirs
_ANSWERS = ("open", "map", "unmap", "close", "stat", "idle", "traced")


class StandInError(Exception):
    """The stand-in refused a command, with its message, or has ended."""


@dataclasses.dataclass(frozen=True, slots=True)
class Done:
    """The result of an access.  `outcome` is ok, sigbus, sigsegv, efault, short, panic, error or killed.

    `address` is si_addr, or the gva that the guest kernel got; `error` an errno or 0; `done` in bytes;
    `raw` all fields that the stand-in printed (docs/standin.md).
    """

    outcome: str
    address: int | None
    si_code: int | None
    error: int
    done: int
    value: Any
    ns: int
    raw: dict[str, Any]


def _done(event: dict[str, Any]) -> Done:
    address = event.get("address")
    return Done(
        outcome=event["outcome"],
        address=int(address, 16) if address is not None else None,
        si_code=event.get("si_code"),
        error=event.get("error", 0),
        done=event.get("done", 0),
        value=event.get("value"),
        ns=event["ns"],
        raw=event,
    )


class _Reply:
    """An expected answer."""

    def __init__(self) -> None:
        self.event = trio.Event()
        self.value: dict[str, Any] | None = None

    def set(self, value: dict[str, Any] | None) -> None:
        self.value = value
        self.event.set()


class StandIn:
    """A running stand-in.  Make one with `standin()`; every method needs its trio loop."""

    def __init__(self, process: trio.Process, session: Session | None) -> None:
        self.process = process
        self._session = session
        self.window = 0
        self.unsolicited: list[dict[str, Any]] = []
        self._control = trio.Lock()
        self._sending = trio.Lock()
        self._line = 0
        self._by_line: dict[int, _Reply] = {}
        self._by_access: dict[tuple[int, int], _Reply] = {}
        self._accesses: collections.Counter[int] = collections.Counter()
        self._waiting: _Reply | None = None
        self._traced: list[dict[str, Any]] = []
        self._gone = False

    @property
    def session(self) -> Session:
        """The host's end.  StandInError when the host is another process."""
        if self._session is None:
            raise StandInError(f"stand-in {self.process.pid} is not a guest of this host")
        return self._session

    async def open(self, name: str, path: str | os.PathLike[str], mode: str = "ro") -> int:
        """Open a file of the mount as `name`; -> its size in bytes."""
        return int((await self._ask(f"open {name} {os.fspath(path)} {mode}"))["size"])

    async def map(self, name: str, foffset: int, length: int, moffset: int, mode: str = "r") -> int:
        """Map [foffset, foffset + length) of `name` at window + moffset; -> the address."""
        event = await self._ask(f"map {name} {foffset} {length} {moffset} {mode}")
        address = int(event["address"], 16)
        self.window = address - moffset
        return address

    async def unmap(self, moffset: int, length: int) -> None:
        await self._ask(f"unmap {moffset} {length}")

    async def close(self, name: str) -> None:
        await self._ask(f"close {name}")

    async def stat(self) -> dict[str, Any]:
        return await self._ask("stat")

    async def kill(self, vcpu: int, task: int) -> None:
        """SIGKILL for a task: it ends before its next instruction in user mode."""
        await self._order(f"kill {vcpu} {task}")

    async def set_async(self, on: bool) -> None:
        """Write MSR_KVM_ASYNC_PF_EN of every vCPU."""
        await self._order(f"async {'on' if on else 'off'}")

    async def trace(self, on: bool) -> None:
        """Start or stop recording the events of the guest kernel."""
        await self._order(f"trace {'on' if on else 'off'}")

    async def traced(self) -> list[dict[str, Any]]:
        """The recorded events, oldest first; see docs/standin.md."""
        self._traced = []
        await self._ask("trace dump")
        return self._traced

    async def access(self, vcpu: int, text: str, task: int = 0) -> Done:
        """Run one access on a task of a vCPU, such as `touch 0x1000`; -> its result."""
        return await (await self.start(vcpu, text, task))()

    async def start(self, vcpu: int, text: str, task: int = 0) -> Callable[[], Awaitable[Done]]:
        """Start an access; -> an async function that waits for its Done."""
        reply = _Reply()
        async with self._sending:
            seq = self._accesses[vcpu] + 1
            self._by_access[vcpu, seq] = reply
            name = f"{vcpu}.{task}" if task else f"{vcpu}"
            line = await self._send_line(f"vcpu {name} {text}", reply)
            self._accesses[vcpu] = seq

        async def wait() -> Done:
            try:
                event = await self._value(reply, f"vcpu {vcpu} {text}")
            finally:
                self._by_line.pop(line, None)
                self._by_access.pop((vcpu, seq), None)
            return _done(event)

        return wait

    # ---- lines

    async def _ask(self, text: str) -> dict[str, Any]:
        async with self._control:
            reply = self._waiting = _Reply()
            async with self._sending:
                line = await self._send_line(text, reply)
            try:
                return await self._value(reply, text)
            finally:
                self._waiting = None
                self._by_line.pop(line, None)

    async def _order(self, text: str) -> None:
        """Run a command that has no answer unless it is refused: wait for the answer of the next one."""
        refused = _Reply()
        async with self._sending:
            line = await self._send_line(text, refused)
        try:
            await self.stat()
            if refused.event.is_set():
                await self._value(refused, text)
        finally:
            self._by_line.pop(line, None)

    async def _send_line(self, text: str, reply: _Reply) -> int:
        self._line += 1
        self._by_line[self._line] = reply
        assert self.process.stdin is not None
        try:
            await self.process.stdin.send_all(text.encode(errors="surrogateescape") + b"\n")
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._gone = True
        if self._gone:
            reply.set(None)
        return self._line

    async def _value(self, reply: _Reply, text: str) -> dict[str, Any]:
        await reply.event.wait()
        if reply.value is None:
            raise StandInError(f"{text!r}: the stand-in is gone (exit {self.process.poll()})")
        if reply.value["event"] == "error":
            raise StandInError(f"{text!r}: {reply.value['message']}")
        return reply.value

    async def read_answers(self) -> None:
        """Read the stand-in's lines until it ends."""
        assert self.process.stdout is not None
        rest = b""
        try:
            async for chunk in self.process.stdout:
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._take(json.loads(line))
        finally:
            self._gone = True
            for reply in [*self._by_line.values(), *self._by_access.values()]:
                if not reply.event.is_set():
                    reply.set(None)

    def _take(self, event: dict[str, Any]) -> None:
        if event["event"] == "done":
            reply = self._by_access.get((event["vcpu"], event["seq"]))
        elif event["event"] == "error" and "line" in event:
            reply = self._by_line.get(event["line"])
        elif event["event"] == "trace" and "events" in event:
            self._traced += event["events"]
            return
        elif event["event"] in _ANSWERS:
            reply = self._waiting
        else:
            reply = None
        if reply is None:
            self.unsolicited.append(event)
        else:
            reply.set(event)


def _command(design: Design, window: int) -> list[str]:
    """The command for a guest kernel with the design's ABI."""
    abi = design.abi.name.lower().replace("_", "-")
    command = [str(native.standin()), "--window", str(window), "--abi", abi]
    if design.posted:
        command += ["--as-posted", ",".join(name for name, bit in POSTED.items() if bit & design.posted)]
    return command


@contextlib.asynccontextmanager
async def standin(
    host: Host,
    nursery: trio.Nursery,
    design: Design,
    *,
    window: int = 1 << 30,
    async_pf: bool = True,
    report_errors: bool = True,
) -> AsyncIterator[StandIn]:
    """A stand-in served by `host` under `design`, with a guest kernel of the design's ABI; the end of the
    body ends it and its connection.

    `async_pf`: it enables asynchronous page faults; `report_errors`: it enables error reports.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [*_command(design, window), "--fd", str(theirs.fileno())]
    if not report_errors:
        command.append("--no-errors")
    if not async_pf:
        command.append("--no-async")
    try:
        process = await _start(command, theirs.fileno())
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()

    async def session() -> Session:
        try:
            begun: Session = await nursery.start(host.guest, ours, process.pid, design)
        except RuntimeError as e:  # trio's: it ended before it began
            raise StandInError("the host refused the stand-in; its log has the reason") from e
        return begun

    async with _driven(process, session) as guest:
        yield guest


@contextlib.asynccontextmanager
async def connected(
    path: str | os.PathLike[str], design: Design, *, window: int = 2 * native.RANGE_SIZE
) -> AsyncIterator[StandIn]:
    """A stand-in of a host in another process, which listens at `path`; the end of the body ends it."""
    process = await _start([*_command(design, window), "--socket", os.fspath(path)])
    async with _driven(process) as guest:
        yield guest


async def _start(command: list[str], *fds: int) -> trio.Process:
    return await trio.lowlevel.open_process(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=fds,
        start_new_session=True,  # the host handles Ctrl-C
    )


@contextlib.asynccontextmanager
async def _driven(
    process: trio.Process, session: Callable[[], Awaitable[Session]] | None = None
) -> AsyncIterator[StandIn]:
    """Read the answers of a process while the body runs, then end it.  `session` starts to serve it."""
    try:
        guest = StandIn(process, await session() if session else None)
        async with trio.open_nursery() as answers:
            answers.start_soon(guest.read_answers)
            yield guest
            answers.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await _end(process)


async def _end(process: trio.Process) -> None:
    """Ask the process to end, then kill it."""
    if process.stdin is not None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
            with trio.move_on_after(1):
                await process.stdin.send_all(b"quit\n")
            await process.stdin.aclose()
    with trio.move_on_after(1):
        await process.wait()
    if process.returncode is None:
        process.send_signal(signal.SIGKILL)
        await process.wait()
    if process.stdout is not None:
        await process.stdout.aclose()
