# SPDX-License-Identifier: Apache-2.0
"""Where the sockets of the hosts of one user are.

Owns their directory, in which nobody else may put a socket of his own: it would be believed.  Must not
know what is said on them.  Paths are short, as sockaddr_un has room for 107 bytes (unix(7)).
"""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

import trio

from daxfault.vmm.errors import UsageError

TOP_MAX = 64  # bytes of $XDG_RUNTIME_DIR; /tmp is used instead of a longer one


def control(device: int) -> Path:
    """Of the host of the mount with this st_dev, for `daxfault inject` and the like."""
    return directory() / f"{os.major(device)}:{os.minor(device)}"


def programs(device: int) -> Path:
    """The same host's, for programs."""
    return directory() / f"{os.major(device)}:{os.minor(device)}.programs"


def directory() -> Path:
    """Where they are: root's are in /run, others' where they may write."""
    if os.geteuid() == 0:
        return Path("/run/daxfault-0")
    top = os.environ.get("XDG_RUNTIME_DIR", "")
    return Path(top if 0 < len(os.fsencode(top)) <= TOP_MAX else "/tmp", f"daxfault-{os.geteuid()}")


def make_directory() -> None:
    """Make it if it is not there; UsageError when that is refused, or as check_directory()."""
    path = directory()
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        check_directory()
        if os.geteuid() == 0:
            path.chmod(0o711)  # the user of `run --user` connects to a socket in it
    except OSError as e:
        raise UsageError(f"{path}: cannot be made, and sockets are put there: {e.strerror}") from e


def check_directory() -> None:
    """UsageError unless only this user may write to it.  FileNotFoundError.

    What is in it can then be used by name: its own name is this user's, too, or in a directory with the
    sticky bit.
    """
    path = directory()
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
    finally:
        os.close(fd)
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise UsageError(
            f"{path}: user {status.st_uid} or others may write to it, mode {status.st_mode & 0o7777:o}, and "
            "could answer there in a host's place; remove it, or set XDG_RUNTIME_DIR to a directory of yours"
        )


def peer_user(sock: socket.socket | trio.socket.SocketType) -> int:
    """The user of the process at the other end: who called connect(2), or listen(2)."""
    found = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    _, uid, _ = struct.unpack("3i", found)
    return int(uid)
