# SPDX-License-Identifier: Apache-2.0
"""Checks that a directory can be mounted on, before anything is mounted.

Owns the checks and their messages.  Must not mount or unmount.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import shutil
import stat

from daxfault.fsd.errors import MountError

FUSE_DEVICE = "/dev/fuse"
FUSE_CONF = "/etc/fuse.conf"
MOUNTINFO = "/proc/self/mountinfo"


def check(mountpoint: str | os.PathLike[str], backing: str, *, allow_other: bool) -> str:
    """The absolute path of `mountpoint`, on which `backing` (an absolute path) can be mounted.

    Raises MountError, which says what prevents it and what to do about it.
    """
    path = os.path.realpath(mountpoint)
    _check_directory(path)
    _check_backing(path, backing)
    _check_fuse(allow_other)
    return path


def is_mounted(path: str) -> bool:
    """Whether something is mounted exactly at `path`, an absolute path without symlinks; works for a
    dead mount and for a bind mount too (proc(5), mountinfo)."""
    with open(MOUNTINFO, "rb") as lines:
        points = (re.sub(rb"\\([0-7]{3})", _octal, line.split(b" ")[4]) for line in lines)
        return os.fsencode(path) in points


def _octal(match: re.Match[bytes]) -> bytes:
    return bytes([int(match[1], 8)])


def _check_directory(path: str) -> None:
    try:
        st = os.stat(path)
        if is_mounted(path):
            os.statvfs(path)  # a dead mount's attributes may still be cached, but never these
    except FileNotFoundError:
        raise MountError(f"mount point {path}: does not exist; create the directory first") from None
    except OSError as exc:
        if exc.errno == errno.ENOTCONN:
            command = f"umount -l {shlex.quote(path)}"
            if os.geteuid() != 0:
                command = f"fusermount3 -u -z {shlex.quote(path)}"
            raise MountError(
                f"mount point {path}: holds a FUSE mount whose server is gone ({exc.strerror}); "
                f"remove it with: {command}"
            ) from None
        raise MountError(f"mount point {path}: cannot be used: {exc.strerror}") from None
    if not stat.S_ISDIR(st.st_mode):
        raise MountError(f"mount point {path}: is not a directory; name an empty directory")
    if is_mounted(path):
        raise MountError(
            f"mount point {path}: something is mounted there already; unmount it or name another"
        )
    try:
        entries = os.listdir(path)
    except OSError as exc:
        raise MountError(f"mount point {path}: cannot be listed: {exc.strerror}") from None
    if entries:
        raise MountError(
            f"mount point {path}: is not empty, {len(entries)} entries would be hidden; name an empty one"
        )


def _check_backing(path: str, backing: str) -> None:
    """A mount on or below the directory it serves would be served by itself."""
    try:
        served = os.stat(backing)
    except OSError as exc:
        raise MountError(f"backing directory {backing}: cannot be used: {exc.strerror}") from None
    above = path
    while True:
        if os.path.samestat(os.stat(above), served):
            where = "is" if above == path else "lies inside"
            raise MountError(
                f"mount point {path}: {where} the backing directory {backing}; name a directory outside it"
            )
        if above == "/":
            return
        above = os.path.dirname(above)


def _check_fuse(allow_other: bool) -> None:
    try:
        os.close(os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        raise MountError(
            f"{FUSE_DEVICE}: does not exist; load the kernel module with: modprobe fuse "
            f"(in a container: --device {FUSE_DEVICE})"
        ) from None
    except OSError as exc:
        raise MountError(
            f"{FUSE_DEVICE}: cannot be opened: {exc.strerror}; its mode should be 0666 and the container, "
            "if this is one, must permit the device"
        ) from None
    if not os.path.isdir("/proc/self/fd"):
        raise MountError(
            "/proc/self/fd: does not exist; mount /proc, through which files are opened by inode"
        )
    if os.geteuid() == 0:
        return
    if shutil.which("fusermount3") is None:
        raise MountError(
            "fusermount3: not found, and only root can mount without it; install the package fuse3"
        )
    if allow_other and not _user_allow_other():
        raise MountError(f"allow_other: only root may use it, unless {FUSE_CONF} has a line user_allow_other")


def _user_allow_other() -> bool:
    try:
        with open(FUSE_CONF, encoding="utf-8", errors="replace") as lines:
            return any(line.strip() == "user_allow_other" for line in lines)
    except OSError:
        return False
