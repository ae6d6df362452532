# SPDX-License-Identifier: Apache-2.0
"""`daxfault run`: runs a program, and its children, on a mount whose host serves them.

Owns the program's process and its signals, and the end of a run.  Must not print.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pwd
import signal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

import trio

from daxfault import native
from daxfault.native.descriptors import limit_at_start
from daxfault.vmm.host.records import Record
from daxfault.vmm.programs.files import Unwritten
from daxfault.vmm.programs.programs import Death, Programs
from daxfault.vmm.programs.served_mount import Options, served_mount

LOST = 74  # the exit code of a run that lost stores: EX_IOERR of sysexits.h
_PATIENCE = 1.0  # seconds from the program's end until lingering() is called
_FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


@dataclasses.dataclass(frozen=True, slots=True)
class Ended:
    """How the program ended, its failed faults, and its lost stores."""

    status: int  # as Popen.returncode: negative for a signal
    records: tuple[Record, ...]
    failed: int  # faults in all; `records` are the newest
    deaths: tuple[Death, ...]  # the newest of `died`
    died: int
    served: int  # processes that mapped a file of ours
    counters: native.Counters
    lost: tuple[Unwritten, ...]

    @property
    def exit_code(self) -> int:
        return exit_code(self.status, lost=bool(self.lost))


def exit_code(status: int, *, lost: bool = False) -> int:
    """The exit code for a Popen.returncode, as in a shell; LOST for a success with lost stores."""
    return 128 - status if status < 0 else status or (LOST if lost else 0)


async def run(
    command: Sequence[str],
    options: Options,
    *,
    stacks: bool = False,
    lingering: Callable[[], None] = lambda: None,
) -> Ended:
    """Serve a directory as `options` say and run `command` on it; -> how it ended.

    Without options.mount it runs in a temporary mount.  `stacks`: report the stack of a program that dies
    of a mapping.  `lingering` is called when the program has ended and others still map files; run()
    waits for their end.  Raises as served_mount().
    """
    # received first of all: a host that a signal kills would leave its mount
    async with _received() as signals, served_mount(options) as served:
        process = await _start(
            command,
            served.path if options.mount is None else None,
            os.environ | served.environment(stacks=stacks),
            options.user,
        )
        async with _passed_on(signals, process):
            status = await process.wait()
            with trio.move_on_after(_PATIENCE):
                await _idle(served.programs)
            if served.programs.busy:
                lingering()
                await _idle(served.programs)
        counters = served.host.engine.counters()
    records, deaths = served.host.records, served.programs.deaths
    return Ended(
        status=status,
        records=tuple(records),
        failed=records.total,
        deaths=tuple(deaths),
        died=deaths.total,
        served=served.programs.served,
        counters=counters,
        lost=tuple(served.programs.files.lost),
    )


async def _idle(programs: Programs) -> None:
    while programs.busy:  # noqa: ASYNC110 - no event reports the last munmap() of a forked child
        await trio.sleep(0.01)


async def _start(
    command: Sequence[str],
    directory: Path | None,
    environment: Mapping[str, str],
    user: pwd.struct_passwd | None,
) -> trio.Process:
    """Start the program by env(1), with this process's original limit of descriptors.

    This process holds the GIL until the first exec(2) has succeeded.  So that must not look up a
    directory or a program on our mount, which this process serves.
    """
    go = ["env", *(["-C", os.fspath(directory)] if directory else []), "--", *command]
    if (limit := limit_at_start()) >= 0:  # ours was raised (native.descriptors)
        go = ["sh", "-c", 'ulimit -S -n "$0" && exec "$@"', str(limit), *go]
    if user is None:
        return await trio.lowlevel.open_process(go, env=environment)
    groups = os.getgrouplist(user.pw_name, user.pw_gid)
    return await trio.lowlevel.open_process(
        go, env=environment, user=user.pw_uid, group=user.pw_gid, extra_groups=groups
    )


@contextlib.asynccontextmanager
async def _received() -> AsyncIterator[AsyncIterator[int]]:
    """Queue the signals that are sent to this process only, while the body runs."""
    with trio.open_signal_receiver(*_FORWARDED) as signals:
        yield signals


@contextlib.asynccontextmanager
async def _passed_on(signals: AsyncIterator[int], process: trio.Process) -> AsyncIterator[None]:
    """Forward `signals` to the program while the body runs; the terminal sends it Ctrl-C.  After its end,
    while other programs go on, SIGINT and SIGTERM end the run."""

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
    command: Sequence[str], served: dict[str, str], user: pwd.struct_passwd | None = None
) -> int:
    """Run `command` with the host of another process; `served` is added to its environment.  -> its
    status, as Popen.returncode."""
    async with _received() as signals:
        process = await _start(command, None, os.environ | served, user)
        async with _passed_on(signals, process):
            return await process.wait()
