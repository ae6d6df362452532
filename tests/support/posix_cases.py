# SPDX-License-Identifier: Apache-2.0
"""What POSIX and Linux say that each call answers, as tables of cases.

Owns the cases and the small tree that each is given.  Must not know which file system
it is run on: a case answers with what can be compared, and `EXPECTED` is the answer of a
local Linux file system.  Every case runs in a fresh tree.

    python posix_cases.py DIRECTORY   runs all, -> {"case": [answer, expected], ...} on stdout
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from fsd_mount import errno_of

Case = Callable[[str], object]

LONG = "n" * 255  # NAME_MAX of every usual file system


def tree(at: str) -> None:
    """The tree that a case finds: files, directories, links, a FIFO."""
    os.makedirs(at)
    for directory in ("d", "d/sub", "empty", "sticky"):
        os.mkdir(f"{at}/{directory}")
    for file in ("f", "d/f", "sticky/f"):
        Path(at, file).write_bytes(b"0123456789")
    os.chmod(f"{at}/sticky", 0o1777)
    os.symlink("f", f"{at}/link")
    os.symlink("d", f"{at}/dirlink")
    os.symlink("nowhere", f"{at}/gone")
    os.symlink("loop2", f"{at}/loop1")
    os.symlink("loop1", f"{at}/loop2")
    os.mkfifo(f"{at}/fifo")


def opened(path: str, flags: int, then: Callable[[int], object] = lambda fd: None) -> object:
    fd = os.open(path, flags, 0o644)
    try:
        return then(fd)
    finally:
        os.close(fd)


def opens(name: str, flags: int, then: Callable[[int], object] = lambda fd: None) -> Case:
    return lambda at: opened(f"{at}/{name}", flags, then)


# call -> the name of the errno it ends with, None for success
ERRORS: list[tuple[str, Case, str | None]] = [
    # ---- open
    ("open what is missing", opens("missing", os.O_RDONLY), "ENOENT"),
    ("open a directory to write", opens("d", os.O_WRONLY), "EISDIR"),
    ("open a directory with O_CREAT", opens("d", os.O_RDONLY | os.O_CREAT), "EISDIR"),
    ("open a directory with O_TRUNC", opens("d", os.O_RDONLY | os.O_TRUNC), "EISDIR"),
    ("open a file with O_DIRECTORY", opens("f", os.O_RDONLY | os.O_DIRECTORY), "ENOTDIR"),
    ("open a link with O_NOFOLLOW", opens("link", os.O_RDONLY | os.O_NOFOLLOW), "ELOOP"),
    ("open a link to a directory with O_NOFOLLOW|O_DIRECTORY",
     opens("dirlink", os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY), "ENOTDIR"),
    ("open a link with O_PATH|O_NOFOLLOW", opens("link", os.O_PATH | os.O_NOFOLLOW), None),
    ("open a loop", opens("loop1", os.O_RDONLY), "ELOOP"),
    ("open below a loop", opens("loop1/f", os.O_RDONLY), "ELOOP"),
    ("open below a file", opens("f/x", os.O_RDONLY), "ENOTDIR"),
    ("open a file with a slash behind", opens("f/", os.O_RDONLY), "ENOTDIR"),
    ("create with a slash behind", opens("new/", os.O_WRONLY | os.O_CREAT), "EISDIR"),
    ("create what is there with O_EXCL", opens("f", os.O_WRONLY | os.O_CREAT | os.O_EXCL), "EEXIST"),
    ("create a dangling link's name with O_EXCL", opens("gone", os.O_WRONLY | os.O_CREAT | os.O_EXCL),
     "EEXIST"),
    ("create through a dangling link", opens("gone", os.O_WRONLY | os.O_CREAT), None),
    ("create in what is missing", opens("missing/f", os.O_WRONLY | os.O_CREAT), "ENOENT"),
    ("create with the longest name", opens(LONG, os.O_WRONLY | os.O_CREAT), None),
    ("create with a name too long", opens(LONG + "n", os.O_WRONLY | os.O_CREAT), "ENAMETOOLONG"),
    ("look up a name too long", lambda at: os.stat(f"{at}/{LONG}n"), "ENAMETOOLONG"),
    ("open a path too long", opens("./" * 2048 + "f", os.O_RDONLY), "ENAMETOOLONG"),
    ("open a FIFO to write with O_NONBLOCK", opens("fifo", os.O_WRONLY | os.O_NONBLOCK), "ENXIO"),
    ("open a removed directory's entry", lambda at: _in_removed(at, lambda: os.open("x", os.O_CREAT)),
     "ENOENT"),
    # ---- read, write, seek
    ("read what is open to write", opens("f", os.O_WRONLY, lambda fd: os.read(fd, 1)), "EBADF"),
    ("write what is open to read", opens("f", os.O_RDONLY, lambda fd: os.write(fd, b"x")), "EBADF"),
    ("read a directory", opens("d", os.O_RDONLY, lambda fd: os.read(fd, 1)), "EISDIR"),
    ("write at a negative offset", opens("f", os.O_WRONLY, lambda fd: os.pwrite(fd, b"x", -1)), "EINVAL"),
    ("seek before the beginning", opens("f", os.O_RDONLY, lambda fd: os.lseek(fd, -1, os.SEEK_SET)),
     "EINVAL"),
    ("seek for data behind the end", opens("f", os.O_RDONLY, lambda fd: os.lseek(fd, 10, os.SEEK_DATA)),
     "ENXIO"),
    ("sync a file", opens("f", os.O_RDONLY, os.fsync), None),
    ("sync a directory", opens("d", os.O_RDONLY, os.fsync), None),
    # ---- truncate
    ("truncate a directory", lambda at: os.truncate(f"{at}/d", 0), "EISDIR"),
    ("truncate a FIFO", lambda at: os.truncate(f"{at}/fifo", 0), "EINVAL"),
    ("truncate to less than nothing", lambda at: os.truncate(f"{at}/f", -1), "EINVAL"),
    ("truncate what is open to read", opens("f", os.O_RDONLY, lambda fd: os.ftruncate(fd, 0)), "EINVAL"),
    ("truncate what is missing", lambda at: os.truncate(f"{at}/missing", 0), "ENOENT"),
    ("truncate to the greatest number", lambda at: os.truncate(f"{at}/f", 2**63 - 1), "EFBIG"),
    # ---- mkdir, rmdir, mknod
    ("mkdir over a file", lambda at: os.mkdir(f"{at}/f"), "EEXIST"),
    ("mkdir over a dangling link", lambda at: os.mkdir(f"{at}/gone"), "EEXIST"),
    ("mkdir with a slash behind", lambda at: os.mkdir(f"{at}/new/"), None),
    ("mkdir with a name too long", lambda at: os.mkdir(f"{at}/{LONG}n"), "ENAMETOOLONG"),
    ("mkdir below a file", lambda at: os.mkdir(f"{at}/f/x"), "ENOTDIR"),
    ("mkdir .", lambda at: os.mkdir(f"{at}/d/."), "EEXIST"),
    ("rmdir what is not empty", lambda at: os.rmdir(f"{at}/d"), "ENOTEMPTY"),
    ("rmdir a file", lambda at: os.rmdir(f"{at}/f"), "ENOTDIR"),
    ("rmdir a link to a directory", lambda at: os.rmdir(f"{at}/dirlink"), "ENOTDIR"),
    ("rmdir .", lambda at: os.rmdir(f"{at}/empty/."), "EINVAL"),
    ("rmdir ..", lambda at: os.rmdir(f"{at}/d/sub/.."), "ENOTEMPTY"),
    ("rmdir what is missing", lambda at: os.rmdir(f"{at}/missing"), "ENOENT"),
    ("mknod over a file", lambda at: os.mknod(f"{at}/f"), "EEXIST"),
    ("mknod a directory", lambda at: os.mknod(f"{at}/new", 0o040755), "EPERM"),
    ("mkdir in a removed directory", lambda at: _in_removed(at, lambda: os.mkdir("x")), "ENOENT"),
    # ---- unlink, link, symlink
    ("unlink a directory", lambda at: os.unlink(f"{at}/empty"), "EISDIR"),
    ("unlink a file with a slash behind", lambda at: os.unlink(f"{at}/f/"), "ENOTDIR"),
    ("unlink a dangling link", lambda at: os.unlink(f"{at}/gone"), None),
    ("unlink a loop", lambda at: os.unlink(f"{at}/loop1"), None),
    ("unlink what is missing", lambda at: os.unlink(f"{at}/missing"), "ENOENT"),
    ("link over a file", lambda at: os.link(f"{at}/f", f"{at}/d/f"), "EEXIST"),
    ("link a directory", lambda at: os.link(f"{at}/d", f"{at}/new"), "EPERM"),
    ("link what is missing", lambda at: os.link(f"{at}/missing", f"{at}/new"), "ENOENT"),
    ("link into another file system", lambda at: os.link("/proc/version", f"{at}/new"), "EXDEV"),
    ("link an unlinked open file", lambda at: _link_unlinked(at), "ENOENT"),
    ("link with a name too long", lambda at: os.link(f"{at}/f", f"{at}/{LONG}n"), "ENAMETOOLONG"),
    ("symlink over a link", lambda at: os.symlink("x", f"{at}/gone"), "EEXIST"),
    ("symlink to nothing", lambda at: os.symlink("", f"{at}/new"), "ENOENT"),
    ("symlink of the longest target", lambda at: os.symlink("t" * 4095, f"{at}/new"), None),
    ("symlink of a target too long", lambda at: os.symlink("t" * 4096, f"{at}/new"), "ENAMETOOLONG"),
    ("readlink a file", lambda at: os.readlink(f"{at}/f"), "EINVAL"),
    ("readlink a loop", lambda at: os.readlink(f"{at}/loop1"), None),
    # ---- rename
    ("rename a file over a directory", lambda at: os.rename(f"{at}/f", f"{at}/empty"), "EISDIR"),
    ("rename a directory over a file", lambda at: os.rename(f"{at}/d", f"{at}/f"), "ENOTDIR"),
    ("rename a directory over an empty one", lambda at: os.rename(f"{at}/d", f"{at}/empty"), None),
    ("rename a directory over a full one", lambda at: os.rename(f"{at}/empty", f"{at}/d"), "ENOTEMPTY"),
    ("rename a directory into itself", lambda at: os.rename(f"{at}/d", f"{at}/d/sub/new"), "EINVAL"),
    ("rename a directory over its own parent", lambda at: os.rename(f"{at}/d/sub", f"{at}/d"), "ENOTEMPTY"),
    ("rename to the same name", lambda at: os.rename(f"{at}/f", f"{at}/f"), None),
    ("rename what is missing", lambda at: os.rename(f"{at}/missing", f"{at}/new"), "ENOENT"),
    ("rename .", lambda at: os.rename(f"{at}/d/.", f"{at}/new"), "EBUSY"),
    ("rename to a name too long", lambda at: os.rename(f"{at}/f", f"{at}/{LONG}n"), "ENAMETOOLONG"),
    ("rename a file to a name with a slash behind", lambda at: os.rename(f"{at}/f", f"{at}/new/"), "ENOTDIR"),
    ("rename into another file system", lambda at: os.rename(f"{at}/f", "/proc/new"), "EXDEV"),
    ("rename a loop", lambda at: os.rename(f"{at}/loop1", f"{at}/new"), None),
    # ---- attributes
    ("chmod a loop", lambda at: os.chmod(f"{at}/loop1", 0o600), "ELOOP"),
    ("chmod a dangling link", lambda at: os.chmod(f"{at}/gone", 0o600), "ENOENT"),
    ("chown what is missing", lambda at: os.chown(f"{at}/missing", 0, 0), "ENOENT"),
    ("utime what is missing", lambda at: os.utime(f"{at}/missing"), "ENOENT"),
    ("stat below a file", lambda at: os.stat(f"{at}/f/.."), "ENOTDIR"),
    ("listxattr of a loop", lambda at: os.listxattr(f"{at}/loop1"), "ELOOP"),
    ("getxattr that is missing", lambda at: os.getxattr(f"{at}/f", "user.x"), "ENODATA"),
    ("setxattr that must be there", lambda at: os.setxattr(f"{at}/f", "user.x", b"", os.XATTR_REPLACE),
     "ENODATA"),
    ("setxattr that must not be there", lambda at: _xattr_twice(f"{at}/f"), "EEXIST"),
    ("setxattr of a user's on a link",
     lambda at: os.setxattr(f"{at}/link", "user.x", b"", follow_symlinks=False), "EPERM"),
    ("setxattr of no namespace", lambda at: os.setxattr(f"{at}/f", "x", b""), "ENOTSUP"),
    ("setxattr of a name too long", lambda at: os.setxattr(f"{at}/f", "user." + "x" * 251, b""), "ERANGE"),
    ("setxattr of a value too long", lambda at: os.setxattr(f"{at}/f", "user.x", bytes(65537)), "E2BIG"),
]  # fmt: skip

_NO_HANDLER = "pyfuse3 has no handler for fallocate(2): EOPNOTSUPP; posix_fallocate(3) writes zeros instead"

# what a mount answers otherwise, and why
LACKING = {
    "times: read at the end f": "the kernel knows the size, and asks for nothing behind it",
    "set-ID: write by a user, no group execution": "the kernel leaves it (fuse_setattr in fs/fuse/dir.c)",
    "linux: fallocate": _NO_HANDLER,
    "linux: fallocate that keeps the size": _NO_HANDLER,
    "linux: punch a hole": _NO_HANDLER,
    "linux: holes are told from data": "pyfuse3 has no handler for lseek(2): the file is one piece of data",
    "linux: O_TMPFILE, linked": "pyfuse3 has no handler for it: EOPNOTSUPP",
    "linux: flags of an inode": "pyfuse3 has no usable handler for ioctl(2): ENOTTY",
}


def _in_removed(at: str, call: Callable[[], object]) -> object:
    """`call` with the directory "empty", which is removed then, as the working directory."""
    here = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.chdir(f"{at}/empty")
        os.rmdir(f"{at}/empty")
        return call()
    finally:
        os.fchdir(here)
        os.close(here)


def _link_unlinked(at: str) -> None:
    fd, here = os.open(f"{at}/f", os.O_RDWR), os.open(at, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.unlink(f"{at}/f")
        os.link(f"/proc/self/fd/{fd}", "new", dst_dir_fd=here)  # which makes it linkat(2), AT_SYMLINK_FOLLOW
    finally:
        os.close(fd)
        os.close(here)


def _xattr_twice(path: str) -> None:
    os.setxattr(path, "user.x", b"1", os.XATTR_CREATE)
    os.setxattr(path, "user.x", b"2", os.XATTR_CREATE)


def cases() -> dict[str, tuple[Case, object]]:
    """Every case by name, with the answer that is expected."""
    from posix_behaviour import BEHAVIOUR
    from posix_linux import LINUX
    from posix_times import TIMES

    found: dict[str, tuple[Case, object]] = {}
    for name, call, error in ERRORS:
        found[name] = (lambda at, call=call: errno_of(call, at), error)
    for name, call, answer in [*TIMES, *BEHAVIOUR, *LINUX]:
        assert name not in found
        found[name] = (call, answer)
    return found


def answer(call: Case, at: str) -> object:
    """What `call` answers in a fresh tree at `at`, which is removed; an error as a sentence."""
    tree(at)
    try:
        return json.loads(json.dumps(call(at)))
    except Exception as exc:
        return f"{type(exc).__name__}: {exc}"
    finally:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(at)


if __name__ == "__main__":
    os.umask(0o022)
    where = os.path.join(os.path.abspath(sys.argv[1]), "case")
    told = {name: [answer(call, where), expected] for name, (call, expected) in cases().items()}
    json.dump(told, sys.stdout)
