# SPDX-License-Identifier: Apache-2.0
"""The programs in scripts/, run and imported; and what is in an initramfs that they made."""

import importlib
import os
import subprocess
import sys
from typing import Any

import pytest
from checkout import SCRIPTS

KERNELS = SCRIPTS / "kernels"


def script_module(name: str) -> Any:
    """scripts/kernels/NAME.py, imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(KERNELS)
        return importlib.import_module(name)


def start_script(name: str, *arguments: str, path: str | None = None) -> subprocess.Popen[str]:
    """scripts/kernels/NAME.py, started; with another PATH if given."""
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, str(KERNELS / f"{name}.py"), *arguments],
        stdout=pipe,
        stderr=pipe,
        text=True,
        env={**os.environ, "PATH": path or os.environ["PATH"]},
    )


def run_script(name: str, *arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    """The same, run to its end."""
    with start_script(name, *arguments, path=path) as running:
        out, error = running.communicate(timeout=600)
    return subprocess.CompletedProcess(running.args, running.returncode, out, error)


def unpacked(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """A newc archive's files, with their modes."""
    found, at = {}, 0
    while True:
        fields = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        assert archive[at : at + 6] == b"070701"
        name = archive[at + 110 : at + 110 + fields[11] - 1].decode()
        start = (at + 110 + fields[11] + 3) // 4 * 4
        if name == "TRAILER!!!":
            return found
        found[name] = (fields[1], archive[start : start + fields[6]])
        at = (start + fields[6] + 3) // 4 * 4
