# SPDX-License-Identifier: Apache-2.0
"""What a case of a suite comes to, and programs that are run with a limit.

Owns ending a program that takes too long, with all that it started.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """The outcome of one case; `why` is a line, empty for one that passed."""

    outcome: str
    why: str = ""


Results = dict[str, Result]


def result(ok: bool, why: str) -> Result:
    return Result(PASSED) if ok else Result(FAILED, why)


def run(
    command: list[str | Path], cwd: Path, seconds: float, env: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Run it; -> exit status and what it said.  -1 when it was ended after `seconds`."""
    with subprocess.Popen(
        list(map(str, command)),
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        umask=0o022,
        start_new_session=True,
    ) as program:
        try:
            said, _ = program.communicate(timeout=seconds)
        except BaseException as exc:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)
            if not isinstance(exc, subprocess.TimeoutExpired):
                raise
            return -1, f"not done after {seconds:g} s"
    return program.returncode, said


def last(said: str, lines: int = 1) -> str:
    """The last lines that were said, as one."""
    return " | ".join(line.strip() for line in said.strip().splitlines()[-lines:])
