# SPDX-License-Identifier: Apache-2.0
"""A mount with a host for the programs that map its files.

Owns the order in which mount, host, keeper and control socket start and end.  Must not know the
programs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import pwd
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from daxfault import fsd
from daxfault.vmm.host.host import Host, hosting
from daxfault.vmm.programs import environment, sockets
from daxfault.vmm.programs.control import Control
from daxfault.vmm.programs.faults import Rule
from daxfault.vmm.programs.keeper import Left, kept
from daxfault.vmm.programs.programs import Programs


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """How a directory is served to programs.

    `mount` None: at a temporary directory.  `user` may use it too.  `rules` inject faults,
    `cache_limit` is in bytes for all page caches together, 0: no limit, None: as
    host/memory.py has it.  `daemon`: standard error is about to be closed.
    """

    source: Path
    mount: Path | None = None
    user: pwd.struct_passwd | None = None
    rules: tuple[Rule, ...] = ()
    cache_limit: int | None = None
    allow_other: bool = False
    attr_timeout: float = 1.0
    daemon: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class ServedMount:
    """A mount at `path` with a host for programs."""

    fs: fsd.Filesystem
    mount: fsd.Mount
    path: Path
    host: Host
    programs: Programs

    def environment(self, *, stacks: bool = False) -> dict[str, str]:
        """The environment variables that a program needs to be served."""
        assert self.fs.device is not None
        return environment.of_device(self.fs.device, os.fspath(self.path), stacks=stacks)


@contextlib.asynccontextmanager
async def served_mount(options: Options) -> AsyncIterator[ServedMount]:
    """Serve programs while the body runs.  Raises fsd.MountError, and OSError when a temporary directory
    cannot be made."""
    user = options.user
    with _mount_point(options) as point:
        fs = fsd.Filesystem(options.source, direct_io=True, attr_timeout=options.attr_timeout)
        others = user is not None and user.pw_uid != os.geteuid()
        async with (
            fsd.mounted(fs, point, allow_other=options.allow_other or others) as mount,
            kept(_left(options, fs, mount), daemon=options.daemon),
            hosting(fs) as (host, nursery),
        ):
            path = Path(mount.path)
            programs = Programs(host, fs, path, cache_limit=options.cache_limit)
            for rule in options.rules:
                programs.rules.add(rule)
            assert fs.device is not None
            sockets.make_directory()
            listening = sockets.programs(fs.device)
            listening.unlink(missing_ok=True)  # left by a killed host: an st_dev belongs to one mount only
            uid = user.pw_uid if user is not None else None
            await nursery.start(functools.partial(programs.listen, os.fspath(listening), user=uid))
            await nursery.start(Control(programs).listen, fs.device)
            try:
                yield ServedMount(fs, mount, path, host, programs)
            finally:
                await programs.files.end()  # while the engine still tracks stores
            nursery.cancel_scope.cancel()


def _left(options: Options, fs: fsd.Filesystem, mount: fsd.Mount) -> Left:
    """The things to remove if this process dies."""
    assert fs.device is not None
    path = Path(mount.path)
    directories = () if options.mount is not None else (path, path.parent)
    return Left.of(fs, mount, sockets.control(fs.device), sockets.programs(fs.device), *directories)


@contextlib.contextmanager
def _mount_point(options: Options) -> Iterator[Path]:
    """The directory to mount on; a temporary one by descriptor, because options.user may rename it."""
    if options.mount is not None:
        yield options.mount
        return
    with tempfile.TemporaryDirectory(prefix="daxfault-", ignore_cleanup_errors=True) as top:
        fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if os.fstat(fd).st_uid != os.geteuid():
                raise fsd.MountError(f"{top}: was replaced by another user's directory")
            if options.user is not None:
                os.fchmod(fd, 0o711)
            os.mkdir("mnt", 0o755, dir_fd=fd)
            yield Path(f"/proc/self/fd/{fd}/mnt")
        finally:
            os.close(fd)
