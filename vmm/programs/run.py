# SPDX-License-Identifier: Apache-2.0
"""`daxfault run`: a mount, a host, and one program with all that it starts.

Owns the order in which they come and go, the program's environment and its signals.
Must not print.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pwd
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

import trio

from daxfault import fsd, native
from daxfault.vmm.host.host import Host, hosting
from daxfault.vmm.host.records import Record
from daxfault.vmm.programs.control import Control
from daxfault.vmm.programs.faults import Rule
from daxfault.vmm.programs.programs import Death, Programs

_PATIENCE = 1.0  # seconds, before anybody is told what is waited for
_FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


@dataclasses.dataclass(frozen=True, slots=True)
class Stage:
    """A mount with a host whose programs connect to `socket`."""

    fs: fsd.Filesystem
    mounted: fsd.Mount
    mount: Path
    host: Host
    programs: Programs
    socket: Path

    def environment(self, *, stacks: bool = False) -> dict[str, str]:
        """What a program needs in its environment to be served."""
        return {
            "LD_PRELOAD": ":".join(filter(None, [os.fspath(native.preload()), os.environ.get("LD_PRELOAD")])),
            "DAXFAULT_SOCKET": os.fspath(self.socket),
            "DAXFAULT_DEVICE": str(self.fs.device),
            "DAXFAULT_MOUNT": os.fspath(self.mount),
            "DAXFAULT_TRACER": os.fspath(native.tracer()),
        } | ({"DAXFAULT_STACKS": "1"} if stacks else {})


@dataclasses.dataclass(frozen=True, slots=True)
class Ended:
    """How the program ended, and which faults failed."""

    status: int  # as Popen.returncode: negative for a signal
    records: tuple[Record, ...]
    failed: int  # faults in all; `records` are the newest
    deaths: tuple[Death, ...]  # the newest of `died`
    died: int
    served: int  # processes that mapped a file of ours
    counters: native.Counters

    @property
    def exit_code(self) -> int:
        return exit_code(self.status)


def exit_code(status: int) -> int:
    """Of Popen.returncode, as a shell has it."""
    return 128 - status if status < 0 else status


@contextlib.asynccontextmanager
async def stage(
    source: Path,
    mount: Path | None,
    *,
    user: pwd.struct_passwd | None = None,
    rules: Sequence[Rule] = (),
    cache_limit: int = 0,
    allow_other: bool = False,
    attr_timeout: float = 1.0,
) -> AsyncIterator[Stage]:
    """Serve `source` at `mount`, a temporary directory when None, to programs, while the body runs.

    `user` may use both, too.  `rules` are faults on purpose, `cache_limit` the bytes that page caches may
    have, 0: no limit.  Raises fsd.MountError, and OSError when a temporary directory
    cannot be made.
    """
    with tempfile.TemporaryDirectory(prefix="daxfault-", ignore_cleanup_errors=True) as made:
        top = Path(made)
        if user is not None:
            os.chown(top, user.pw_uid, -1)
        if mount is None:
            mount = top / "mnt"
            mount.mkdir()
        mount = Path(os.path.realpath(mount))  # noqa: ASYNC240 - before anything is mounted
        fs = fsd.Filesystem(source, direct_io=True, attr_timeout=attr_timeout)
        others = user is not None and user.pw_uid != os.geteuid()
        async with (
            _kept(),
            fsd.mounted(fs, mount, allow_other=allow_other or others) as mounted,
            hosting(fs) as (host, nursery),
        ):
            programs = Programs(host, fs, mount, cache_limit=cache_limit)
            for rule in rules:
                programs.rules.add(rule)
            path = top / "host"
            uid = user.pw_uid if user is not None else None

            async def listen(task_status: trio.TaskStatus[None]) -> None:
                await programs.listen(os.fspath(path), user=uid, task_status=task_status)

            await nursery.start(listen)
            found = Stage(fs, mounted, mount, host, programs, path)
            assert fs.device is not None
            await nursery.start(Control(programs, found.environment()).listen, fs.device)
            yield found
            nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def _kept() -> AsyncIterator[None]:
    """A keeper while the body runs: should this process die, programs get SIGBUS, not zeros."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            keeper = await trio.lowlevel.open_process(
                [native.keeper()], stdin=theirs.fileno(), start_new_session=True
            )
        native.keep(ours.fileno())
        try:
            yield
        finally:
            native.keep(-1)
            ours.close()
            with trio.CancelScope(shield=True):
                await keeper.wait()


