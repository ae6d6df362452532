# SPDX-License-Identifier: Apache-2.0
"""What calls leave behind: modes, owners, sizes, link counts, limits.  Rows for posix_cases.py.

Owns the rows.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import resource
import signal
import stat
from collections.abc import Callable
from pathlib import Path

from fsd_mount import as_user, errno_of

from daxfault.fsd import syscalls

NOBODY, OTHER = 65534, 65533

Call = Callable[[str], object]


def mode(path: str) -> str:
    return oct(stat.S_IMODE(os.lstat(path).st_mode))


def as_nobody(at: str, call: Callable[[], object], groups: list[int] | None = None) -> str:
    return as_user(NOBODY, NOBODY, Path(at), call, groups)


# ---- set-ID bits


def set_id(before: int, call: Call, *, owner: int = NOBODY) -> Call:
    """The mode of "f", `owner`'s, after `call`."""

    def run(at: str) -> object:
        os.chown(f"{at}/f", owner, owner)
        os.chmod(f"{at}/f", before)
        call(at)
        return mode(f"{at}/f")

    return run


def write_as_nobody(at: str) -> None:
    assert as_nobody(at, lambda: os.write(os.open("f", os.O_WRONLY), b"x")) == ""


def store_as_nobody(at: str) -> None:
    def store() -> None:
        with open("f", "r+b") as file, mmap.mmap(file.fileno(), 0) as area:
            area[0] = 1

    assert as_nobody(at, store) == ""


# ---- who may do what


def nobody(call: Callable[[], object], groups: list[int] | None = None) -> Call:
    return lambda at: as_nobody(at, call, groups)


def prepared(prepare: Call, call: Callable[[], object]) -> Call:
    def run(at: str) -> str:
        prepare(at)
        return as_nobody(at, call)

    return run


def made_by_nobody(call: Callable[[], object], name: str) -> Call:
    """Mode, owner and group of what nobody makes in "d", a directory open to all."""

    def run(at: str) -> object:
        os.chmod(f"{at}/d", 0o777)
        assert as_nobody(at, call) == ""
        made = os.lstat(f"{at}/{name}")
        return [oct(made.st_mode), made.st_uid, made.st_gid]

    return run


# ---- sizes and limits


def limited(call: Call, size: int = 100) -> Call:
    """`call` under RLIMIT_FSIZE, with SIGXFSZ ignored; -> its answer or errno, and the size of "f"."""

    def run(at: str) -> object:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        found: list[object] = []
        try:
            error = errno_of(lambda: found.append(call(at)))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, before)
        return [error, *found, os.stat(f"{at}/f").st_size]

    return run


def written(at: str, data: bytes, offset: int, flags: int = os.O_WRONLY) -> int:
    fd = os.open(f"{at}/f", flags)
    try:
        return os.pwrite(fd, data, offset)
    finally:
        os.close(fd)


def appended_by_two(at: str) -> object:
    one, two = (os.open(f"{at}/f", os.O_WRONLY | os.O_APPEND) for _ in range(2))
    for text in (b"a", b"b", b"c", b"d"):
        os.write(one, text)
        os.write(two, text.upper())
    os.close(one)
    os.close(two)
    return Path(at, "f").read_text()


def append_switched_on(at: str) -> object:
    fd = os.open(f"{at}/f", os.O_RDWR)
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
    os.write(fd, b"x")
    position = os.lseek(fd, 0, os.SEEK_CUR)
    fcntl.fcntl(fd, fcntl.F_SETFL, 0)
    os.pwrite(fd, b"y", 0)
    os.close(fd)
    return [position, Path(at, "f").read_text()]


def unlinked_while_open(at: str) -> object:
    fd = os.open(f"{at}/f", os.O_RDWR)
    os.unlink(f"{at}/f")
    os.pwrite(fd, b"x", 5000)
    os.fchmod(fd, 0o601)
    os.ftruncate(fd, 5500)
    st = os.fstat(fd)
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    found = [st.st_nlink, st.st_size, oct(st.st_mode), os.pread(again, 3, 4999).decode()]
    os.close(again)
    os.close(fd)
    return [*found, os.path.exists(f"{at}/f")]


def replaced_while_open(at: str) -> object:
    fd = os.open(f"{at}/d/f", os.O_RDWR)
    Path(at, "f").write_text("new")
    os.rename(f"{at}/f", f"{at}/d/f")
    found = [os.fstat(fd).st_nlink, os.read(fd, 100).decode(), Path(at, "d/f").read_text()]
    os.close(fd)
    return found


