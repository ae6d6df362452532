# SPDX-License-Identifier: Apache-2.0
"""Level 1 under QEMU: an emulated machine whose CPU has SVM, and the kernels that arguments name.

Owns the command line of that machine.  Must not know what runs in it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from kvm_kernels import Kernel, fetched, of_image, of_package

from daxfault.vmm.errors import Unsupported

QEMU = "qemu-system-x86_64"
# mitigations double the boot time under emulation; nokaslr avoids waiting for entropy
COMMAND_LINE = "console=ttyS0 quiet panic=-1 mitigations=off nokaslr tsc=reliable"


def need_qemu() -> None:
    if shutil.which(QEMU) is None:
        raise Unsupported(f"{QEMU}: not here; apt-get install qemu-system-x86")


def machine(image: Path, ramfs: Path, memory: int) -> list[str]:
    """The command that boots it, without its serial ports.  `memory` in MiB.

    One CPU, because an emulated SVM with two stalls.
    """
    # it must end with this process
    command = ["setpriv", "--pdeathsig", "KILL", QEMU, "-accel", "tcg", "-cpu", "max,+svm"]
    command += ["-smp", "1", "-m", str(memory), "-machine", "q35"]
    command += ["-nodefaults", "-display", "none", "-no-reboot"]
    return [*command, "-kernel", str(image), "-initrd", str(ramfs), "-append", COMMAND_LINE]


def is_kernel(name: str) -> bool:
    """Whether an argument can mean a kernel: a file, or a package."""
    return os.path.isfile(name) or name.startswith("linux-image-")


def load(name: str, modules: Path | None, progress: Callable[[str], None]) -> Kernel:
    """The kernel that an argument names."""
    path = Path(name)
    if path.is_file():
        return of_package(path, path.name) if path.suffix == ".deb" else of_image(path, modules)
    return of_package(fetched(name, progress), name)
