# SPDX-License-Identifier: Apache-2.0
"""Serves one mount until a signal or an unmount ends it.

Owns the signals, the log and the pid file.  Must not know whether it runs in a terminal or as a
daemon.  Imports trio and pyfuse3, so a daemon must fork before it imports this.
"""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import trio

from daxfault import fsd
from daxfault.vmm.errors import DaxfaultError, UsageError
from daxfault.vmm.programs.keeper import Left, kept
from daxfault.vmm.programs.served_mount import Options, served_mount

SYSLOG = "/dev/log"

log = logging.getLogger(__name__)


def run(options: Options, ready: Callable[[], None], *, pid_file: Path | None, programs: bool) -> None:
    """Serve what `options` say; call `ready` when the mount answers.

    With `programs` there is a host for them, and the kernel caches nothing; without, only the options of
    a mount count.

    Returns after SIGINT, SIGTERM, SIGHUP or an unmount, with nothing mounted.  Raises UsageError before
    anything is mounted, DaxfaultError when the mount fails later, and what `ready` raises, after the unmount.
    """
    serving = _with_programs if programs else _alone
    trio.run(_serve, serving(options), ready, pid_file)


@contextlib.asynccontextmanager
async def _alone(options: Options) -> AsyncIterator[fsd.Mount]:
    assert options.mount is not None
    fs = fsd.Filesystem(options.source, attr_timeout=options.attr_timeout)
    async with (
        fsd.mounted(fs, options.mount, allow_other=options.allow_other) as mount,
        kept(Left.of(fs, mount), daemon=options.daemon),
    ):
        yield mount


@contextlib.asynccontextmanager
async def _with_programs(options: Options) -> AsyncIterator[fsd.Mount]:
    async with served_mount(options) as served:
        yield served.mount
    for lost in served.programs.files.lost:
        log.error("%s", lost)


async def _serve(
    serving: contextlib.AbstractAsyncContextManager[fsd.Mount],
    ready: Callable[[], None],
    pid_file: Path | None,
) -> None:
    answered = aborted = False
    # from here on a signal that arrives while mounting ends the mount after it is made
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        try:
            async with serving as mount:
                answered = True
                with _written(pid_file):
                    ready()
                    await _until_ended(mount, signals)
                aborted = mount.aborted
                path = mount.path
        except fsd.MountError as exc:
            raise (DaxfaultError if answered else UsageError)(str(exc)) from exc
    if aborted:
        raise DaxfaultError(
            f"mount {path}: its FUSE connection was aborted; stores of programs were written back"
        )


async def _until_ended(mount: fsd.Mount, signals: AsyncIterator[int]) -> None:
    """Return on the first signal, or after an unmount."""
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
    """The pid file, which exists while the body runs."""
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


def log_to_stderr(*, verbose: bool, syslog: bool) -> None:
    """Log to standard error, and also to syslog if `syslog`."""
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if syslog and os.path.exists(SYSLOG):
        to_system = logging.handlers.SysLogHandler(SYSLOG)
        to_system.ident = f"daxfault[{os.getpid()}]: "
        handlers.append(to_system)
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s", handlers=handlers)
