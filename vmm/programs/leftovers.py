# SPDX-License-Identifier: Apache-2.0
"""What hosts leave when they and their keepers are killed: mounts, sockets, directories.

Owns a record of each living host of this user, beside their sockets, which its host holds a lock on.  Who
gets the lock knows that the host is dead, and removes what it left.  Must not remove what is not recorded.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from daxfault.fsd import syscalls
from daxfault.fsd.pins import fdinfo
from daxfault.vmm.errors import UsageError
from daxfault.vmm.programs import sockets

log = logging.getLogger(__name__)

_SUFFIX = ".host"


@contextlib.contextmanager
def recorded(mount: str, device: int, paths: Iterable[Path]) -> Iterator[tuple[Path, ...]]:
    """A record of this host while the body runs, after those of dead ones were acted upon; -> its path, or
    none where it cannot be made."""
    try:
        sockets.make_directory()
        sweep()
        path = sockets.directory() / f"{os.getpid()}-{os.minor(device)}{_SUFFIX}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except (UsageError, OSError) as e:
        log.info("what this host leaves, should it be killed, is not recorded: %s", e)
        yield ()
        return
    try:
        # before anything is in it: an empty record is one that nobody misses
        fcntl.flock(fd, fcntl.LOCK_EX)
        record = {"mount": mount, "device": device, "paths": list(map(os.fspath, paths))}
        os.write(fd, json.dumps(record).encode())
        yield (path,)
        path.unlink(missing_ok=True)
    finally:
        os.close(fd)


def sweep() -> None:
    """Remove what dead hosts of this user have left."""
    living: set[int] = set()
    dead: list[tuple[Path, dict[str, Any]]] = []
    with contextlib.ExitStack() as stack:
        for path in sorted(sockets.directory().glob(f"*{_SUFFIX}")):
            try:
                record, alive = stack.enter_context(_read(path))
            except (OSError, ValueError):
                continue  # it has just gone, or is being written
            if alive:
                living.add(record["device"])
            else:
                dead.append((path, record))
        for path, record in dead:
            log.info("%s: its host is dead", path)
            # another mount may have its number, and its sockets' names, by now
            if record["device"] not in living:
                _unmount(record["mount"], record["device"])
                for one in record["paths"]:
                    _remove(Path(one))
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _read(path: Path) -> Iterator[tuple[dict[str, Any], bool]]:
    """A record, and whether its host lives; locked in the body if it does not."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        alive = False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            alive = True
        text = os.read(fd, 1 << 16)
        if not alive and not os.path.samestat(os.fstat(fd), os.stat(path)):
            raise FileNotFoundError(path)
        yield json.loads(text), alive
    finally:
        os.close(fd)


def _unmount(mount: str, device: int) -> None:
    """By descriptor: whoever may rename the directory must not choose what root unmounts."""
    try:
        fd = os.open(mount, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not _is_ours(fdinfo(fd)[0], device):
            return
        if os.geteuid() == 0:
            syscalls.umount(os.fsencode(f"/proc/self/fd/{fd}"), detach=True)
        else:
            command = ["fusermount3", "-u", "-z", "-q", "--", mount]
            subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError) as e:
        log.warning("mount %s, whose host is dead: could not be removed: %s", mount, e)
    finally:
        os.close(fd)


def _is_ours(mount_id: int, device: int) -> bool:
    """proc_pid_mountinfo(5)"""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        fields, _, rest = line.partition(" - ")
        id, _, dev = fields.split()[:3]
        if int(id) == mount_id:
            options = rest.split()[-1].split(",")
            return dev == wanted and rest.startswith("fuse") and f"user_id={os.geteuid()}" in options
    return False


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink()
