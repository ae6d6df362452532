# SPDX-License-Identifier: Apache-2.0
"""Names through the mount: make, find, link, rename, remove, and who owns what is made."""

import ctypes
import os
import socket
import stat

import pytest
from fsd_mount import FsdMount, MakeMount, as_user, errno_of, eventually
from needs import require_root

NOBODY = 65534
NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4

libc = ctypes.CDLL(None, use_errno=True)


def renameat2(old: bytes, new: bytes, flags: int) -> None:
    if libc.renameat2(-100, old, -100, new, flags):
        raise OSError(ctypes.get_errno(), "renameat2")


def test_every_kind_of_file_made_through_the_mount_is_in_the_source(mnt: FsdMount) -> None:
    (mnt.path / "file").write_bytes(b"data")
    (mnt.path / "directory").mkdir()
    (mnt.path / "link").symlink_to("nowhere/at all")
    os.mkfifo(mnt.path / "fifo")
    os.mknod(mnt.path / "socket", stat.S_IFSOCK | 0o600)
    kinds = {entry.name: stat.S_IFMT(entry.lstat().st_mode) for entry in mnt.source.iterdir()}
    assert kinds == {"file": stat.S_IFREG, "directory": stat.S_IFDIR, "link": stat.S_IFLNK,
                     "fifo": stat.S_IFIFO, "socket": stat.S_IFSOCK}  # fmt: skip
    assert (mnt.source / "file").read_bytes() == b"data"
    assert os.readlink(mnt.path / "link") == "nowhere/at all"


def test_device_node_made_by_root_has_its_number(mnt: FsdMount) -> None:
    require_root()
    number = os.makedev(1, 3)
    os.mknod(mnt.path / "null", stat.S_IFCHR | 0o666, number)
    assert os.stat(mnt.path / "null").st_rdev == number
    assert os.stat(mnt.source / "null").st_rdev == number


def test_unix_socket_bound_through_the_mount_can_be_connected(mnt: FsdMount) -> None:
    here = os.open(mnt.path, os.O_RDONLY)
    name = f"/proc/self/fd/{here}/s"  # sun_path holds 108 bytes
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(name)
        server.listen()
        client.connect(name)
    os.close(here)


@pytest.mark.parametrize(
    "name", [b"\xff\xfe", b"caf\xe9", b"new\nline", b"\x01", "ünï".encode(), b"-", b"a" * 255]
)
def test_any_bytes_as_a_name_come_back_as_they_are(mnt: FsdMount, name: bytes) -> None:
    path = bytes(mnt.path) + b"/" + name
    with open(path, "wb") as file:
        file.write(b"x")
    os.symlink(name, path + b"l" if len(name) < 255 else bytes(mnt.path) + b"/l")
    assert name in os.listdir(bytes(mnt.path))
    assert name in os.listdir(bytes(mnt.source))
    os.rename(path, bytes(mnt.path) + b"/plain")
    assert os.listdir(bytes(mnt.source)).count(name) == 0


def test_errors_are_those_of_the_source(mnt: FsdMount) -> None:
    (mnt.path / "full").mkdir()
    (mnt.path / "full" / "x").touch()
    (mnt.path / "file").touch()
    (mnt.path / "loop").symlink_to("loop")
    expected = {
        "ENOENT": [(os.stat, "no"), (os.unlink, "no"), (os.rmdir, "no"), (os.rename, "no", "other")],
        "EEXIST": [
            (os.mkdir, "full"),
            (os.symlink, "a", "file"),
            (os.link, "file", "full"),
            (os.mknod, "file"),
        ],
        "ENOTEMPTY": [(os.rmdir, "full"), (os.rename, mkdir(mnt, "empty"), "full")],
        "ENOTDIR": [(os.rmdir, "file"), (os.stat, "file/x"), (os.rename, "empty", "file")],
        "EISDIR": [(os.unlink, "full"), (os.rename, "file", "empty"), (os.open, "full", os.O_WRONLY)],
        "ENAMETOOLONG": [(os.stat, "n" * 256), (os.mkdir, "n" * 256), (os.rename, "file", "n" * 256)],
        "ELOOP": [(os.stat, "loop"), (os.open, "loop", os.O_RDONLY), (os.open, "loop", os.O_NOFOLLOW)],
        "EINVAL": [(os.rename, "full", "full/below"), (os.readlink, "file")],
        "EXDEV": [(os.link, "file", str(mnt.source / "other"))],
        "EPERM": [(os.link, "full", "hard")],
    }
    here = os.getcwd()
    os.chdir(mnt.path)
    try:
        for name, calls in expected.items():
            for call, *args in calls:
                assert errno_of(call, *args) == name, (call, args)
    finally:
        os.chdir(here)


def mkdir(mnt: FsdMount, name: str) -> str:
    (mnt.path / name).mkdir()
    return name


