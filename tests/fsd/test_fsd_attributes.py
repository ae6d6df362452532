# SPDX-License-Identifier: Apache-2.0
"""Attributes through the mount: modes, owners, times, sizes, extended attributes, statfs."""

import os
import stat
import struct
import time
from pathlib import Path

import pytest
from fsd_mount import FsdMount, MakeMount, as_user, errno_of, eventually
from needs import require, require_root

NOBODY = 65534

SAME = ("st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_blocks", "st_blksize", "st_rdev",
        "st_atime_ns", "st_mtime_ns", "st_ctime_ns")  # fmt: skip


def test_stat_is_that_of_the_source(mnt: FsdMount) -> None:
    (mnt.source / "f").write_bytes(b"x" * 12345)
    (mnt.source / "d").mkdir()
    (mnt.source / "l").symlink_to("f")
    for name in ("f", "d", "l"):
        ours, theirs = os.lstat(mnt.path / name), os.lstat(mnt.source / name)
        assert [getattr(ours, field) for field in SAME] == [getattr(theirs, field) for field in SAME]
        assert ours.st_ino == theirs.st_ino


@pytest.mark.parametrize("mode", [0o000, 0o600, 0o755, 0o1777, 0o4755, 0o2710, 0o7777])
def test_chmod_sets_every_bit(mnt: FsdMount, mode: int) -> None:
    (mnt.path / "f").touch()
    os.chmod(mnt.path / "f", mode)
    assert stat.S_IMODE(os.stat(mnt.source / "f").st_mode) == mode
    with open(mnt.path / "f") as file:
        os.fchmod(file.fileno(), mode ^ 0o007)
        assert stat.S_IMODE(os.fstat(file.fileno()).st_mode) == mode ^ 0o007


def test_chown_of_file_and_symlink_changes_each_itself(mnt: FsdMount) -> None:
    require_root()
    (mnt.path / "f").touch()
    (mnt.path / "l").symlink_to("f")
    os.lchown(mnt.path / "l", 11, 12)
    os.chown(mnt.path / "l", 21, -1)
    os.chown(mnt.path / "f", -1, 22)
    assert (os.lstat(mnt.source / "l").st_uid, os.lstat(mnt.source / "l").st_gid) == (11, 12)
    assert (os.stat(mnt.source / "f").st_uid, os.stat(mnt.source / "f").st_gid) == (21, 22)


@pytest.mark.parametrize("direct_io", [False, True])
def test_chown_and_changes_by_a_user_clear_the_set_id_bits(make_mount: MakeMount, direct_io: bool) -> None:
    require_root()
    mnt = make_mount(allow_other=True, direct_io=direct_io)
    native = mnt.source.parent / "native"
    native.mkdir(mode=0o755)
    for root in (mnt.path, native):
        for name in ("owned", "written", "appended", "cut", "emptied"):
            (root / name).write_text("text")
            os.chown(root / name, NOBODY, NOBODY)
            os.chmod(root / name, 0o6777)
            os.stat(root / name)

    def change() -> None:
        os.chown("owned", -1, NOBODY)
        with open("written", "r+") as file:
            file.write("x")
        with open("appended", "a") as file:
            file.write("x")
        os.truncate("cut", 1)
        os.close(os.open("emptied", os.O_WRONLY | os.O_TRUNC))

    for root in (mnt.path, native):
        assert as_user(NOBODY, NOBODY, root, change) == ""
        assert {stat.S_IMODE(entry.stat().st_mode) for entry in root.iterdir()} == {0o777}
    assert {stat.S_IMODE(entry.stat().st_mode) for entry in mnt.source.iterdir()} == {0o777}


@pytest.mark.parametrize("direct_io", [False, True])
def test_write_by_root_keeps_the_set_id_bits(make_mount: MakeMount, direct_io: bool) -> None:
    require_root()
    mnt = make_mount(direct_io=direct_io)
    (mnt.path / "f").write_text("text")
    os.chmod(mnt.path / "f", 0o6777)
    with open(mnt.path / "f", "r+") as file:
        file.write("x")
    assert stat.S_IMODE(os.stat(mnt.path / "f").st_mode) == 0o6777


def test_chown_to_nobody_new_marks_the_ctime(mnt: FsdMount) -> None:
    (mnt.path / "d").mkdir()
    before = os.stat(mnt.path / "d").st_ctime_ns
    # two changes within a tick of the clock have one time
    eventually(lambda: time.time_ns() > before + 20_000_000, "the clock has moved")
    os.chown(mnt.path / "d", -1, -1)
    assert os.stat(mnt.path / "d").st_ctime_ns > before


