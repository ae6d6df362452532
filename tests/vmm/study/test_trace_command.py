# SPDX-License-Identifier: Apache-2.0
"""`daxfault trace`, run for real: its file is well formed, and has what happened."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from needs import require_fuse
from patience import PATIENCE
from test_timeline import check


def trace(top: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    require_fuse()
    temporary = top / "tmp"
    temporary.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "daxfault", "trace", *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
        cwd=top,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    assert list(temporary.iterdir()) == []
    return done


def names(made: dict[str, Any], phase: str) -> set[str]:
    return {event["name"] for event in made["traceEvents"] if event["ph"] == phase}


def test_trace_of_report_shows_sleeps_errors_and_requests(tmp_path: Path) -> None:
    done = trace(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "perfetto" in done.stdout
    made = json.loads((tmp_path / "daxfault-trace.json").read_text())
    check(made)
    assert made["otherData"]["design"] == "report"
    assert "lost" not in made["otherData"]
    assert {"parked", "sigbus", "fixup", "fail", "not present", "changed", "setattr"} <= names(made, "X")
    assert names(made, "s") == names(made, "f") == {"token"}
    tracks = {e["args"]["name"] for e in made["traceEvents"] if e["name"] == "thread_name"}
    assert {f"task {vcpu}.{task}" for vcpu in (0, 1) for task in (0, 1, 2)} <= tracks


@pytest.mark.parametrize(
    ("design", "mark"),
    [("mainline", "poison"), ("exit-to-user", "stop"), ("inject-on-retry", "event"), ("rfc-v1", "error")],
)
def test_trace_of_another_design_shows_its_answer(tmp_path: Path, design: str, mark: str) -> None:
    done = trace(tmp_path, "--design", design, "-o", "-")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    check(made)
    faults = [e for e in made["traceEvents"] if e["ph"] == "X" and e["name"] == "fault"]
    # the watchdog ends no loop before 50 cycles (vmm/study/trace.py); more depend on the machine
    assert len(faults) > (50 if design == "mainline" else 8)
    assert mark in names(made, "X")


def test_trace_into_a_directory_that_is_not_there_is_refused(tmp_path: Path) -> None:
    done = trace(tmp_path, "-o", "nowhere/trace.json")
    assert done.returncode == 2
    assert "nowhere" in done.stderr