def test_symlink_to_the_outside_is_followed_by_the_client_only(mnt: FsdMount) -> None:
    outside = mnt.source.parent / "outside"
    outside.write_text("outside")
    (mnt.source / "out").symlink_to("../outside")
    # the link is resolved where the client sees it: beside the mount point
    assert (mnt.path / "out").read_text() == "outside"
    outside.unlink()
    assert errno_of(os.stat, mnt.path / "out") == "ENOENT"
    assert errno_of(os.listdir, mnt.path / "out") == "ENOENT"


def test_hard_link_shares_inode_and_count(mnt: FsdMount) -> None:
    (mnt.path / "a").write_text("x")
    os.link(mnt.path / "a", mnt.path / "b")
    a, b = os.stat(mnt.path / "a"), os.stat(mnt.path / "b")
    assert (a.st_ino, a.st_nlink) == (b.st_ino, 2)
    os.unlink(mnt.path / "a")
    assert (mnt.path / "b").read_text() == "x"
    assert os.stat(mnt.path / "b").st_nlink == 1


def test_hard_link_of_a_symlink_links_the_symlink(mnt: FsdMount) -> None:
    (mnt.path / "target").touch()
    (mnt.path / "a").symlink_to("target")
    os.link(mnt.path / "a", mnt.path / "b", follow_symlinks=False)
    assert os.readlink(mnt.source / "b") == "target"


def test_rename_over_an_open_file_leaves_both_usable(mnt: FsdMount) -> None:
    (mnt.path / "new").write_text("new")
    (mnt.path / "old").write_text("old")
    with open(mnt.path / "old", "r+") as old, open(mnt.path / "new") as new:
        os.rename(mnt.path / "new", mnt.path / "old")
        assert os.fstat(old.fileno()).st_nlink == 0
        old.write("OLD")
        old.flush()
        assert os.pread(old.fileno(), 9, 0) == b"OLD"
        assert new.read() == "new"
    assert (mnt.source / "old").read_text() == "new"


def test_rename_of_a_directory_keeps_what_is_open_below(mnt: FsdMount) -> None:
    (mnt.path / "a" / "b").mkdir(parents=True)
    with open(mnt.path / "a" / "b" / "f", "w") as file:
        os.rename(mnt.path / "a", mnt.path / "z")
        file.write("still")
    assert (mnt.source / "z" / "b" / "f").read_text() == "still"
    assert (mnt.path / "z" / "b" / "f").read_text() == "still"


def test_rename_noreplace_refuses_and_exchange_swaps(mnt: FsdMount) -> None:
    (mnt.path / "a").write_text("a")
    (mnt.path / "d").mkdir()
    a, d = bytes(mnt.path / "a"), bytes(mnt.path / "d")
    assert errno_of(renameat2, a, d, NOREPLACE) == "EEXIST"
    renameat2(a, a + b"2", NOREPLACE)
    renameat2(a + b"2", d, EXCHANGE)
    assert (mnt.path / "d").read_text() == "a"
    assert (mnt.path / "a2").is_dir()
    (mnt.path / "a2" / "x").touch()
    assert errno_of(renameat2, a, d, EXCHANGE) == "ENOENT"
    assert errno_of(renameat2, d, a, WHITEOUT) == "EINVAL"


def test_rename_between_two_names_of_a_file_leaves_both(mnt: FsdMount) -> None:
    (mnt.path / "a").touch()
    os.link(mnt.path / "a", mnt.path / "b")
    os.rename(mnt.path / "a", mnt.path / "b")
    assert sorted(os.listdir(mnt.source)) == ["a", "b"]
    os.unlink(mnt.path / "a")
    assert os.stat(mnt.path / "b").st_nlink == 1


def test_removed_directory_can_still_be_used_by_who_is_in_it(mnt: FsdMount) -> None:
    (mnt.path / "d").mkdir()
    inside = os.open(mnt.path / "d", os.O_PATH)
    os.rmdir(mnt.path / "d")
    assert stat.S_ISDIR(os.fstat(inside).st_mode)
    assert errno_of(os.mkdir, "x", dir_fd=inside) == "ENOENT"
    os.close(inside)


def test_name_made_behind_the_mount_is_there_at_once(mnt: FsdMount) -> None:
    assert errno_of(os.stat, mnt.path / "new") == "ENOENT"
    (mnt.source / "new").write_text("x")
    assert (mnt.path / "new").read_text() == "x"


def test_name_replaced_behind_the_mount_is_the_new_file_after_the_timeout(make_mount: MakeMount) -> None:
    mnt = make_mount(entry_timeout=0, attr_timeout=0)
    (mnt.source / "f").write_text("old")
    assert (mnt.path / "f").read_text() == "old"
    (mnt.source / "new").write_text("new file")
    os.rename(mnt.source / "new", mnt.source / "f")
    assert (mnt.path / "f").read_text() == "new file"
    (mnt.source / "f").unlink()
    (mnt.source / "f").mkdir()
    assert (mnt.path / "f").is_dir()


