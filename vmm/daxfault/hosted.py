# SPDX-License-Identifier: Apache-2.0
"""Requests the reasons of faults from the host of this process, under `daxfault run`.

Owns the request.  Without a host, or without its answer, a fault is left unchanged.
"""

from __future__ import annotations

import dataclasses
import errno
import os

from daxfault.vmm.programs.address_space import cached_file

from .faults import Fault


def explained(faults: list[Fault]) -> list[Fault]:
    """The faults with the path of the file in place of its page cache's, and with errno and reason."""
    mount = os.environ.get("DAXFAULT_MOUNT")  # of programs.served_mount, environment()
    return [_explained(mount, fault) for fault in faults] if mount else faults


def _explained(mount: str, fault: Fault) -> Fault:
    file = cached_file(fault.path or "")
    if file is None:
        return fault
    # imported here because it is slow, and most programs do not need it
    from daxfault.vmm.errors import DaxfaultError
    from daxfault.vmm.programs import control

    try:
        known = control.ask(mount, "failed", pid=os.getpid(), file=file, offset=fault.offset)
    except DaxfaultError:
        return fault
    return dataclasses.replace(
        fault,
        path=known["path"] or fault.path,
        errno=getattr(errno, known["errno"] or "", fault.errno),
        reason=known["reason"],
    )
