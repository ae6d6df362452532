# SPDX-License-Identifier: Apache-2.0
"""Running `daxfault` as a person does, in a place for temporary files that must be empty afterwards."""

import os
import subprocess
from pathlib import Path

from patience import PATIENCE


def place_of_its_own(tmp_path: Path) -> Path:
    place = tmp_path / "tmp"
    place.mkdir()
    return place


def environment(top: Path) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(top), "COLUMNS": "200"}


def told(top: Path, *command: str) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end, with `top` for its temporary files; it leaves none."""
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
        cwd="/",
        env=environment(top),
    )
    assert_nothing_left(top)
    return done


def assert_nothing_left(top: Path) -> None:
    assert f" {top}" not in Path("/proc/self/mountinfo").read_text()
    assert list(top.iterdir()) == []
