# SPDX-License-Identifier: Apache-2.0
"""What a process has mapped, as it is shown to people."""

import mmap
import os
from pathlib import Path

from daxfault.vmm.programs import address_space


def test_path_that_is_not_utf8_is_found_and_can_be_printed(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.truncate(fd, mmap.PAGESIZE)
    with mmap.mmap(fd, 0):
        areas = address_space.areas(os.getpid())
    status = os.fstat(fd)
    os.close(fd)
    (area,) = (area for area in areas if (area.device, area.inode) == (status.st_dev, status.st_ino))
    assert os.fsencode(area.path) == path
    shown = address_space.described(areas, area.start + 1)
    assert shown.encode() == os.fsencode(tmp_path) + b"/\\udcff+0x1"
