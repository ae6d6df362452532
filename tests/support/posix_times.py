# SPDX-License-Identifier: Apache-2.0
"""Which of a file's times each call moves: rows for posix_cases.py.

Owns the rows.  An answer is made of "a", "m" and "c", for st_atime, st_mtime and st_ctime,
as in POSIX's "shall mark for update" and the kernel's relatime.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable

OLD = 10**18  # ns; some day in 2001, when atime is no younger than mtime: relatime updates it

Call = Callable[[str], object]


def moved(at: str, name: str, call: Call) -> str:
    """Which times of `name` below `at` differ after `call(at)`."""
    path = f"{at}/{name}"
    os.utime(path, ns=(OLD, OLD), follow_symlinks=False)
    before = os.lstat(path)
    # a clock tick: a change sooner than that may have the ctime of the utime above
    while time.clock_gettime_ns(time.CLOCK_REALTIME) < before.st_ctime_ns + 12_000_000:
        time.sleep(0.002)
    call(at)
    after = os.lstat(path)
    return "".join(
        letter
        for letter, field in (("a", "st_atime_ns"), ("m", "st_mtime_ns"), ("c", "st_ctime_ns"))
        if getattr(before, field) != getattr(after, field)
    )


def with_fd(call: Callable[[int], object], flags: int = os.O_RDWR, name: str = "f") -> Call:
    def run(at: str) -> None:
        fd = os.open(f"{at}/{name}", flags)
        try:
            call(fd)
        finally:
            os.close(fd)

    return run


def load(fd: int) -> None:
    with mmap.mmap(fd, 10, prot=mmap.PROT_READ) as area:
        area[0]


def store(fd: int) -> None:
    with mmap.mmap(fd, 10) as area:
        area[0] = 1
        area.flush()


def refused(call: Call) -> Call:
    def run(at: str) -> None:
        try:
            call(at)
        except OSError:
            return
        raise AssertionError("was to be refused")

    return run


def linked(at: str) -> None:
    os.link(f"{at}/f", f"{at}/other")


# what is done, to which file its times are looked at, and what moves
_ROWS: list[tuple[str, str, Call, str]] = [
    ("read", "f", with_fd(lambda fd: os.read(fd, 5)), "a"),
    ("read at the end", "f", with_fd(lambda fd: os.pread(fd, 5, 10)), "a"),
    ("open and close", "f", with_fd(lambda fd: None), ""),
    ("write", "f", with_fd(lambda fd: os.write(fd, b"x")), "mc"),
    ("write of nothing", "f", with_fd(lambda fd: os.write(fd, b"")), ""),
    ("append", "f", with_fd(lambda fd: os.write(fd, b"x"), os.O_WRONLY | os.O_APPEND), "mc"),
    ("load from a mapping", "f", with_fd(load), "a"),
    ("store to a mapping, and msync", "f", with_fd(store), "amc"),
    ("truncate to less", "f", lambda at: os.truncate(f"{at}/f", 5), "mc"),
    ("truncate to more", "f", lambda at: os.truncate(f"{at}/f", 50), "mc"),
    ("truncate to the same size", "f", lambda at: os.truncate(f"{at}/f", 10), "mc"),
    ("ftruncate to the same size", "f", with_fd(lambda fd: os.ftruncate(fd, 10)), "mc"),
    ("open with O_TRUNC", "f", with_fd(lambda fd: None, os.O_WRONLY | os.O_TRUNC), "mc"),
    ("refused truncate", "f", refused(lambda at: os.truncate(f"{at}/f", -1)), ""),
    ("chmod", "f", lambda at: os.chmod(f"{at}/f", 0o600), "c"),
    ("chmod to the same mode", "f", lambda at: os.chmod(f"{at}/f", 0o644), "c"),
    ("chown", "f", lambda at: os.chown(f"{at}/f", 1, 1), "c"),
    ("chown to nobody new", "f", lambda at: os.chown(f"{at}/f", -1, -1), "c"),
    ("fchown to nobody new", "f", with_fd(lambda fd: os.fchown(fd, -1, -1)), "c"),
    ("chown of a directory to nobody new", "d", lambda at: os.chown(f"{at}/d", -1, -1), "c"),
    ("lchown to nobody new", "link", lambda at: os.lchown(f"{at}/link", -1, -1), "c"),
    ("link", "f", linked, "c"),
    ("rename", "f", lambda at: os.rename(f"{at}/f", f"{at}/g") or os.rename(f"{at}/g", f"{at}/f"), "c"),
    ("refused rename", "f", refused(lambda at: os.rename(f"{at}/f", f"{at}/d")), ""),
    ("setxattr", "f", lambda at: os.setxattr(f"{at}/f", "user.x", b"x"), "c"),
    ("utime now", "f", lambda at: os.utime(f"{at}/f"), "amc"),
    ("utime to given times", "f", lambda at: os.utime(f"{at}/f", ns=(1, 1)), "amc"),
    ("create in", "d", lambda at: os.close(os.open(f"{at}/d/new", os.O_CREAT)), "mc"),
    ("open with O_CREAT what is there in", "d", lambda at: os.close(os.open(f"{at}/d/f", os.O_CREAT)), ""),
    ("mkdir in", "d", lambda at: os.mkdir(f"{at}/d/new"), "mc"),
    ("symlink in", "d", lambda at: os.symlink("x", f"{at}/d/new"), "mc"),
    ("mkfifo in", "d", lambda at: os.mkfifo(f"{at}/d/new"), "mc"),
    ("link into", "d", lambda at: os.link(f"{at}/f", f"{at}/d/new"), "mc"),
    ("unlink in", "d", lambda at: os.unlink(f"{at}/d/f"), "mc"),
    ("rmdir in", "d", lambda at: os.rmdir(f"{at}/d/sub"), "mc"),
    ("rename out of", "d", lambda at: os.rename(f"{at}/d/f", f"{at}/new"), "mc"),
    ("rename into", "d", lambda at: os.rename(f"{at}/f", f"{at}/d/new"), "mc"),
    ("rename in", "d", lambda at: os.rename(f"{at}/d/f", f"{at}/d/new"), "mc"),
    ("write to a file in", "d", with_fd(lambda fd: os.write(fd, b"x"), os.O_WRONLY, "d/f"), ""),
    ("list", "d", lambda at: os.listdir(f"{at}/d"), "a"),
    ("refused unlink in", "d", refused(lambda at: os.unlink(f"{at}/d/sub")), ""),
    ("refused rmdir of", "d", refused(lambda at: os.rmdir(f"{at}/d")), ""),
]

TIMES = [
    (f"times: {what} {name}", lambda at, name=name, call=call: moved(at, name, call), letters)
    for what, name, call, letters in _ROWS
]
