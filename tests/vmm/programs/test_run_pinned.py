# SPDX-License-Identifier: Apache-2.0
"""Pages of a mapping that are pinned for DMA: what arrives after a write-back is written back, too."""

import shutil
import subprocess

import pytest
from checkout import PROGRAMS
from needs import require
from run_host import Place

PAGE = 4096


@pytest.mark.parametrize("how", ["msync", "exit"])
def test_dma_to_a_page_that_was_written_back_is_written_back_again(place: Place, how: str) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    require(compiler, "a C compiler")
    program = place.top.parent / "pinned"
    subprocess.run(
        [compiler or "cc", "-O1", "-Wall", "-Wextra", "-o", program, PROGRAMS / "pinned.c"], check=True
    )
    (place.source / "file").write_bytes(b"before" * 16384)
    ran = place.ran(program, place.mount / "file", place.source / "file", how)
    require(ran.out != "no io_uring\n", "io_uring")
    assert (ran.code, ran.out) == (0, "late\n" if how == "msync" else "soon\n"), ran.err
    assert (place.source / "file").read_bytes()[5 * PAGE :][:4] == b"late"
