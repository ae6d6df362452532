# SPDX-License-Identifier: Apache-2.0
"""Thousands of random operations on a mount, each checked (exerciser.py, random_calls.py), with fixed seeds.

The source is in memory where it can be: what a disk does with so many fsync(2) is not the subject.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checkout import SUPPORT
from fsd_mount import FsdMount, MakeMount, eventually

MINUTES = 5  # until a program that takes seconds is taken to hang


@pytest.fixture
def quick(make_mount: MakeMount) -> Iterator[FsdMount]:
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory, prefix="daxfault-") as source:
        mount = make_mount(Path(source))
        yield mount
        assert mount.close() == ""


def start(program: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, SUPPORT / program, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def told(program: subprocess.Popen[str]) -> dict[str, Any]:
    try:
        out, err = program.communicate(timeout=60 * MINUTES)
    finally:
        program.kill()
    assert program.returncode == 0, err
    return dict(json.loads(out))


def test_random_operations_on_a_file_agree_with_a_model(quick: FsdMount) -> None:
    programs = [
        start("exerciser.py", quick.path / f"f{seed}", "--seed", seed, "--count", 20_000) for seed in (1, 2)
    ]
    for program in programs:
        counts = told(program)["counts"]
        assert counts["store"] > 1000
        assert counts["punch, not supported"] == counts["punch"]  # or the list of what is lacking is wrong


def test_random_changes_behind_the_mount_are_seen_by_read_and_in_mappings(quick: FsdMount) -> None:
    done = start(
        "exerciser.py", quick.path / "f", "--behind", quick.source / "f", "--seed", 3, "--count", 3000
    )
    counts = told(done)["counts"]
    assert counts["write_behind"] > 30
    assert counts["truncate_behind"] > 30


def test_random_calls_of_many_processes_answer_as_their_twins_do(quick: FsdMount, tmp_path: Path) -> None:
    (tmp_path / "twin").mkdir()
    done = start("random_calls.py", quick.path, tmp_path / "twin", "--behind", quick.source, "--seed", 1,
                 "--count", 6000, "--processes", 3)  # fmt: skip
    assert told(done)["files"] > 100


def test_exerciser_of_a_file_that_a_stranger_writes_to_fails(quick: FsdMount) -> None:
    done = start("exerciser.py", quick.path / "f", "--seed", 1, "--count", 10**7)

    def disturbed() -> bool:
        if (quick.path / "f").exists():
            with open(quick.path / "f", "r+b") as file:
                file.write(b"a stranger")
        return done.poll() is not None

    eventually(disturbed, "a difference is found")
    out, err = done.communicate()
    assert (done.returncode, out) == (1, "")
    assert "seed 1, after" in err
