# SPDX-License-Identifier: Apache-2.0
"""The inode table: lookup counts, identity, and the bound on descriptors."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fsd_mount import FsdMount, MakeMount, drop_caches, errno_of, eventually
from needs import require, require_root

from daxfault.fsd.inodes import LEAST_DESCRIPTORS, PATH_FLAGS, Inode, Inodes

FEW = LEAST_DESCRIPTORS


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Inodes]:
    found = Inodes(os.open(tmp_path, PATH_FLAGS), FEW)
    yield found
    found.close()


def enter(table: Inodes, parent: Inode, name: bytes, *, opened: bool = True) -> Inode:
    fd = table.open_path(name, table.fd(parent))
    st = os.fstat(fd)
    if not opened:
        os.close(fd)
    return table.enter(parent, name, st, fd if opened else None)


# ---- the table by itself


def test_count_returns_to_nothing_and_so_do_the_parents(table: Inodes, tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    a = enter(table, table.root, b"a")
    b = enter(table, a, b"b")
    assert enter(table, a, b"b") is b
    table.forget(a.nodeid, 1)
    assert len(table) == 3  # b was found in it
    table.forget(b.nodeid, 1)
    assert len(table) == 3
    table.forget(b.nodeid, 1)
    assert len(table) == 1
    assert table.open_descriptors() == 1


def test_forgetting_too_often_is_logged_and_harmless(table: Inodes, caplog: pytest.LogCaptureFixture) -> None:
    table.forget(77, 1)
    table.forget(table.root.nodeid, 5)
    assert caplog.text.count("more often than it looked it up") == 2
    assert len(table) == 1


def test_unknown_nodeid_is_estale(table: Inodes) -> None:
    assert errno_of(table.get, 77) == "ESTALE"


def test_descriptor_is_opened_again_by_name(table: Inodes, tmp_path: Path) -> None:
    for number in range(3 * FEW):
        (tmp_path / str(number)).mkdir()
    nodes = [enter(table, table.root, b"%d" % number) for number in range(3 * FEW)]
    assert table.open_descriptors() == FEW + 1
    for node in nodes:
        assert os.fstat(table.fd(node)).st_ino == node.ino
    assert table.open_descriptors() == FEW + 1


def test_file_replaced_while_without_descriptor_is_estale(table: Inodes, tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    (tmp_path / "other").touch()
    node = enter(table, table.root, b"f", opened=False)
    os.rename(tmp_path / "other", tmp_path / "f")
    assert errno_of(table.fd, node) == "ESTALE"
    os.unlink(tmp_path / "f")
    assert errno_of(table.fd, node) == "ESTALE"


def test_inode_number_given_to_another_kind_of_file_is_a_new_inode(table: Inodes, tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    old = enter(table, table.root, b"f", opened=False)
    os.unlink(tmp_path / "f")
    (tmp_path / "f").mkdir()
    st = list(os.lstat(tmp_path / "f"))
    st[1] = old.ino  # what a file system that reuses numbers at once would say
    new = table.enter(table.root, b"f", os.stat_result(st), None)
    assert new is not old
    assert new.nodeid != old.nodeid
    assert errno_of(table.fd, old) == "ESTALE"


def test_directories_moved_into_each_other_behind_the_table_form_no_ring(
    table: Inodes, tmp_path: Path
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    a = enter(table, table.root, b"a")
    b = enter(table, a, b"b")
    os.rename(tmp_path / "a" / "b", tmp_path / "b")
    os.rename(tmp_path / "a", tmp_path / "b" / "a")
    assert enter(table, b, b"a") is a
    above, steps = a, 0
    while above.parent is not None:
        above, steps = above.parent, steps + 1
        assert steps < 5
    table.forget(a.nodeid, 2)
    table.forget(b.nodeid, 1)
    assert len(table) == 1


def test_nodeids_stay_unique_for_files_of_another_file_system(table: Inodes, tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    own = enter(table, table.root, b"f")
    st = list(os.lstat(tmp_path / "f"))
    st[2] += 1  # st_dev
    other = table.enter(table.root, b"g", os.stat_result(st), None)
    st[1], st[2] = 1, own.dev  # a real inode number 1 is not FUSE's root
    one = table.enter(table.root, b"h", os.stat_result(st), None)
    assert len({table.root.nodeid, own.nodeid, other.nodeid, one.nodeid}) == 4
    assert own.nodeid == own.ino


# ---- through a mount


def test_every_way_to_be_looked_up_is_given_back(mnt: FsdMount) -> None:
    (mnt.path / "d" / "e").mkdir(parents=True)
    (mnt.path / "d" / "f").write_text("x")
    os.link(mnt.path / "d" / "f", mnt.path / "hard")
    (mnt.path / "l").symlink_to("d")
    os.mkfifo(mnt.path / "fifo")
    (mnt.path / "l" / "f").rename(mnt.path / "d" / "g")
    for _ in range(3):
        assert sum(len(names) + len(files) for _, names, files in os.walk(mnt.path)) == 6
    assert errno_of(os.mkdir, mnt.path / "d") == "EEXIST"

    def only_the_root() -> bool:
        drop_caches()
        return list(mnt.ask("lookups")) == ["1"]

    eventually(only_the_root, "the table holds the root only")
    assert mnt.ask("descriptors") == 1
    assert mnt.close() == ""


def test_more_files_than_descriptors_can_all_be_used(make_mount: MakeMount) -> None:
    mnt = make_mount(max_descriptors=FEW, attr_timeout=0)
    count = 20 * FEW
    for number in range(count):
        (mnt.path / f"d{number}").mkdir()
        (mnt.path / f"d{number}" / "f").write_text(str(number))
    assert mnt.ask("descriptors") <= FEW + 1
    for number in range(count):
        path = mnt.path / f"d{number}" / "f"
        path.chmod(0o640)
        assert path.read_text() == str(number)
        path.rename(mnt.path / f"f{number}")
    assert mnt.ask("descriptors") <= FEW + 1
    for number in range(count):
        assert os.stat(mnt.path / f"f{number}").st_mode & 0o777 == 0o640
    held = [os.open(mnt.path / f"d{number}", os.O_PATH) for number in range(count)]
    for number in range(count):
        (mnt.path / f"d{number}").rmdir()
    # their names are gone: these are kept beyond the bound, and work
    assert mnt.ask("descriptors") >= count
    assert {os.fstat(fd).st_nlink for fd in held} <= {0, 1, 2}
    for fd in held:
        os.close(fd)
    eventually(lambda: mnt.ask("descriptors") <= FEW + 1, "the removed directories are forgotten")


def test_many_open_and_unlinked_files_survive_the_bound(make_mount: MakeMount) -> None:
    mnt = make_mount(max_descriptors=FEW, attr_timeout=0)
    files = [open(mnt.path / str(number), "w+") for number in range(4 * FEW)]  # noqa: SIM115
    for number, file in enumerate(files):
        os.unlink(mnt.path / str(number))
        file.write(str(number))
        file.flush()
    for number, file in enumerate(files):
        assert os.fstat(file.fileno()).st_size == len(str(number))
        file.seek(0)
        assert file.read() == str(number)
        file.close()
    eventually(lambda: list(mnt.ask("lookups")) == ["1"], "the table holds the root only")


def test_file_system_mounted_in_the_source_is_served_with_its_own_inodes(mnt: FsdMount) -> None:
    require_root()
    (mnt.source / "sub").mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "none", mnt.source / "sub"], check=False).returncode
    require(made == 0, "tmpfs mounts")
    try:
        for number in range(20):
            (mnt.path / "sub" / str(number)).write_text(str(number))
            (mnt.path / str(number)).write_text("outer")
        numbers = [entry.stat().st_ino for entry in (*mnt.path.iterdir(), *(mnt.path / "sub").iterdir())]
        assert len(set(numbers)) == len(numbers) == 41
        assert errno_of(os.link, mnt.path / "1", mnt.path / "sub" / "link") == "EXDEV"
        assert errno_of(os.rename, mnt.path / "1", mnt.path / "sub" / "1") == "EXDEV"
        assert (mnt.path / "sub" / "7").read_text() == "7"
    finally:
        mnt.close()
        subprocess.run(["umount", "-l", mnt.source / "sub"], check=True)


def test_file_moved_behind_the_mount_is_found_again_by_path(make_mount: MakeMount) -> None:
    mnt = make_mount(max_descriptors=FEW, attr_timeout=0, entry_timeout=60)
    (mnt.source / "f").write_text("here")
    assert (mnt.path / "f").read_text() == "here"
    inside = os.open(mnt.path / "f", os.O_PATH)
    for number in range(2 * FEW):
        (mnt.path / f"{number}").mkdir()  # the descriptor of f is given up
    os.rename(mnt.source / "f", mnt.source / "g")
    (mnt.source / "f").write_text("another")
    # by inode there is nothing to find it by; by path, ESTALE makes the kernel look again
    assert errno_of(os.fstat, inside) == "ESTALE"
    assert os.stat(mnt.path / "f").st_size == 7
    assert (mnt.path / "g").read_text() == "here"
    os.close(inside)
