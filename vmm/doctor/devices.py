# SPDX-License-Identifier: Apache-2.0
"""Device files: whether they exist and can be opened, and the command that fixes it.

Owns inspecting /dev.  Must not change anything: commands are named, never run.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """The result of opening a device file read-write as this user."""

    path: str
    use: str  # daxfault's purpose
    present: bool
    openable: bool
    owner: str | None  # "root:kvm 0660"; None when absent
    problem: str | None  # why it cannot be opened; None when it can
    mend: str | None  # a shell command for root that fixes it; None when there is none


def fuse() -> Device:
    """/dev/fuse: mode 0666 on every distribution, because fusermount3 checks mounts."""
    return _look("/dev/fuse", "mount a directory", missing="modprobe fuse", refused="chmod 0666 /dev/fuse")


def userfaultfd() -> Device:
    """/dev/userfaultfd: Linux 6.1; a user who may open it can also serve kernel-mode faults.

    Documentation/admin-guide/mm/userfaultfd.rst compares the device and the system call.
    """
    return _look(
        "/dev/userfaultfd",
        "serve faults, also those taken inside system calls, without privileges",
        missing="sysctl vm.unprivileged_userfaultfd=1",
        refused=f"setfacl -m u:{_user()}:rw /dev/userfaultfd",
    )


def kvm() -> Device:
    """/dev/kvm: present if the CPU supports virtualization, or the hypervisor allows nesting."""
    refused = f"setfacl -m u:{_user()}:rw /dev/kvm"
    try:
        if grp.getgrgid(os.stat("/dev/kvm").st_gid).gr_name == "kvm":
            refused = f"usermod -aG kvm {_user()}  # and log in again"
    except (OSError, KeyError):
        pass
    return _look("/dev/kvm", "a real KVM guest", missing=f"modprobe {_kvm_module()}", refused=refused)


def _look(path: str, use: str, *, missing: str, refused: str) -> Device:
    try:
        st = os.stat(path)
    except OSError as exc:
        problem = "not there" if isinstance(exc, FileNotFoundError) else exc.strerror
        return Device(path, use, False, False, None, problem, missing)
    owner = f"{_user(st.st_uid)}:{_group(st.st_gid)} {stat.S_IMODE(st.st_mode):04o}"
    if not stat.S_ISCHR(st.st_mode):
        return Device(path, use, True, False, owner, "not a character device", f"rm {path}; {missing}")
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as exc:
        mend: str | None = missing
        if isinstance(exc, PermissionError):
            # modes do not refuse root: these are the device rules of a container, which no command
            # inside it can change
            mend = None if os.geteuid() == 0 else refused
        return Device(path, use, True, False, owner, exc.strerror, mend)
    return Device(path, use, True, True, owner, None, None)


def _kvm_module() -> str:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as lines:
            return "kvm_amd" if any("AuthenticAMD" in line for line in lines) else "kvm_intel"
    except OSError:
        return "kvm_intel"


def _user(uid: int | None = None) -> str:
    uid = os.geteuid() if uid is None else uid
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
