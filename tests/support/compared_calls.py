# SPDX-License-Identifier: Apache-2.0
"""Calls made in two places, to be compared: one call, one file, a whole tree.

Owns the part of an answer that does not depend on the place.

    python compared_calls.py A B   exit status 1, and what differs, when the trees below A and B do
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

from fsd_mount import errno_of


def perform(root: Path, call: str, name: str, *args: object) -> object:
    """One call below `root`; -> what it answers that does not depend on where."""
    path: str = os.path.join(root, name)
    match call, *args:
        case "write", int(offset), int(size), bytes(pattern):
            fd = os.open(path, os.O_RDWR | os.O_CREAT)
            try:
                return os.pwrite(fd, (pattern * size)[:size], offset)
            finally:
                os.close(fd)
        case "append", bytes(data):
            fd = os.open(path, os.O_WRONLY | os.O_APPEND)
            try:
                return os.write(fd, data), os.fstat(fd).st_size
            finally:
                os.close(fd)
        case "read", int(offset), int(size):
            fd = os.open(path, os.O_RDONLY)
            try:
                return os.pread(fd, size, offset)
            finally:
                os.close(fd)
        case "create", int(mode), bool(exclusive):
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL * exclusive, mode))
        case "rename" | "link", str(new):
            getattr(os, call)(path, os.path.join(root, new))
        case "symlink", str(new):
            os.symlink(name, os.path.join(root, new))
        case ("readlink",):
            return os.readlink(path)
        case ("listdir",):
            return sorted(os.listdir(path))
        case ("stat",):
            return described(path)
        case "utime", int(ns):
            os.utime(path, ns=(ns, ns + 1))
        case _:
            getattr(os, call)(path, *args)
    return None


def performed(root: Path, call: tuple[object, ...]) -> tuple[str | None, list[object]]:
    """`perform`, an error as its name."""
    answer: list[object] = []
    error = errno_of(lambda: answer.append(perform(root, *call)))
    return error, answer


def described(path: str) -> tuple[object, ...]:
    found = os.lstat(path)
    size = 0 if stat.S_ISDIR(found.st_mode) else found.st_size
    return found.st_mode, found.st_nlink, found.st_uid, found.st_gid, size


def tree(root: Path) -> dict[str, tuple[object, ...]]:
    found = {}
    for directory, directories, files in os.walk(root):
        for name in directories + files:
            path = os.path.join(directory, name)
            data = b""
            if stat.S_ISREG(os.lstat(path).st_mode):
                with open(path, "rb") as file:
                    data = file.read()
            found[os.path.relpath(path, root)] = (*described(path), data)
    return found


if __name__ == "__main__":
    one, other = (tree(Path(root)) for root in sys.argv[1:])
    differing = sorted(name for name in {*one, *other} if one.get(name) != other.get(name))
    for name in differing:
        print(name, *(str(found.get(name))[:200] for found in (one, other)))
    sys.exit(bool(differing))
