# SPDX-License-Identifier: Apache-2.0
"""A mount with a host for the programs that map its files.

Owns the order in which mount, host, keeper and control socket come and go, and what a program needs in its
environment.  Must not know which programs come.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pwd
import socket
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import trio

from daxfault import fsd, native
from daxfault.vmm.host.host import Host, hosting
from daxfault.vmm.programs.control import Control
from daxfault.vmm.programs.faults import Rule
from daxfault.vmm.programs.programs import Programs


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """How a directory is served to programs.

    `mount` None: at a temporary directory.  `user` may use it, too.  `rules` are faults on purpose,
    `cache_limit` is in bytes for all page caches together, 0: no limit.
    """

    source: Path
    mount: Path | None = None
    user: pwd.struct_passwd | None = None
    rules: tuple[Rule, ...] = ()
    cache_limit: int = 0
    allow_other: bool = False
    attr_timeout: float = 1.0


@dataclasses.dataclass(frozen=True, slots=True)
class ServedMount:
    """A mount at `path` with a host; programs connect to `socket`."""

    fs: fsd.Filesystem
    mount: fsd.Mount
    path: Path
    host: Host
    programs: Programs
    socket: Path

    def environment(self, *, stacks: bool = False) -> dict[str, str]:
        """What a program needs in its environment to be served."""
        return {
            "LD_PRELOAD": ":".join(filter(None, [os.fspath(native.preload()), os.environ.get("LD_PRELOAD")])),
            "DAXFAULT_SOCKET": os.fspath(self.socket),
            "DAXFAULT_DEVICE": str(self.fs.device),
            "DAXFAULT_MOUNT": os.fspath(self.path),
            "DAXFAULT_TRACER": os.fspath(native.tracer()),
        } | ({"DAXFAULT_STACKS": "1"} if stacks else {})


@contextlib.asynccontextmanager
async def served_mount(options: Options) -> AsyncIterator[ServedMount]:
    """Serve programs while the body runs.  Raises fsd.MountError, and OSError when a temporary directory
    cannot be made."""
    user = options.user
    with tempfile.TemporaryDirectory(prefix="daxfault-", ignore_cleanup_errors=True) as made:
        top = Path(made)
        if user is not None:
            os.chown(top, user.pw_uid, -1)
        if options.mount is None:
            (top / "mnt").mkdir()
        path = Path(os.path.realpath(options.mount or top / "mnt"))  # noqa: ASYNC240 - before anything is mounted
        fs = fsd.Filesystem(options.source, direct_io=True, attr_timeout=options.attr_timeout)
        others = user is not None and user.pw_uid != os.geteuid()
        async with (
            _kept(),
            fsd.mounted(fs, path, allow_other=options.allow_other or others) as mount,
            hosting(fs) as (host, nursery),
        ):
            programs = Programs(host, fs, path, cache_limit=options.cache_limit)
            for rule in options.rules:
                programs.rules.add(rule)
            served = ServedMount(fs, mount, path, host, programs, top / "host")

            async def listen(task_status: trio.TaskStatus[None]) -> None:
                uid = user.pw_uid if user is not None else None
                await programs.listen(os.fspath(served.socket), user=uid, task_status=task_status)

            await nursery.start(listen)
            assert fs.device is not None
            await nursery.start(Control(programs, served.environment()).listen, fs.device)
            yield served
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
