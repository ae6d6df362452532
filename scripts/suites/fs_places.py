# SPDX-License-Identifier: Apache-2.0
"""The file systems that scripts/suites/fs_suites.py compares: ours, libfuse's example, and what both serve.

Owns mounting them, each over a directory of its own, and ending that whatever happens.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from fs_sources import Progress, passthrough_hp

from daxfault.vmm.errors import Unsupported

OURS, EXAMPLE, BACKING = "daxfault", "passthrough_hp", "backing"
NAMES = (OURS, EXAMPLE, BACKING)
PATIENCE = 20.0  # seconds for a mount to come or to go


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """A file system: its name, where it is used, and the directory that it serves (or is)."""

    name: str
    path: Path
    source: Path


@contextlib.contextmanager
def place(name: str, base: Path, progress: Progress) -> Iterator[Place]:
    """The file system `name`, with its directories below `base`."""
    source = base / f"{name}-source"
    source.mkdir()
    if name == BACKING:
        yield Place(name, source, source)
        return
    path = base / name
    path.mkdir()
    if name == OURS:
        command = [sys.executable, "-m", "daxfault", "mount", "--allow-other", str(source), str(path)]
    else:
        command = [str(passthrough_hp(progress)), "--foreground", str(source), str(path)]
    log = base / f"{name}.log"
    with log.open("wb") as said, subprocess.Popen(command, stdout=said, stderr=said, cwd="/") as server:
        try:
            end = time.monotonic() + PATIENCE
            while not os.path.ismount(path):
                if server.poll() is not None or time.monotonic() > end:
                    raise Unsupported(f"{name} did not mount: {log.read_text().strip()}")
                time.sleep(0.02)
            yield Place(name, path, source)
        finally:
            if subprocess.run(["umount", path], capture_output=True).returncode and os.path.ismount(path):
                subprocess.run(["umount", "-l", path], check=False)
            try:
                server.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                server.kill()
