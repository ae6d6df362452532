# SPDX-License-Identifier: Apache-2.0
"""The environment variables that a program needs to be served.

Owns their names.  No value comes from a host: the preloaded library belongs to the installation that
starts the program.
"""

from __future__ import annotations

import os

from daxfault import native
from daxfault.vmm.programs import sockets


def of_device(device: int, mount: str, *, stacks: bool = False) -> dict[str, str]:
    """The variables for the mount with this st_dev at `mount`, an absolute path without symbolic links.
    `stacks`: the program reports its stack when it dies of a mapping.  Does not access the mount."""
    preload = [os.fspath(native.preload()), os.environ.get("LD_PRELOAD")]
    return {
        "LD_PRELOAD": ":".join(filter(None, preload)),
        "DAXFAULT_SOCKET": os.fspath(sockets.programs(device)),
        "DAXFAULT_DEVICE": str(device),
        "DAXFAULT_MOUNT": mount,
        "DAXFAULT_TRACER": os.fspath(native.tracer()),
    } | ({"DAXFAULT_STACKS": "1"} if stacks else {})


def of_mount(mount: str | os.PathLike[str]) -> dict[str, str]:
    """The variables for a mount of another process.  OSError as stat(2)."""
    return of_device(os.stat(mount).st_dev, os.path.realpath(mount))