async def run(
    command: Sequence[str],
    source: Path,
    mount: Path | None,
    *,
    user: pwd.struct_passwd | None = None,
    stacks: bool = False,
    rules: Sequence[Rule] = (),
    cache_limit: int = 0,
    environment: Mapping[str, str] = os.environ,
    prepared: Callable[[Stage], None] = lambda _: None,
    lingering: Callable[[], None] = lambda: None,
) -> Ended:
    """Run `command` with `source` served at `mount`; -> how it ended.

    With no `mount` it runs in the mount, a temporary one.  `prepared` is called before it
    starts; `lingering` when it has ended and others still map files, for whose end is waited.
    Raises as stage().
    """
    # from the first on: a host that dies of one leaves its mount behind
    async with (
        _received() as signals,
        stage(source, mount, user=user, rules=rules, cache_limit=cache_limit) as s,
    ):
        prepared(s)
        process = await _start(
            command,
            s.mount if mount is None else None,
            dict(environment) | s.environment(stacks=stacks),
            user,
        )
        async with _passed_on(signals, process):
            status = await process.wait()
            ended = trio.current_time()
            told = False
            while s.programs.busy:
                await trio.sleep(0.01)
                if not told and trio.current_time() - ended > _PATIENCE:
                    told = True
                    lingering()
        await s.programs.files.write_back()
        records = s.host.records
        return Ended(
            status=status,
            records=tuple(records),
            failed=records.total,
            deaths=tuple(s.programs.deaths),
            died=s.programs.deaths.total,
            served=s.programs.served,
            counters=s.host.engine.counters(),
        )


async def _start(
    command: Sequence[str],
    directory: Path | None,
    environment: dict[str, str],
    user: pwd.struct_passwd | None,
) -> trio.Process:
    """Start the program by way of env(1): a directory of our mount, or a program there, is found by asking
    this very process, which waits with the interpreter's lock held for the first exec(2)."""
    go = ["env", *(["-C", os.fspath(directory)] if directory else []), "--", *command]
    if user is None:
        return await trio.lowlevel.open_process(go, env=environment)
    groups = os.getgrouplist(user.pw_name, user.pw_gid)
    return await trio.lowlevel.open_process(
        go, env=environment, user=user.pw_uid, group=user.pw_gid, extra_groups=groups
    )


@contextlib.asynccontextmanager
async def _received() -> AsyncIterator[AsyncIterator[int]]:
    """Signals that are sent to us alone wait for whoever reads them, while the body runs."""
    with trio.open_signal_receiver(*_FORWARDED) as signals:
        yield signals


@contextlib.asynccontextmanager
async def _passed_on(signals: AsyncIterator[int], process: trio.Process) -> AsyncIterator[None]:
    """While the body runs `signals` are the program's; Ctrl-C reaches it from its terminal.  When it has
    ended, and others are waited for, they are ours."""

    async def forward(signals: AsyncIterator[int]) -> None:
        async for number in signals:
            if process.returncode is not None and number in (signal.SIGINT, signal.SIGTERM):
                raise KeyboardInterrupt
            if number != signal.SIGINT and process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(number)

    with trio.open_signal_receiver(signal.SIGINT) as interrupts:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(forward, signals)
            nursery.start_soon(forward, interrupts)
            yield
            nursery.cancel_scope.cancel()


async def attached(
    command: Sequence[str], served: Mapping[str, str], user: pwd.struct_passwd | None = None
) -> int:
    """Run `command` with a host of another process, which wants `served` in its environment; -> its status,
    as Popen.returncode."""
    async with _received() as signals:
        process = await _start(command, None, {**os.environ, **served}, user)
        async with _passed_on(signals, process):
            return await process.wait()
