# SPDX-License-Identifier: Apache-2.0
"""native: everything that talks to the kernel in C, and the only door to it from Python.

It owns userfaultfd, the fault engine's threads, the per-file page cache and the
guest side.  It must not know of FUSE or of policy, and prints nothing.
"""

from __future__ import annotations

from pathlib import Path

from native._daxfault import ffi, lib
from native.engine import Answer, Counters, Delivery, Engine, Failure, Guest, Reason
from native.errors import check
from native.file import CHANGED_CONTENT, CHANGED_SIZE, File, FileState

__all__ = [
    "CHANGED_CONTENT",
    "CHANGED_SIZE",
    "PAGE_SIZE",
    "RANGE_SIZE",
    "Answer",
    "Counters",
    "Delivery",
    "Engine",
    "Failure",
    "File",
    "FileState",
    "Guest",
    "Reason",
    "ffi",
    "lib",
    "standin",
    "uffd_probe",
]

PAGE_SIZE: int = lib.DF_PAGE_SIZE
RANGE_SIZE: int = lib.DF_RANGE_SIZE


def uffd_probe(*, user_mode_only: bool = False) -> int:
    """The feature bits this kernel offers (ioctl_userfaultfd(2), UFFDIO_API).

    OSError EPERM when neither /dev/userfaultfd nor the system call is allowed here.
    """
    return check(lib.df_uffd_probe(user_mode_only), "userfaultfd")


def standin() -> Path:
    """The guest stand-in's executable."""
    from importlib.resources import files

    return Path(str(files("native") / "bin" / "daxfault-standin"))
