# SPDX-License-Identifier: Apache-2.0
"""Limits, programs and switches of this machine that daxfault depends on.

Owns reading them.  Must not change anything: commands are named, never run.
"""

from __future__ import annotations

import ctypes
import gzip
import os
import resource
import shutil
from dataclasses import dataclass

from daxfault.vmm.host import memory

FEW_DESCRIPTORS = 4096  # one for each file that the kernel remembers of a mount
FEW_WATCHES = 8192  # one for each open file of a mount
CONNECTIONS = "/sys/fs/fuse/connections"

_LANDLOCK_CREATE_RULESET = 444  # the same number on every architecture
_LANDLOCK_VERSION = 1  # the flag that asks for the version


@dataclass(frozen=True)
class Setting:
    """A limit, program or switch, and whether it is sufficient for daxfault."""

    name: str
    value: str  # as read; "unknown" when it cannot be read
    use: str  # the feature that depends on it
    enough: bool
    mend: str | None  # a shell command for root that fixes it; None when there is none


def fusermount3() -> Setting:
    """The set-uid program by which users other than root mount (fusermount3(1))."""
    path = shutil.which("fusermount3")
    enough = path is not None or os.geteuid() == 0
    mend = None if enough else "apt-get install fuse3"
    return Setting("fusermount3", path or "not found", "mounting without being root", enough, mend)


def user_allow_other() -> Setting:
    """The switch in /etc/fuse.conf, which fusermount3 reads; root does not need it."""
    try:
        with open("/etc/fuse.conf", encoding="utf-8", errors="replace") as lines:
            on = any(line.strip() == "user_allow_other" for line in lines)
    except OSError:
        on = False
    enough = on or os.geteuid() == 0
    mend = None if enough else "echo user_allow_other >> /etc/fuse.conf"
    return Setting("user_allow_other", "yes" if on else "no", "mount --allow-other", enough, mend)


def descriptors() -> Setting:
    """The hard RLIMIT_NOFILE; the file server raises the soft one to it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = hard == resource.RLIM_INFINITY
    enough = unlimited or hard >= FEW_DESCRIPTORS
    return Setting(
        "RLIMIT_NOFILE",
        "unlimited" if unlimited else str(hard),
        "files of a mount kept at hand",
        enough,
        None if enough else f"prlimit --nofile={FEW_DESCRIPTORS}:{FEW_DESCRIPTORS} --pid $$",
    )


def page_caches() -> Setting:
    """What the page caches of a host may have unless it is said (`run --cache`)."""
    limit = memory.default_limit()
    return Setting("page caches", f"{limit >> 20} MiB", "memory of page caches, by default", True, None)


def fusectl() -> Setting:
    """Where a user aborts the connection of his mount; root does it by umount2(2)."""
    mounted = os.path.ismount(CONNECTIONS)
    enough = mounted or os.geteuid() == 0
    return Setting(
        "fusectl",
        "mounted" if mounted else "not mounted",
        "ending the requests of programs when a killed host cannot die",
        enough,
        None if enough else f"mount -t fusectl none {CONNECTIONS}",
    )


def confinement() -> Setting:
    """What the keeper shuts itself in with: SECURITY.md."""
    libc = ctypes.CDLL(None)
    abi = libc.syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _LANDLOCK_VERSION)
    landlock = f"Landlock {abi}" if abi > 0 else "no Landlock"
    seccomp = "seccomp" if os.path.exists("/proc/sys/kernel/seccomp") else "no seccomp"
    return Setting("confinement", f"{seccomp}, {landlock}", "what the keeper may still do", True, None)


def inotify(name: str, least: int) -> Setting:
    """fs.inotify.`name` (inotify(7)); `least` is enough."""
    value = _read(f"/proc/sys/fs/inotify/{name}")
    enough = value.isdigit() and int(value) >= least
    mend = None if enough else f"sysctl fs.inotify.{name}={least}"
    return Setting(f"fs.inotify.{name}", value, "noticing a change behind a mount at once", enough, mend)


def unprivileged_userfaultfd(allowed_anyway: bool) -> Setting:
    """vm.unprivileged_userfaultfd (5.2), which restricts the system call but not the device."""
    value = _read("/proc/sys/vm/unprivileged_userfaultfd")
    enough = allowed_anyway or value == "1"
    return Setting(
        "vm.unprivileged_userfaultfd",
        value,
        "userfaultfd(2) for users other than root",
        enough,
        None if enough else "sysctl vm.unprivileged_userfaultfd=1",
    )


def memory_failure(poison_code: int | None) -> Setting:
    """CONFIG_MEMORY_FAILURE, from the si_code of a poisoned page's SIGBUS, or from the kernel's
    configuration if poison is not available.  daxfault works with both."""
    codes = {4: "yes (SIGBUS says BUS_MCEERR_AR)", 2: "no (SIGBUS says BUS_ADRERR)"}
    value = codes.get(poison_code or 0) or _configured("CONFIG_MEMORY_FAILURE")
    return Setting("CONFIG_MEMORY_FAILURE", value, "the si_code of a poisoned page", True, None)


def _configured(option: str) -> str:
    release = os.uname().release
    for path in ("/proc/config.gz", f"/boot/config-{release}"):
        try:
            with open(path, "rb") as file:
                text = gzip.decompress(file.read()) if path.endswith(".gz") else file.read()
        except OSError:
            continue
        return "yes" if f"\n{option}=y\n".encode() in text else "no"
    return "unknown"


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return "unknown"
