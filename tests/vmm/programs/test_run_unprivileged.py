# SPDX-License-Identifier: Apache-2.0
"""A host that lacks what root has: CAP_SYS_PTRACE, without which no userfaultfd tells of forks."""

import subprocess
import sys
from pathlib import Path

import pytest
from mapscript import compiled
from needs import require_root
from patience import PATIENCE
from run_host import Place, environment

# setpriv(1) is of util-linux, which every system has
WITHOUT = ["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"]
SCRIPT = """
import mmap, os, sys
with open("f", "r+b") as file:
    m = mmap.mmap(file.fileno(), 0)
print(m[0])
sys.stdout.flush()
if os.fork() == 0:
    print(m[4096], m[8192])  # neither was ever touched
    m[8192:8197] = b"child"
    sys.stdout.flush()
    os._exit(0)
assert os.wait()[1] == 0
print(m[8192:8197])
"""


@pytest.fixture
def place(tmp_path: Path) -> Place:
    require_root()
    place = Place(tmp_path)
    (place.source / "f").write_bytes(b"".join(bytes([n]) * 4096 for n in (1, 2, 3)))
    return place


def ran(place: Place, *program: str | Path) -> subprocess.CompletedProcess[str]:
    command = [*WITHOUT, *place.command(["env", "-C", str(place.mount), *map(str, program)])]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
        cwd="/",
        env=environment(place.top),
    )


def test_forked_child_is_served_by_a_host_that_is_not_told_of_forks(place: Place) -> None:
    done = ran(place, sys.executable, "-c", SCRIPT)
    assert (done.stdout, done.returncode) == ("1\n2 3\nb'child'\n", 0), done.stderr
    assert (place.source / "f").read_bytes()[8192:8197] == b"child"


def test_forked_child_of_a_static_program_is_served_as_well(place: Place, tmp_path: Path) -> None:
    mapper = compiled(tmp_path, static=True)
    script = "open f f rw;map m f 0 3p rw s;load m 0 1;fork;load m 1p 1;store m 2p child;end;load m 2p 5"
    done = ran(place, mapper, place.mount, place.source, script)
    assert done.returncode == 0, done.stderr
    assert "child" in done.stdout.splitlines()[-1]
    assert (place.source / "f").read_bytes()[8192:8197] == b"child"
