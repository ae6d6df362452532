# SPDX-License-Identifier: Apache-2.0
"""The paths of native's programs and libraries.

Must not know their options.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path


def program(name: str) -> Path:
    return Path(str(files("daxfault.native") / "bin" / name))


def standin() -> Path:
    """The guest stand-in's executable."""
    return program("daxfault-standin")


def keeper() -> Path:
    """The executable that keeps a host's page caches after the host's death."""
    return program("daxfault-keeper")


def preload() -> Path:
    """The library that LD_PRELOAD loads into a program, so that its mappings are served."""
    return program("libdaxfault.so")


def tracer() -> Path:
    """The executable that has any program served (ptrace(2))."""
    return program("daxfault-tracer")