def test_create_of_a_name_just_made_behind_the_mount_opens_it_unless_exclusive(mnt: FsdMount) -> None:
    mnt.ask("make_when_looked_up", name="f", text="there")
    assert errno_of(os.open, mnt.path / "f", os.O_CREAT | os.O_EXCL | os.O_RDWR) == "EEXIST"
    (mnt.source / "f").unlink()
    mnt.ask("make_when_looked_up", name="f", text="there")
    fd = os.open(mnt.path / "f", os.O_CREAT | os.O_RDWR)
    assert os.read(fd, 9) == b"there"
    os.close(fd)


def test_owner_and_mode_of_new_files_are_the_callers(make_mount: MakeMount) -> None:
    require_root()
    mnt = make_mount(allow_other=True)
    mnt.source.chmod(0o777)

    def make() -> None:
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, 0o6666))
        os.mkdir("directory", 0o777)
        os.symlink("x", "link")
        os.mkfifo("fifo", 0o666)

    assert as_user(NOBODY, 1234, mnt.path, make) == ""
    found = {entry.name: entry.lstat() for entry in mnt.source.iterdir()}
    assert {(st.st_uid, st.st_gid) for st in found.values()} == {(NOBODY, 1234)}
    assert stat.S_IMODE(found["file"].st_mode) == 0o6644
    assert stat.S_IMODE(found["directory"].st_mode) == 0o755
    assert stat.S_IMODE(found["fifo"].st_mode) == 0o644


def test_setgid_directory_gives_its_group_and_bit(make_mount: MakeMount) -> None:
    require_root()
    mnt = make_mount(allow_other=True)
    mnt.source.chmod(0o777)
    shared = mnt.source / "shared"
    shared.mkdir()
    os.chown(shared, 0, 777)
    shared.chmod(0o2777)

    def make() -> None:
        os.close(os.open("shared/file", os.O_CREAT | os.O_WRONLY, 0o644))
        os.mkdir("shared/below", 0o700)

    assert as_user(NOBODY, NOBODY, mnt.path, make) == ""
    file, below = os.stat(shared / "file"), os.stat(shared / "below")
    assert (file.st_uid, file.st_gid, stat.S_IMODE(file.st_mode)) == (NOBODY, 777, 0o644)
    assert (below.st_uid, below.st_gid, stat.S_IMODE(below.st_mode)) == (NOBODY, 777, 0o2700)


def test_permissions_are_enforced_for_other_users(make_mount: MakeMount) -> None:
    require_root()
    mnt = make_mount(allow_other=True)
    (mnt.path / "secret").write_text("x")
    (mnt.path / "secret").chmod(0o600)
    assert as_user(NOBODY, NOBODY, mnt.path, lambda: os.open("secret", os.O_RDONLY)) == "EACCES"
    assert as_user(NOBODY, NOBODY, mnt.path, lambda: os.mkdir("d")) == "EACCES"
    assert as_user(NOBODY, NOBODY, mnt.path, lambda: os.chmod("secret", 0o777)) == "EPERM"
    os.chown(mnt.path / "secret", NOBODY, NOBODY)
    assert as_user(NOBODY, NOBODY, mnt.path, lambda: os.close(os.open("secret", os.O_RDWR))) == ""


def test_mount_of_a_read_only_source_answers_erofs(
    make_mount: MakeMount, read_only_source: os.PathLike
) -> None:
    mnt = make_mount(read_only_source)
    assert (mnt.path / "file").read_text() == "data"
    calls = [(os.mkdir, "d"), (os.unlink, "file"), (os.rename, "file", "g"), (os.symlink, "a", "b"),
             (os.link, "file", "h"), (os.chmod, "file", 0o600), (os.truncate, "file", 0), (os.utime, "file"),
             (os.open, "file", os.O_RDWR), (os.open, "new", os.O_CREAT | os.O_RDWR),
             (os.setxattr, "file", "user.a", b"")]  # fmt: skip
    for call, *args in calls:
        paths = [mnt.path / arg if isinstance(arg, str) and "." not in arg else arg for arg in args]
        assert errno_of(call, *paths) == "EROFS", (call, args)
    assert not os.access(mnt.path / "file", os.W_OK)


def test_names_are_forgotten_after_their_last_use(mnt: FsdMount) -> None:
    (mnt.path / "f").write_text("x")
    os.unlink(mnt.path / "f")
    eventually(lambda: list(mnt.ask("lookups")) == ["1"], "the table holds the root only")


def test_concurrent_making_and_removing_ends_in_an_empty_tree(mnt: FsdMount) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def work(worker: int) -> None:
        for turn in range(20):
            name = mnt.path / f"{worker}-{turn}"
            name.mkdir()
            (name / "f").write_text(str(turn))
            os.rename(name / "f", mnt.path / f"shared{turn % 3}")
            assert (mnt.path / f"shared{turn % 3}").stat().st_size > 0
            name.rmdir()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert sorted(os.listdir(mnt.source)) == ["shared0", "shared1", "shared2"]