@pytest.mark.parametrize("ns", [0, 1, 10**9 - 1, 1_700_000_000_123_456_789, -1, 4_000_000_000 * 10**9])
def test_times_are_kept_to_the_nanosecond(mnt: FsdMount, ns: int) -> None:
    (mnt.path / "f").touch()
    (mnt.path / "l").symlink_to("f")
    os.utime(mnt.path / "f", ns=(ns, ns + 1))
    os.utime(mnt.path / "l", ns=(5, 7), follow_symlinks=False)
    source = os.stat(mnt.source / "f")
    assert (source.st_atime_ns, source.st_mtime_ns) == (ns, ns + 1)
    assert os.stat(mnt.path / "f").st_mtime_ns == ns + 1
    assert os.lstat(mnt.source / "l").st_mtime_ns == 7


def test_touch_sets_the_time_to_now_and_can_leave_one_alone(mnt: FsdMount) -> None:
    (mnt.path / "f").touch()
    os.utime(mnt.path / "f", ns=(5, 7))
    assert os.system(f"touch -m {mnt.path}/f") == 0
    found = os.stat(mnt.source / "f")
    (mnt.source / "now").touch()
    assert found.st_atime_ns == 5
    assert abs(found.st_mtime_ns - os.stat(mnt.source / "now").st_mtime_ns) < 10**10
    with open(mnt.path / "f") as file:
        os.utime(file.fileno())
    assert os.stat(mnt.source / "f").st_atime_ns != 5


@pytest.mark.parametrize("direct_io", [False, True])
def test_read_moves_the_atime_unless_opened_with_noatime(make_mount: MakeMount, direct_io: bool) -> None:
    mnt = make_mount(direct_io=direct_io)

    def atime_after(root: Path, *all_flags: int) -> int:
        (mnt.source / "f").write_text("text")
        os.utime(mnt.source / "f", ns=(0, 10**18))
        opened = [os.open(root / "f", flags) for flags in all_flags]
        assert os.read(opened[0], 9) == b"text"
        for fd in opened:
            os.close(fd)
        eventually(lambda: mnt.ask("files") == 0, "the file is closed")
        return os.stat(mnt.source / "f").st_atime_ns

    require(atime_after(mnt.source, os.O_RDONLY) != 0, "atimes in the test directory")
    for root in (mnt.source, mnt.path):
        assert atime_after(root, os.O_RDONLY) != 0
        assert atime_after(root, os.O_RDONLY | os.O_NOATIME) == 0
        # another one is opened for writing: the file server opens its descriptor again
        assert atime_after(root, os.O_RDONLY | os.O_NOATIME, os.O_RDWR | os.O_NOATIME) == 0
        assert atime_after(root, os.O_RDONLY, os.O_RDONLY | os.O_NOATIME) != 0


@pytest.mark.parametrize("opened", [False, True])
def test_truncate_shrinks_and_grows_with_zeros(mnt: FsdMount, opened: bool) -> None:
    (mnt.path / "f").write_bytes(b"0123456789" * 1000)
    with open(mnt.path / "f", "r+b") as file:
        target = file.fileno() if opened else mnt.path / "f"
        os.truncate(target, 4)
        assert os.stat(mnt.path / "f").st_size == 4
        os.truncate(target, 9000)
        assert (mnt.path / "f").read_bytes() == b"0123" + bytes(8996)
    assert (mnt.source / "f").read_bytes() == b"0123" + bytes(8996)


def test_truncate_errors_are_those_of_the_source(mnt: FsdMount) -> None:
    (mnt.path / "f").touch()
    (mnt.path / "d").mkdir()
    assert errno_of(os.truncate, mnt.path / "d", 0) == "EISDIR"
    assert errno_of(os.truncate, mnt.path / "f", -1) == "EINVAL"
    assert errno_of(os.truncate, mnt.path / "f", 2**63 - 1) == errno_of(
        os.truncate, mnt.source / "f", 2**63 - 1
    )
    assert os.stat(mnt.path / "f").st_size == 0


def test_extended_attributes_of_files_and_directories(mnt: FsdMount) -> None:
    (mnt.source / "probe").touch()
    require(
        errno_of(os.setxattr, mnt.source / "probe", "user.a", b"") is None,
        "user xattrs in the test directory",
    )
    (mnt.path / "d").mkdir()
    for path in (mnt.path / "probe", mnt.path / "d"):
        os.setxattr(path, "user.b", b"\0binary\xff")
        assert os.getxattr(path, b"user.b") == b"\0binary\xff"
        assert errno_of(os.setxattr, path, "user.b", b"", os.XATTR_CREATE) == "EEXIST"
        assert errno_of(os.setxattr, path, "user.c", b"", os.XATTR_REPLACE) == "ENODATA"
        os.setxattr(path, "user.b", b"", os.XATTR_REPLACE)
        assert os.getxattr(path, "user.b") == b""
        os.removexattr(path, "user.b")
        assert errno_of(os.getxattr, path, "user.b") == "ENODATA"
        assert errno_of(os.removexattr, path, "user.b") == "ENODATA"
    assert os.listxattr(mnt.path / "probe") == ["user.a"]
    assert os.listxattr(mnt.path / "d") == []


