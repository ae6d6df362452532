# SPDX-License-Identifier: Apache-2.0
"""Checks at the start of a command that a directory can be mounted.

Owns the refusal.  Must not mount anything.
"""

from __future__ import annotations

from daxfault.vmm.doctor import devices, settings
from daxfault.vmm.errors import Unsupported


def check_fuse(*, allow_other: bool) -> None:
    """Raise Unsupported when this machine cannot mount, for other users too if `allow_other`."""
    device = devices.fuse()
    if not device.openable:
        advice = device.mend or "the container's owner must permit the device"
        raise Unsupported(f"{device.path}: {device.problem}; {advice}")
    wanted = [settings.fusermount3()]
    if allow_other:
        wanted.append(settings.user_allow_other())
    for setting in wanted:
        if not setting.enough:
            raise Unsupported(f"{setting.name}: {setting.value}, needed for {setting.use}; {setting.mend}")
