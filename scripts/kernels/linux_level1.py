# SPDX-License-Identifier: Apache-2.0
"""Level 1: a stock kernel under QEMU's emulated CPU, with a shell on a serial port; and level 2 in it.

Owns both boots, the initramfs of each, and the wires: commands go in by one serial port, level 2's two
come out by others.  Must not know what is to be seen.  Every wait ends at the deadline that
Level1 is given.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import selectors
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kvm_kernels import BEGIN, Kernel, archive, modules_of, with_libraries
from kvm_qemu import COMMAND_LINE, QEMU, machine

from daxfault.vmm.errors import Unsupported

WINDOW_BYTES = 4 << 20
FILL = "Z"
# MiB of level 1; its initramfs, which is some 70 MB, is there twice while it is unpacked
MEMORY = 1200
MEMORY_OF_LEVEL2 = 256
FIRMWARE = ("bios-256k.bin", "kvmvapic.bin", "linuxboot_dma.bin")
FIRMWARE_FOLDERS = ("/usr/share/seabios", "/usr/share/qemu", "/usr/share/qemu-efi")

# of level 1, in their order: ttyS0 to ttyS3
PORTS = ("kernel", "shell", "console", "events")
# idle=poll: under emulation "sti; hlt" of a nested guest stalls
COMMAND_LINE_OF_LEVEL2 = f"{COMMAND_LINE} idle=poll"

# A command is a line; what it prints comes back, then "@done" and its status.  The port stays open: what
# comes in while nobody has it open is lost, and so is raw mode.
INIT = (
    BEGIN
    + """\
/bin/busybox --install -s /bin
export PATH=/bin
mount -t debugfs none /sys/kernel/debug
stty -F /dev/ttyS2 raw -echo
stty -F /dev/ttyS3 raw -echo
exec </dev/ttyS1 >/dev/ttyS1 2>&1
stty raw -echo
stat() {
	cat /sys/kernel/debug/kvm/pf_taken /sys/kernel/debug/kvm/pf_guest /sys/kernel/debug/kvm/pf_fixed
}
echo @ready
while read -r line; do eval "$line"; echo "@done $?"; done
"""
)


@dataclasses.dataclass(frozen=True, slots=True)
class Faults:
    """KVM's pf_taken, pf_guest and pf_fixed in level 1, at `at` seconds of time.monotonic()."""

    at: float
    taken: int
    not_present: int
    fixed: int


def firmware() -> dict[str, tuple[int, bytes]]:
    """What QEMU loads for a machine without devices, as files of an archive."""
    files = {}
    for name in FIRMWARE:
        paths = [Path(folder) / name for folder in FIRMWARE_FOLDERS if (Path(folder) / name).exists()]
        if not paths:
            raise Unsupported(
                f"{name}: not in {', '.join(FIRMWARE_FOLDERS)}; apt-get install seabios qemu-system-data"
            )
        files[f"qemu/{name}"] = (0o644, paths[0].read_bytes())
    return files


def level1_ramfs(kernel: Kernel, shell: bytes, rescue: bytes, level2: bytes) -> bytes:
    return archive(
        {
            "init": (0o755, INIT.encode()),
            "bin/busybox": (0o755, shell),
            "bin/daxfault-rescue": (0o755, rescue),
            "level2/vmlinuz": (0o644, kernel.image),
            "level2/initramfs": (0o644, archive({"init": (0o755, level2)})),
            **modules_of(kernel),
            **firmware(),
            **with_libraries(QEMU),
        }
    )


class Ended(Exception):
    """Level 1 is gone, or does not answer; the message says what its console said last."""


