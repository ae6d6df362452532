# SPDX-License-Identifier: Apache-2.0
"""Serving one mount until a signal or an unmount ends it.

Owns the signals, the log and the pid file.  Must not know whether a terminal or
a daemon is behind it; imports trio and pyfuse3, so a process that wants to fork
does that first.
"""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import trio

from daxfault import fsd
from daxfault.vmm.errors import DaxfaultError, UsageError

SYSLOG = "/dev/log"

log = logging.getLogger(__name__)


def run(
    source: Path,
    mountpoint: Path,
    ready: Callable[[], None],
    *,
    allow_other: bool,
    attr_timeout: float,
    pid_file: Path | None,
    programs: bool,
    verbose: bool,
    syslog: bool,
) -> None:
    """Serve `source` at `mountpoint`; call `ready` when the mount answers.

    With `programs` there is a host for them, and nothing is cached by the kernel.
    The log goes to stderr, and to the system's too if `syslog`.

    Returns after SIGINT, SIGTERM, SIGHUP or an unmount, with nothing mounted.
    Raises UsageError before anything is mounted, DaxfaultError when the mount
    fails later; what `ready` raises passes, after the unmount.
    """
    _log(verbose, syslog)
    options: dict[str, Any] = {"allow_other": allow_other, "attr_timeout": attr_timeout}
    serving = _with_programs if programs else _alone
    trio.run(_serve, serving(source, mountpoint, **options), ready, pid_file)


@contextlib.asynccontextmanager
async def _alone(
    source: Path, mountpoint: Path, *, allow_other: bool, attr_timeout: float
) -> AsyncIterator[fsd.Mount]:
    fs = fsd.Filesystem(source, attr_timeout=attr_timeout)
    async with fsd.mounted(fs, mountpoint, allow_other=allow_other) as mount:
        yield mount


@contextlib.asynccontextmanager
async def _with_programs(source: Path, mountpoint: Path, **options: Any) -> AsyncIterator[fsd.Mount]:
    from daxfault.vmm.programs.run import stage

    async with stage(source, mountpoint, **options) as served:
        yield served.mounted


async def _serve(
    serving: contextlib.AbstractAsyncContextManager[fsd.Mount],
    ready: Callable[[], None],
    pid_file: Path | None,
) -> None:
    answered = False
    # received from here on: a signal that comes while mounting ends the mount just after
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        try:
            async with serving as mount:
                answered = True
                with _written(pid_file):
                    ready()
                    await _until_told(mount, signals)
        except fsd.MountError as exc:
            raise (DaxfaultError if answered else UsageError)(str(exc)) from exc


async def _until_told(mount: fsd.Mount, signals: AsyncIterator[int]) -> None:
    """Return on the first signal, or when somebody has unmounted."""
    async with trio.open_nursery() as nursery:

        async def first_signal() -> None:
            async for number in signals:
                log.info("%s: unmounting", signal.Signals(number).name)
                nursery.cancel_scope.cancel()

        nursery.start_soon(first_signal)
        await mount.wait_unmounted()
        nursery.cancel_scope.cancel()


@contextlib.contextmanager
def _written(pid_file: Path | None) -> Iterator[None]:
    """The pid file, there while the body runs."""
    if pid_file is None:
        yield
        return
    try:
        pid_file.write_text(f"{os.getpid()}\n")
    except OSError as exc:
        raise UsageError(f"pid file {pid_file}: {exc.strerror}") from exc
    try:
        yield
    finally:
        pid_file.unlink(missing_ok=True)


def _log(verbose: bool, syslog: bool) -> None:
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if syslog and os.path.exists(SYSLOG):
        to_system = logging.handlers.SysLogHandler(SYSLOG)
        to_system.ident = f"daxfault[{os.getpid()}]: "
        handlers.append(to_system)
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s", handlers=handlers)
