# SPDX-License-Identifier: Apache-2.0
"""Runs `daxfault` as a user does, with a directory for temporary files that must be empty afterwards."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
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


@contextlib.contextmanager
def interrupted(top: Path, *command: str) -> Iterator["subprocess.Popen[str]"]:
    """Start a command, and interrupt it after the body: it exits with 130 and leaves nothing."""
    pipe = subprocess.PIPE
    child = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd="/", env=environment(top))
    try:
        yield child
        child.send_signal(signal.SIGINT)
        _, log = child.communicate(timeout=PATIENCE)
    finally:
        child.kill()
        child.communicate()
    assert child.returncode == 130, log
    assert "Traceback" not in log
    assert_nothing_left(top)


def wait_for_guest(child: "subprocess.Popen[str]") -> int:
    """Wait until a command has started a stand-in; -> its process."""
    while child.poll() is None:
        # a thread started it, and it is that thread's child
        for children in Path(f"/proc/{child.pid}/task").glob("*/children"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                for pid in children.read_text().split():
                    if Path(f"/proc/{pid}/comm").read_text().startswith("daxfault-stand"):
                        return int(pid)
    raise AssertionError("it ended before it had a guest")
