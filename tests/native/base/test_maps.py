# SPDX-License-Identifier: Apache-2.0
"""maps.c: what it reads of this process, beside what the files say."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from checkout import ROOT
from needs import require
from patience import within

PROT = {"r": mmap.PROT_READ, "w": mmap.PROT_WRITE, "x": mmap.PROT_EXEC}
DONTDUMP = 4  # MAPS_DONTDUMP
NAME = 31  # MAPS_NAME, without the NUL


class Area(ctypes.Structure):
    """struct maps_area"""

    _fields_ = (
        ("start", ctypes.c_uint64),
        ("end", ctypes.c_uint64),
        ("offset", ctypes.c_uint64),
        ("inode", ctypes.c_uint64),
        ("device", ctypes.c_uint64),
        ("prot", ctypes.c_int),
        ("shared", ctypes.c_bool),
        ("flags", ctypes.c_uint),
        ("name", ctypes.c_char * (NAME + 1)),
    )


VISIT = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.POINTER(Area), ctypes.c_void_p)


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    require(compiler, "a C compiler")
    library = tmp_path_factory.mktemp("maps") / "maps.so"
    flags = ["-D_GNU_SOURCE", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-I", ROOT / "native"]
    source = ROOT / "native" / "base" / "maps.c"
    subprocess.run([compiler or "cc", *flags, "-o", library, source], check=True)
    return ctypes.CDLL(str(library))


def read(maps: ctypes.CDLL, fd: int) -> dict[int, Area]:
    """Every mapping, by its start."""
    found: list[Area] = []

    def visit(area: Any, _: object) -> bool:
        found.append(Area.from_buffer_copy(bytes(area.contents)))
        return False

    assert fd >= 0
    assert maps.maps_each(fd, VISIT(visit), None) == 0
    os.close(fd)
    assert [area.start for area in found] == sorted(area.start for area in found)
    return {area.start: area for area in found}


def said(line: str) -> tuple[int, int, int, int, bool, bytes]:
    _, _, offset, device, inode, *name = line.split(maxsplit=5)
    major, minor = (int(number, 16) for number in device.split(":"))
    prot = sum(PROT.get(letter, 0) for letter in line.split()[1][:3])
    shown = os.fsencode("".join(name))[:NAME]
    return int(offset, 16), os.makedev(major, minor), int(inode), prot, line.split()[1][3] == "s", shown


def test_every_mapping_is_read_as_the_kernel_writes_it(maps: ctypes.CDLL) -> None:
    with subprocess.Popen(["sleep", "1000"]) as process:
        try:
            while not Path(f"/proc/{process.pid}/comm").read_text().startswith("sleep"):
                pass
            process.send_signal(signal.SIGSTOP)
            with within(what="a stop"):
                os.waitid(os.P_PID, process.pid, os.WSTOPPED)
            lines = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
            for fd in (maps.maps_open(process.pid), maps.maps_open_flags(process.pid)):
                found = read(maps, fd)
                assert len(found) == len(lines)
                for line in lines:
                    start, end = (int(x, 16) for x in line.split()[0].split("-"))
                    area = found[start]
                    assert area.end == end
                    shown = (area.offset, area.device, area.inode, area.prot, area.shared, area.name)
                    assert shown == said(line)
        finally:
            process.kill()


def test_flags_of_a_mapping_come_with_it(maps: ctypes.CDLL, tmp_path: Path) -> None:
    file = tmp_path / ("x" * 200)  # the line is longer than what is kept of it
    file.write_bytes(bytes(3 * mmap.PAGESIZE))
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as mapped:
        mapped.madvise(mmap.MADV_DONTDUMP, mmap.PAGESIZE, mmap.PAGESIZE)
        inode = file.stat().st_ino
        with_flags = [a for a in read(maps, maps.maps_open_flags(0)).values() if a.inode == inode]
        assert [(a.offset, a.flags & DONTDUMP) for a in with_flags] == [
            (0, 0),
            (mmap.PAGESIZE, DONTDUMP),
            (2 * mmap.PAGESIZE, 0),
        ]
        without = [a for a in read(maps, maps.maps_open(0)).values() if a.inode == inode]
        assert [a.flags for a in without] == [0, 0, 0]


def test_one_mapping_is_found_by_an_address_in_or_before_it(maps: ctypes.CDLL, tmp_path: Path) -> None:
    fd = maps.maps_open(0)
    areas = list(read(maps, maps.maps_open(0)).values())
    here, area = areas[0], Area()
    for address in (0, here.start, here.end - 1):
        assert maps.maps_find(fd, ctypes.c_uint64(address), ctypes.byref(area)) == 0
        assert (area.start, area.inode, area.prot) == (here.start, here.inode, here.prot)
    assert maps.maps_find(fd, ctypes.c_uint64(2**64 - 1), ctypes.byref(area)) == -errno.ENOENT
    os.close(fd)


def test_one_mapping_is_found_in_the_text_where_the_kernel_has_no_query(
    maps: ctypes.CDLL, tmp_path: Path
) -> None:
    """A regular file has no PROCMAP_QUERY either: ENOTTY."""
    text = tmp_path / "maps"
    text.write_bytes(Path("/proc/self/maps").read_bytes())
    fd = os.open(text, os.O_RDONLY)
    areas = list(read(maps, os.dup(fd)).values())
    area = Area()
    for here, following in zip(areas, [*areas[1:], None], strict=True):
        assert maps.maps_find(fd, ctypes.c_uint64(here.end - 1), ctypes.byref(area)) == 0
        assert bytes(area) == bytes(here)
        found = maps.maps_find(fd, ctypes.c_uint64(here.end), ctypes.byref(area))
        assert (found, area.start) == (0, following.start) if following else found == -errno.ENOENT
    os.close(fd)
