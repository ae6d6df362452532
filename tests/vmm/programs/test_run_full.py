# SPDX-License-Identifier: Apache-2.0
"""Stores into the holes of a file on a full file system: what does not fit is never called stored.

On the file system itself such a store is SIGBUS; here close(2), msync(2) and the run say it.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from needs import require, require_root
from run_host import Place, require_programs

from daxfault.vmm.programs.run import LOST

SIZE = 3_000_000  # of the file; the file systems are smaller
SBIN = os.environ["PATH"] + ":/usr/sbin:/sbin"


def tmpfs(top: Path, _: Path) -> list[str]:
    return ["mount", "-t", "tmpfs", "-o", "size=1000k", "none", os.fspath(top)]


def ext4(top: Path, image: Path) -> list[str]:
    require(shutil.which("mkfs.ext4", path=SBIN), "mkfs.ext4")
    image.touch()
    os.truncate(image, 2 << 20)
    make = ["mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", image]
    subprocess.run(make, check=True, env={**os.environ, "PATH": SBIN})
    return ["mount", "-o", "loop", os.fspath(image), os.fspath(top)]


@pytest.fixture(params=[tmpfs, ext4])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """A run whose source is a file system of a megabyte or two."""
    require_root()
    require_programs()
    top = tmp_path / "small"
    top.mkdir()
    done = subprocess.run(request.param(top, tmp_path / "image"), check=False)
    require(done.returncode == 0, "mounting a small file system")
    try:
        yield Place(tmp_path, source=top)
    finally:
        subprocess.run(["umount", "-l", top], check=True)


STORE = f"""
import errno, mmap, os, sys
def told(what, *arguments):
    try: what(*arguments)
    except OSError as e: return errno.errorcode[e.errno]
    return "0"
f = os.open("f", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
os.ftruncate(f, {SIZE})
m = mmap.mmap(f, {SIZE})
m[:] = b"x" * {SIZE}
"""


def missing(file: Path) -> int:
    return file.read_bytes().count(0)


def test_program_that_only_unmaps_and_closes_is_told_by_close_and_the_run_fails(place: Place) -> None:
    ran = place.python(STORE + "m.close(); print(told(os.close, f))")
    assert (ran.out, ran.code) == ("ENOSPC\n", LOST)
    (lost,) = ran.report["lost"]
    assert (lost["file"], lost["errno"]) == (str(place.mount / "f"), "ENOSPC")
    assert missing(place.source / "f") == lost["bytes"] > SIZE // 4


def test_program_that_closes_before_it_stores_fails_its_run(place: Place) -> None:
    ran = place.python(STORE.replace("m[:]", "os.close(f)\nm[:]") + "m.close()")
    assert (ran.out, ran.code) == ("", LOST)
    assert missing(place.source / "f") == ran.report["lost"][0]["bytes"]


def test_pages_that_have_blocks_are_written_beside_those_that_find_none(place: Place) -> None:
    """The last page has its blocks, and the file system is full before it comes to be written."""
    last = SIZE // 4096 * 4096
    ran = place.python(STORE.replace("m = ", f"os.pwrite(f, b'o' * {SIZE - last}, {last})\nm = "))
    assert ran.code == LOST
    data = (place.source / "f").read_bytes()
    assert (data[:4096], data[last:]) == (b"x" * 4096, b"x" * (SIZE - last))
    assert data.count(0) == ran.report["lost"][0]["bytes"]


def test_room_made_in_time_saves_all_stores(place: Place) -> None:
    rest = f"print(told(m.flush)); os.ftruncate(f, {4096 * 90}); print(told(m.flush, 0, {4096 * 90}))"
    ran = place.python(STORE + rest)
    assert (ran.out.split(), ran.code, ran.report["lost"]) == (["ENOSPC", "0"], 0, [])
    assert (place.source / "f").read_bytes() == b"x" * (4096 * 90)