class Level1:
    """Level 1 while it runs.

    `events` are the objects that level 2's init has said (native/linux/level2.c), `console` is what
    its kernel has.
    """

    def __init__(self, ports: dict[str, socket.socket], deadline: float) -> None:
        self._ports = ports
        self._deadline = deadline
        self._partial = dict.fromkeys(ports, b"")
        self._lines: dict[str, list[str]] = {"kernel": [], "shell": []}
        self._selector = selectors.DefaultSelector()
        for name, port in ports.items():
            self._selector.register(port, selectors.EVENT_READ, name)
        self.events: list[dict[str, Any]] = []
        self.console: list[str] = []
        while "@ready" not in self._lines["shell"]:
            self.wait()
        self._lines["shell"].clear()

    def wait(self, seconds: float = 1.0) -> bool:
        """Read what has come, or comes within so many seconds; whether anything did."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise Ended(f"out of time; {self._last()}")
        ready = self._selector.select(min(seconds, left))
        for key, _ in ready:
            data = self._ports[key.data].recv(65536)
            if not data:
                raise Ended(f"level 1 has ended; {self._last()}")
            *lines, self._partial[key.data] = (self._partial[key.data] + data).split(b"\n")
            for line in lines:
                self._take(key.data, line.decode(errors="replace").rstrip("\r"))
        return bool(ready)

    def _take(self, port: str, line: str) -> None:
        if port == "events":
            try:
                self.events.append(json.loads(line))
            except ValueError:
                raise Ended(f"level 2's init said {line!r}") from None
        elif port == "console":
            self.console.append(line)
        else:
            self._lines[port].append(line)

    def _last(self) -> str:
        lines = [line for line in self._lines["kernel"] + self._lines["shell"] if line.strip()]
        return f"level 1 said last: {' | '.join(lines[-3:]) or 'nothing'}"

    def run(self, command: str) -> tuple[int, list[str]]:
        """A line of shell: its status, and what it printed."""
        self._ports["shell"].sendall(command.encode() + b"\n")
        lines = self._lines["shell"]
        while not (lines and lines[-1].startswith("@done ")):
            self.wait()
        *said, done = lines
        lines.clear()
        return int(done.removeprefix("@done ")), said

    def must(self, command: str) -> list[str]:
        status, said = self.run(command)
        if status:
            raise Ended(f"level 1: {command}: {' | '.join(said)}")
        return said

    def boot_level2(self, async_pf: bool) -> None:
        """Start QEMU, with a fresh file as its window, in place of the one before."""
        self.run("kill -9 $QEMU 2>/dev/null; wait $QEMU 2>/dev/null")
        while self.wait(0):
            pass  # what that one has said, and a line that it could not end
        self._partial |= {"console": b"", "events": b""}
        self.events.clear()
        self.console.clear()
        self.must(f"tr '\\0' {FILL} </dev/zero | head -c {WINDOW_BYTES} >/tmp/window")
        line = COMMAND_LINE_OF_LEVEL2 + ("" if async_pf else " no-kvmapf")
        self.must(
            f"{QEMU} -L /qemu -accel kvm -cpu host -smp 1 -m {MEMORY_OF_LEVEL2} -machine q35 -nodefaults"
            " -display none -no-reboot -serial file:/dev/ttyS2 -serial file:/dev/ttyS3"
            f" -kernel /level2/vmlinuz -initrd /level2/initramfs -append '{line}'"
            f" -object memory-backend-file,id=window,share=on,mem-path=/tmp/window,size={WINDOW_BYTES}"
            " -device ivshmem-plain,memdev=window >/tmp/said 2>&1 & QEMU=$!"
        )

    def alive(self) -> bool:
        """Whether level 2's QEMU still runs."""
        return self.run("kill -0 $QEMU 2>/dev/null")[0] == 0

    def said(self) -> list[str]:
        """What QEMU itself has printed."""
        return self.must("head -n 40 /tmp/said")

    def faults(self) -> Faults:
        taken, not_present, fixed = map(int, self.must("stat"))
        return Faults(time.monotonic(), taken, not_present, fixed)


@contextlib.contextmanager
def level1(kernel: Kernel, ramfs: bytes, deadline: float) -> Iterator[Level1]:
    """Boot level 1; `deadline` is of time.monotonic().  It is killed when the block ends."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="daxfault-")))
        (folder / "vmlinuz").write_bytes(kernel.image)
        (folder / "initramfs").write_bytes(ramfs)
        command = machine(folder / "vmlinuz", folder / "initramfs", MEMORY)
        pairs = {name: socket.socketpair() for name in PORTS}
        for name, (ours, theirs) in pairs.items():
            stack.enter_context(ours)
            command += ["-chardev", f"socket,id={name},fd={theirs.fileno()}", "-serial", f"chardev:{name}"]
        theirs_of = {name: pair[1] for name, pair in pairs.items()}
        qemu = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            # what QEMU itself has to say, among what the kernel has
            stdout=theirs_of["kernel"].fileno(),
            stderr=theirs_of["kernel"].fileno(),
            pass_fds=[port.fileno() for port in theirs_of.values()],
        )
        stack.callback(qemu.wait)
        stack.callback(qemu.kill)
        for port in theirs_of.values():
            port.close()  # or its end would not be noticed
        yield Level1({name: pair[0] for name, pair in pairs.items()}, deadline)
