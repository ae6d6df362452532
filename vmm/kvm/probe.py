# SPDX-License-Identifier: Apache-2.0
"""Runs daxfault-kvm-probe, which tries how this kernel's KVM handles an access to a removed page.

Owns the child process and the words for its answers.  Must not use KVM itself: native/kvm/probe_main.c
does, which also runs without Python.  docs/kvm.md explains the keys.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from daxfault.native.kvm import probe_program
from daxfault.vmm.errors import DaxfaultError, Unsupported

SCHEMA = 1
# longer than the program's own limit of 120 s
_LIMIT_SECONDS = 130

Answers = dict[str, Any]


def probe(program: Path | None = None) -> Answers:
    """Run the probe; takes about two seconds.  `usable` is false if KVM cannot be used, for the `reason`.

    Unsupported when the probe gives no answer.
    """
    program = program or probe_program()
    try:
        said, complaint = _run(program)
    except OSError as e:
        raise Unsupported(f"{e.filename or program}: {e.strerror}") from e
    except subprocess.TimeoutExpired as e:
        raise Unsupported(f"{program}: no answer in {_LIMIT_SECONDS} s") from e
    if not said:
        raise Unsupported(f"{program}: {complaint.strip() or 'no answer'}")
    return understand(said)


def _run(program: Path) -> tuple[str, str]:
    pipe = subprocess.PIPE
    with subprocess.Popen([program], stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True) as child:
        try:
            return child.communicate(timeout=_LIMIT_SECONDS)
        finally:
            # subprocess.run() would not wait for it after Ctrl-C, and a machine takes time to end
            child.kill()
            child.wait()


def understand(text: str) -> Answers:
    """Parse the program's output; DaxfaultError when it is invalid."""
    try:
        answers = json.loads(text)
    except json.JSONDecodeError as e:
        raise DaxfaultError(f"daxfault-kvm-probe: its answer is not JSON: {e}") from e
    if not isinstance(answers, dict) or answers.get("schema") != SCHEMA:
        raise DaxfaultError(
            f"daxfault-kvm-probe: its answer is not of schema {SCHEMA}: is it of this version?"
        )
    return answers


def of_case(case: Answers) -> str:
    """One of `cases`, in a word or two."""
    if case["outcome"] == "loop":
        return f"LOOP {case['per_second']:,.0f}/s"
    if case["outcome"] == "exit":
        return "no fault" if case["exit"] == "DOORBELL" else str(case["exit"])
    return "no exit" if case["outcome"] == "silent" else "-"


def of_rescue(rescue: Answers) -> str:
    """One of `rescues`."""
    if rescue["works"] is None:
        return "-"
    return str(rescue["exit"]) if rescue["works"] else "FAILS"


def of_injection(injection: Answers) -> str:
    """One of `injections`."""
    return {None: "-", True: "yes", False: "FAILS"}[injection["works"]]
