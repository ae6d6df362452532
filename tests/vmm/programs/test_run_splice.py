# SPDX-License-Identifier: Apache-2.0
"""What a program has stored is what splice(2), sendfile(2) and copy_file_range(2) show at once."""

import os
import sys
from pathlib import Path

import pytest
from run_host import RunningHost, require_programs

from daxfault import native

SIZE = 8192

SCRIPT = f"""
import mmap, os, sys
f = os.open(sys.argv[1], os.O_RDWR)
m = mmap.mmap(f, {SIZE})
def sendfile():
    out = os.memfd_create("out"); os.sendfile(out, f, 0, {SIZE}); return os.pread(out, {SIZE}, 0)
def copy_file_range():
    out = os.open(sys.argv[1] + ".copy", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.copy_file_range(f, out, {SIZE}, 0, 0); return os.pread(out, {SIZE}, 0)
def splice():
    r, w = os.pipe(); os.splice(f, w, {SIZE}, offset_src=0); return os.read(r, {SIZE})
def pread():
    return os.pread(f, {SIZE}, 0)
for letter, store in zip("abcd", [m, None, m, None]):
    if store:
        m[:] = letter.encode() * {SIZE}
    else:
        os.pwrite(f, letter.encode() * {SIZE}, 0)
    for way in (pread, sendfile, copy_file_range, splice, sendfile):
        print(letter, way.__name__, way() == letter.encode() * {SIZE})
"""


@pytest.mark.parametrize("traced", [False, True], ids=["library", "tracer"])
def test_store_or_write_is_seen_by_splice_sendfile_and_copy_file_range_at_once(
    tmp_path: Path, traced: bool
) -> None:
    require_programs()
    by = [native.tracer()] if traced else []
    with RunningHost(tmp_path) as host:
        (host.source / "f").write_bytes(b"o" * SIZE)
        out = host.does(*by, sys.executable, "-c", SCRIPT, os.fspath(host.mount / "f"))
    ways = ("pread", "sendfile", "copy_file_range", "splice", "sendfile")
    assert out.splitlines() == [f"{letter} {way} True" for letter in "abcd" for way in ways]