def test_extended_attributes_of_a_symlink_are_not_its_targets(mnt: FsdMount) -> None:
    require_root()
    (mnt.path / "f").touch()
    (mnt.path / "l").symlink_to("f")
    os.setxattr(mnt.path / "l", "trusted.x", b"link", follow_symlinks=False)
    assert os.listxattr(mnt.source / "f") == []
    assert os.getxattr(mnt.source / "l", "trusted.x", follow_symlinks=False) == b"link"
    assert errno_of(os.setxattr, mnt.path / "l", "user.x", b"", follow_symlinks=False) == "EPERM"


def acl(owner: int, named: int, group: int, mask: int, other: int) -> bytes:
    """The xattr of a POSIX ACL with one named user, NOBODY (linux/posix_acl_xattr.h)."""
    entries = [(1, owner, -1), (2, named, NOBODY), (4, group, -1), (0x10, mask, -1), (0x20, other, -1)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)


def test_acl_of_the_source_is_enforced(make_mount: MakeMount) -> None:
    require_root()
    mnt = make_mount(allow_other=True)
    (mnt.source / "f").touch()
    os.chown(mnt.source / "f", 0, 777)
    error = errno_of(os.setxattr, mnt.source / "f", "system.posix_acl_access", acl(6, 6, 0, 6, 0))
    require(error is None, "POSIX ACLs in the test directory")

    def use() -> None:
        os.close(os.open("f", os.O_RDWR))

    for root in (mnt.source, mnt.path):
        assert as_user(NOBODY, NOBODY, root, use) == ""
        assert as_user(1234, 777, root, use) == "EACCES"  # the group's bits in the mode are the mask
        assert as_user(1234, 1234, root, use) == "EACCES"


def test_default_acl_is_inherited_by_new_files(make_mount: MakeMount) -> None:
    require_root()
    mnt = make_mount(allow_other=True)
    for name in ("ours", "theirs"):
        (mnt.source / name).mkdir()
        (mnt.source / name).chmod(0o777)
        error = errno_of(os.setxattr, mnt.source / name, "system.posix_acl_default", acl(7, 5, 0, 5, 0))
        require(error is None, "POSIX ACLs in the test directory")

    def make() -> None:
        os.mkdir("d", 0o755)
        os.close(os.open("f", os.O_CREAT | os.O_WRONLY, 0o644))
        os.mkfifo("p", 0o644)

    assert as_user(1234, 1234, mnt.path / "ours", make) == ""
    assert as_user(1234, 1234, mnt.source / "theirs", make) == ""
    for name in ("d", "f", "p"):
        ours, theirs = os.stat(mnt.source / "ours" / name), os.stat(mnt.source / "theirs" / name)
        assert (oct(ours.st_mode), ours.st_uid) == (oct(theirs.st_mode), theirs.st_uid), name
        for kind in os.listxattr(mnt.source / "theirs" / name):
            path, other = mnt.source / "ours" / name, mnt.source / "theirs" / name
            assert os.getxattr(path, kind) == os.getxattr(other, kind), (name, kind)


def test_extended_attributes_can_be_left_out(make_mount: MakeMount) -> None:
    mnt = make_mount(xattr=False)
    (mnt.path / "f").write_text("x")
    assert errno_of(os.getxattr, mnt.path / "f", "user.a") == "ENOTSUP"
    assert errno_of(os.setxattr, mnt.path / "f", "user.a", b"") == "ENOTSUP"


def test_statfs_is_that_of_the_source(mnt: FsdMount) -> None:
    ours, theirs = os.statvfs(mnt.path), os.statvfs(mnt.source)
    assert (ours.f_bsize, ours.f_frsize, ours.f_blocks, ours.f_files, ours.f_namemax) == (
        theirs.f_bsize, theirs.f_frsize, theirs.f_blocks, theirs.f_files, theirs.f_namemax)  # fmt: skip


def test_attributes_changed_behind_the_mount_show_after_the_timeout(make_mount: MakeMount) -> None:
    mnt = make_mount(attr_timeout=0)
    (mnt.source / "f").write_text("x")
    assert os.stat(mnt.path / "f").st_size == 1
    (mnt.source / "f").write_text("longer")
    (mnt.source / "f").chmod(0o640)
    found = os.stat(mnt.path / "f")
    assert (found.st_size, stat.S_IMODE(found.st_mode)) == (6, 0o640)
