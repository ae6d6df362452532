# SPDX-License-Identifier: Apache-2.0
"""The paths of the sockets of one user's hosts.

Owns their directory.  Other users must not be able to write to it, because a socket in it is trusted.
Must not know the messages.  Paths are short, as sockaddr_un has room for 107 bytes (unix(7)).
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
    """The control socket of the host of the mount with this st_dev, for `daxfault inject`."""
    return directory() / f"{os.major(device)}:{os.minor(device)}"


def programs(device: int) -> Path:
    """The same host's socket for programs."""
    return directory() / f"{os.major(device)}:{os.minor(device)}.programs"


def directory() -> Path:
    """The directory: in /run for root, in a writable directory for others."""
    if os.geteuid() == 0:
        return Path("/run/daxfault-0")
    top = os.environ.get("XDG_RUNTIME_DIR", "")
    return Path(top if 0 < len(os.fsencode(top)) <= TOP_MAX else "/tmp", f"daxfault-{os.geteuid()}")


def make_directory() -> None:
    """Make the directory if it does not exist; UsageError when that fails, or as check_directory()."""
    path = directory()
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        check_directory()
        if os.geteuid() == 0:
            path.chmod(0o711)  # the user of `run --user` connects to a socket in it
    except OSError as e:
        raise UsageError(f"{path}: cannot be made, but is needed for sockets: {e.strerror}") from e


def check_directory() -> None:
    """UsageError unless only this user may write to the directory.  FileNotFoundError.

    Files in it can then be used by name: the parent directory also belongs to this user, or has the
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
            "could pose as a host; remove it, or set XDG_RUNTIME_DIR to a directory of yours"
        )


def peer_user(sock: socket.socket | trio.socket.SocketType) -> int:
    """The user id of the peer at its connect(2) or listen(2)."""
    found = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    _, uid, _ = struct.unpack("3i", found)
    return int(uid)
