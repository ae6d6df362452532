# SPDX-License-Identifier: Apache-2.0
"""daxfault-rescue on a process that maps a file which is truncated, as QEMU does."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from needs import require, require_root

from daxfault import native
from daxfault.native.kvm import rescue_program
from daxfault.vmm.host.uffd_features import bits

PAGE = 4096
POISON = bits("POISON")
# says what it reads at the offsets it is told; waits inside a system call, as QEMU's first thread does
PROGRAM = """
import mmap, sys
with open(sys.argv[1], "r+b") as file:
    window = mmap.mmap(file.fileno(), 4 * 4096)
print("ready", flush=True)
for line in sys.stdin:
    print(window[int(line)], flush=True)
"""


class Mapper:
    """The process, and its file of four pages of Z."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "window"
        self.file.write_bytes(b"Z" * 4 * PAGE)
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, self.file], stdin=pipe, stdout=pipe, text=True
        )
        assert self.process.stdout
        assert self.process.stdin
        self.said, self.asked = self.process.stdout, self.process.stdin
        assert self.said.readline() == "ready\n"

    def read(self, offset: int) -> str:
        """What it reads there, or "" when it has died of it."""
        print(offset, file=self.asked, flush=True)
        return self.said.readline().strip()

    def rescue(self, how: str) -> subprocess.CompletedProcess[str]:
        if how == "poison":
            features = native.uffd_probe(user_mode_only=True)
            require(features & POISON, "UFFDIO_POISON (Linux 6.6)")
        return rescue(str(self.process.pid), str(self.file), how)


def rescue(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([rescue_program(), *arguments], capture_output=True, text=True)


@pytest.fixture
def mapper(tmp_path: Path) -> Iterator[Mapper]:
    require_root()
    mapper = Mapper(tmp_path)
    with mapper.process:
        yield mapper
        mapper.process.kill()


@pytest.mark.parametrize("how", ["unmap", "forbid", "poison"])
def test_rescue_leaves_what_the_file_still_has(mapper: Mapper, how: str) -> None:
    os.truncate(mapper.file, PAGE + 1)
    done = mapper.rescue(how)
    assert (done.returncode, done.stderr) == (0, "")
    start, end = (int(word, 16) for word in done.stdout.split()[1].split("-"))
    assert (done.stdout.split()[0], end - start) == (how, 2 * PAGE)
    assert [mapper.read(0), mapper.read(PAGE)] == ["90", "90"]


@pytest.mark.parametrize(
    ("how", "dies_of"), [("unmap", signal.SIGSEGV), ("forbid", signal.SIGSEGV), ("poison", signal.SIGBUS)]
)
def test_rescue_outlasts_a_file_that_grows_again(mapper: Mapper, how: str, dies_of: int) -> None:
    os.truncate(mapper.file, 0)
    assert mapper.rescue(how).returncode == 0
    os.truncate(mapper.file, 4 * PAGE)
    assert mapper.read(PAGE) == ""
    assert mapper.process.wait() == -dies_of


def test_rescue_of_a_file_that_is_whole_touches_nothing(mapper: Mapper) -> None:
    done = mapper.rescue("unmap")
    assert (done.returncode, done.stdout) == (3, "")
    assert "maps nothing of" in done.stderr
    assert mapper.read(3 * PAGE) == "90"


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("1", "/dev/null"),
        ("0", "/dev/null", "unmap"),
        ("x", "/dev/null", "unmap"),
        ("1", "/x", "x"),
    ],
)
def test_rescue_without_sense_says_how_it_is_used(arguments: tuple[str, ...]) -> None:
    done = rescue(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: daxfault-rescue")


def test_rescue_of_an_absent_file_names_it(tmp_path: Path) -> None:
    done = rescue(str(os.getpid()), str(tmp_path / "absent"), "unmap")
    assert (done.returncode, done.stderr) == (
        1,
        f"daxfault-rescue: {tmp_path}/absent: No such file or directory\n",
    )