def link_counts(at: str) -> object:
    counts = [os.stat(f"{at}/d").st_nlink, os.stat(f"{at}/empty").st_nlink]
    os.rename(f"{at}/d/sub", f"{at}/empty/sub")
    counts += [os.stat(f"{at}/d").st_nlink, os.stat(f"{at}/empty").st_nlink]
    os.link(f"{at}/f", f"{at}/g")
    counts += [os.stat(f"{at}/f").st_nlink, os.stat(f"{at}/g").st_nlink]
    os.rename(f"{at}/d/f", f"{at}/g")
    return [*counts, os.stat(f"{at}/f").st_nlink, os.stat(f"{at}/g").st_nlink]


def exchanged(at: str) -> object:
    here = os.open(at, os.O_RDONLY | os.O_DIRECTORY)
    syscalls.renameat2(here, b"f", here, b"d", syscalls.RENAME_EXCHANGE)
    os.close(here)
    return [os.path.isdir(f"{at}/f"), Path(at, "d").read_text(), sorted(os.listdir(f"{at}/f"))]


def not_replaced(at: str) -> object:
    here = os.open(at, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return errno_of(syscalls.renameat2, here, b"f", here, b"link", syscalls.RENAME_NOREPLACE)
    finally:
        os.close(here)


def omitted(at: str) -> object:
    """utimensat(2) with UTIME_OMIT for one and for the other."""
    os.utime(f"{at}/f", ns=(10**9, 2 * 10**9))
    syscalls.set_times(f"{at}/f".encode(), None, 5 * 10**9)
    first = os.stat(f"{at}/f")
    syscalls.set_times(f"{at}/f".encode(), 7 * 10**9, None)
    second = os.stat(f"{at}/f")
    return [first.st_atime_ns, first.st_mtime_ns, second.st_atime_ns, second.st_mtime_ns]


def before_the_epoch(at: str) -> object:
    os.utime(f"{at}/f", ns=(-1, -(10**9) - 1))
    st = os.stat(f"{at}/f")
    return [st.st_atime_ns, st.st_mtime_ns]


def long_link(at: str) -> object:
    os.symlink("t" * 4095, f"{at}/new")
    return [len(os.readlink(f"{at}/new")), os.lstat(f"{at}/new").st_size]


def deep(at: str) -> object:
    """A tree deeper than a path can be long, made, used and removed relative to its parts."""
    here = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    depth = 30
    try:
        os.chdir(at)
        for _ in range(depth):
            os.mkdir("x" * 200)
            os.chdir("x" * 200)
        Path("f").write_text("deep")
        text = Path("f").read_text()
        os.unlink("f")
        for _ in range(depth):
            os.chdir("..")
            os.rmdir("x" * 200)
        return text
    finally:
        os.fchdir(here)
        os.close(here)


def listed_while_removed(at: str) -> object:
    for number in range(300):
        Path(at, "d", f"{number:04}").touch()
    with os.scandir(f"{at}/d") as entries:
        for entry in entries:
            if not entry.is_dir():
                os.unlink(entry)
    return sorted(os.listdir(f"{at}/d"))


def beyond_the_end(at: str) -> object:
    written(at, b"end", 1_000_000)
    with open(f"{at}/f", "rb") as file:
        return [
            os.pread(file.fileno(), 3, 10).hex(),
            os.stat(f"{at}/f").st_size,
            os.pread(file.fileno(), 9, 10**7).hex(),
        ]


def locks(at: str) -> object:
    one, two = (os.open(f"{at}/f", os.O_RDWR) for _ in range(2))
    fcntl.flock(one, fcntl.LOCK_EX)
    busy = errno_of(fcntl.flock, two, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(one, fcntl.LOCK_UN)
    free = errno_of(fcntl.flock, two, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(one)
    os.close(two)
    return [busy, free]


def umask_of(call: Callable[[str], object], name: str) -> Call:
    def run(at: str) -> object:
        before = os.umask(0o027)
        try:
            call(f"{at}/{name}")
        finally:
            os.umask(before)
        return mode(f"{at}/{name}")

    return run


BEHAVIOUR: list[tuple[str, Call, object]] = [
    # ---- set-ID bits
    ("set-ID: write by its owner", set_id(0o6777, write_as_nobody), "0o777"),
    ("set-ID: write by another user", set_id(0o6777, write_as_nobody, owner=OTHER), "0o777"),
    ("set-ID: write by a user, no group execution", set_id(0o2766, write_as_nobody, owner=OTHER), "0o766"),
    ("set-ID: store to a mapping by a user", set_id(0o6777, store_as_nobody), "0o6777"),
    ("set-ID: write by root", set_id(0o6777, lambda at: written(at, b"x", 0)), "0o6777"),
    ("set-ID: truncate by a user",
     set_id(0o6777, lambda at: as_nobody(at, lambda: os.truncate("f", 3))), "0o777"),
    ("set-ID: O_TRUNC by a user",
     set_id(0o6777, lambda at: as_nobody(at, lambda: os.open("f", os.O_WRONLY | os.O_TRUNC))), "0o777"),
    ("set-ID: truncate by root", set_id(0o6777, lambda at: os.truncate(f"{at}/f", 3)), "0o6777"),
    ("set-ID: chown by root", set_id(0o6777, lambda at: os.chown(f"{at}/f", OTHER, OTHER)), "0o777"),
    ("set-ID: chown by root, no group execution",
     set_id(0o6766, lambda at: os.chown(f"{at}/f", OTHER, OTHER)), "0o2766"),
    ("set-ID: chown to nobody new", set_id(0o6777, lambda at: os.chown(f"{at}/f", -1, -1)), "0o777"),
    ("set-ID: chgrp by its owner",
     set_id(0o6777, lambda at: as_nobody(at, lambda: os.chown("f", -1, OTHER), [OTHER])), "0o777"),
    ("set-ID: chown of a directory",
     lambda at: [os.chmod(f"{at}/d", 0o6755), os.chown(f"{at}/d", OTHER, OTHER), mode(f"{at}/d")][-1],
     "0o6755"),
    ("set-ID: chmod of another group's file by its owner",
     lambda at: [os.chown(f"{at}/f", NOBODY, OTHER), as_nobody(at, lambda: os.chmod("f", 0o2755)),
                 mode(f"{at}/f")][-1], "0o755"),
    # ---- who may do what
    ("user: write another's file", nobody(lambda: os.open("f", os.O_WRONLY)), "EACCES"),
    ("user: create in another's directory", nobody(lambda: os.mkdir("d/new")), "EACCES"),
    ("user: unlink in another's directory", nobody(lambda: os.unlink("d/f")), "EACCES"),
    ("user: chmod another's file", nobody(lambda: os.chmod("f", 0o777)), "EPERM"),
    ("user: chown another's file", nobody(lambda: os.chown("f", NOBODY, NOBODY)), "EPERM"),
    ("user: utime another's file", nobody(lambda: os.utime("f", (1, 1))), "EPERM"),
    ("user: utime of another's file to now", nobody(lambda: os.utime("f")), "EACCES"),
    ("user: utime of another's writable file to now",
     prepared(lambda at: os.chmod(f"{at}/f", 0o666), lambda: os.utime("f")), ""),
    ("user: truncate another's file", nobody(lambda: os.truncate("f", 0)), "EACCES"),
    ("user: search a directory without x",
     prepared(lambda at: os.chmod(f"{at}/d", 0o644), lambda: os.stat("d/f")), "EACCES"),
    ("user: list a directory without r",
     prepared(lambda at: os.chmod(f"{at}/d", 0o711), lambda: os.listdir("d")), "EACCES"),
    ("user: unlink another's file in a sticky directory", nobody(lambda: os.unlink("sticky/f")), "EPERM"),
    ("user: rename another's file in a sticky directory",
     nobody(lambda: os.rename("sticky/f", "sticky/g")), "EPERM"),
    ("user: rename over another's file in a sticky directory",
     nobody(lambda: [os.close(os.open("sticky/own", os.O_CREAT)), os.rename("sticky/own", "sticky/f")]),
     "EPERM"),
    ("user: unlink its own file in a sticky directory",
     nobody(lambda: [os.close(os.open("sticky/own", os.O_CREAT)), os.unlink("sticky/own")]), ""),
    ("user: give its file away",
     prepared(lambda at: os.chown(f"{at}/f", NOBODY, NOBODY), lambda: os.chown("f", OTHER, -1)), "EPERM"),
    ("user: give its file to a group it is not in",
     prepared(lambda at: os.chown(f"{at}/f", NOBODY, NOBODY), lambda: os.chown("f", -1, OTHER)), "EPERM"),
    ("user: make a device", nobody(lambda: os.mknod("sticky/null", 0o020666, os.makedev(1, 3))), "EPERM"),
    ("user: group permission by a supplementary group",
     lambda at: [os.chown(f"{at}/f", 0, OTHER), os.chmod(f"{at}/f", 0o060),
                 as_nobody(at, lambda: os.open("f", os.O_RDWR), [OTHER])][-1], ""),
    ("user: set a trusted attribute", nobody(lambda: os.setxattr("f", "trusted.x", b"")), "EPERM"),
    # ---- what is new
    ("new: file by a user", made_by_nobody(lambda: os.open("d/new", os.O_CREAT, 0o666), "d/new"),
     ["0o100644", NOBODY, NOBODY]),
    ("new: file without permissions by a user",
     made_by_nobody(lambda: os.write(os.open("d/new", os.O_CREAT | os.O_WRONLY, 0), b"x"), "d/new"),
     ["0o100000", NOBODY, NOBODY]),
    ("new: directory by a user", made_by_nobody(lambda: os.mkdir("d/new"), "d/new"),
     ["0o40755", NOBODY, NOBODY]),
    ("new: symlink by a user", made_by_nobody(lambda: os.symlink("x", "d/new"), "d/new"),
     ["0o120777", NOBODY, NOBODY]),
    ("new: FIFO by a user", made_by_nobody(lambda: os.mkfifo("d/new"), "d/new"),
     ["0o10644", NOBODY, NOBODY]),
    ("new: file in a directory with set-group-ID",
     lambda at: [os.chown(f"{at}/d", 0, OTHER), os.chmod(f"{at}/d", 0o2777),
                 as_nobody(at, lambda: os.open("d/new", os.O_CREAT, 0o2755)), os.stat(f"{at}/d/new").st_gid,
                 mode(f"{at}/d/new")][3:], [OTHER, "0o755"]),
    ("new: directory in a directory with set-group-ID",
     lambda at: [os.chown(f"{at}/d", 0, OTHER), os.chmod(f"{at}/d", 0o2777),
                 as_nobody(at, lambda: os.mkdir("d/new")), os.stat(f"{at}/d/new").st_gid,
                 mode(f"{at}/d/new")][3:], [OTHER, "0o2755"]),
    ("new: file under umask 027", umask_of(lambda path: os.open(path, os.O_CREAT, 0o6777), "new"), "0o6750"),
    ("new: directory under umask 027", umask_of(os.mkdir, "new"), "0o750"),
    ("new: FIFO under umask 027", umask_of(os.mkfifo, "new"), "0o640"),
    # ---- sizes and limits
    ("limit: write up to RLIMIT_FSIZE", limited(lambda at: written(at, bytes(200), 0)), [None, 100, 100]),
    ("limit: write at RLIMIT_FSIZE", limited(lambda at: written(at, b"x", 100)), ["EFBIG", 10]),
    ("limit: append at RLIMIT_FSIZE",
     limited(lambda at: written(at, b"x", 0, os.O_WRONLY | os.O_APPEND), 10), ["EFBIG", 10]),
    ("limit: truncate past RLIMIT_FSIZE", limited(lambda at: os.truncate(f"{at}/f", 101)), ["EFBIG", 10]),
    ("limit: truncate to RLIMIT_FSIZE", limited(lambda at: os.truncate(f"{at}/f", 100)), [None, None, 100]),
    ("limit: write at the greatest offset", lambda at: errno_of(written, at, b"x", 2**63 - 2), "EFBIG"),
    ("limit: write past the greatest offset", lambda at: errno_of(written, at, b"xy", 2**63 - 2), "EINVAL"),
    ("size: write beyond the end", beyond_the_end, ["000000", 1_000_003, ""]),
    ("size: two descriptors append", appended_by_two, "0123456789aAbBcCdD"),
    ("size: O_APPEND by fcntl", append_switched_on, [11, "y123456789x"]),
    # ---- names and inodes
    ("inode: unlinked while open", unlinked_while_open, [0, 5500, "0o100601", "\0x\0", False]),
    ("inode: replaced while open", replaced_while_open, [0, "0123456789", "new"]),
    ("inode: link counts", link_counts, [3, 2, 2, 3, 2, 2, 1, 1]),
    ("inode: exchanged", exchanged, [True, "0123456789", ["f", "sub"]]),
    ("inode: rename that must not replace", not_replaced, "EEXIST"),
    ("inode: names removed while listed", listed_while_removed, ["sub"]),
    ("inode: longer target than a page holds", long_link, [4095, 4095]),
    ("inode: deeper than a path is long", deep, "deep"),
    ("time: one of two omitted", omitted, [10**9, 5 * 10**9, 7 * 10**9, 5 * 10**9]),
    ("time: before the epoch", before_the_epoch, [-1, -(10**9) - 1]),
    ("lock: flock between two descriptors", locks, ["EAGAIN", None]),
]  # fmt: skip
