#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Test how kvm_amd of several kernels handles an access to a removed page.

Each is booted under QEMU's emulated CPU, which has SVM, with an initramfs of a busybox and
daxfault-kvm-probe.  Needs neither root nor KVM; takes about ten seconds per kernel.  Owns the boot
and the table.  Must not interpret the answers; docs/kvm.md explains them.

    scripts/kernels/kvm_matrix                          the newest Debian kernel of each series that APT knows
    scripts/kernels/kvm_matrix linux-image-6.1.0-50-cloud-amd64 ./linux-image-*.deb
    scripts/kernels/kvm_matrix arch/x86/boot/bzImage    KVM and kvm_amd built in; or with --modules

--json prints {"schema": 1, "kernels": [{"name", "seconds", "error", "answers"}]}, with daxfault-kvm-probe's
JSON, or null, as the answers.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from kvm_kernels import Kernel, busybox, initramfs, is_static, offered
from kvm_qemu import is_kernel, load, machine, need_qemu
from rich.table import Column, Table

from daxfault.native.kvm import probe_program
from daxfault.vmm.cli import output
from daxfault.vmm.errors import DaxfaultError, Unsupported
from daxfault.vmm.kvm.probe import Answers, of_case, of_injection, of_rescue, understand


@dataclasses.dataclass(slots=True)
class Asked:
    """One kernel, and its answers or why there are none."""

    name: str
    seconds: float = 0.0
    error: str | None = None
    answers: Answers | None = None


def boot(kernel: Kernel, probe: bytes, shell: bytes, seconds: float) -> Answers:
    """Boot the kernel; -> its answers.  Unsupported, with the last console output, if there are none."""
    with tempfile.TemporaryDirectory(prefix="daxfault-") as folder:
        image, ramfs, answer = (Path(folder) / name for name in ("vmlinuz", "initramfs", "answer"))
        image.write_bytes(kernel.image)
        ramfs.write_bytes(initramfs(kernel, probe, shell))
        # the second port: on the first, kernel messages would interrupt the answer
        ports = ["-serial", "stdio", "-serial", f"file:{answer}"]
        command = [*machine(image, ramfs, memory=512), *ports]
        pipe = subprocess.PIPE
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=pipe,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as qemu:
            try:
                console, _ = qemu.communicate(timeout=seconds)
            except subprocess.TimeoutExpired as e:
                said = (
                    (e.stdout or b"").decode(errors="replace")
                    if isinstance(e.stdout, bytes)
                    else e.stdout or ""
                )
                raise Unsupported(f"no answer in {seconds:g} s; {_last(said)}") from None
            finally:
                qemu.kill()
                qemu.wait()
        text = answer.read_text() if answer.exists() else ""
    if not text.strip():
        raise Unsupported(f"no answer; {_last(console)}")
    return understand(text)


def _last(console: str) -> str:
    lines = [line.strip() for line in console.splitlines() if line.strip()]
    return f"last on its console: {' | '.join(lines[-3:])}" if lines else "its console is empty"


def ask(name: str, modules: Path | None, probe: bytes, seconds: float, progress: output.Progress) -> Asked:
    asked = Asked(name)
    try:
        progress(f"{name}: unpacking")
        kernel = load(name, modules, progress)
        shell = busybox(progress)
        progress(f"{name}: booting")
        began = time.monotonic()
        asked.answers = boot(kernel, probe, shell, seconds)
        asked.seconds = round(time.monotonic() - began, 1)
        if not asked.answers["usable"]:
            asked.error = asked.answers["reason"]
    except (Unsupported, DaxfaultError, OSError) as e:
        asked.error = str(e)
    progress(f"{name}: {asked.error or f'answered in {asked.seconds:g} s'}")
    return asked


def table(all_asked: list[Asked]) -> Table:
    """A row for each case, a column for each kernel that answered."""
    good = [
        (asked, asked.answers) for asked in all_asked if asked.answers is not None and asked.error is None
    ]
    names = [Column(answers["kernel"]["release"], overflow="fold") for _, answers in good]
    rows = output.table(Column("", no_wrap=True), *names)
    for group, show in (("cases", of_case), ("rescues", of_rescue), ("injections", of_injection)):
        for name in good[0][1][group] if good else ():
            words = [show(answers[group][name]) for _, answers in good]
            rows.add_row(f"{group[:-1]} {name}", *(f"[red]{w}[/]" if "LOOP" in w else w for w in words))
        rows.add_section()
    rows.add_row("seconds", *(f"{asked.seconds:g}" for asked, _ in good))
    return rows


def remarks(all_asked: list[Asked]) -> list[str]:
    """The reasons of failures."""
    lines = []
    for asked in all_asked:
        if asked.error is not None:
            lines.append(f"{asked.name}: {asked.error}")
            continue
        answers = asked.answers or {}
        for group in ("cases", "rescues", "injections"):
            for name, found in answers[group].items():
                if found["why"]:
                    lines.append(f"{answers['kernel']['release']}: {group[:-1]} {name}: {found['why']}")
    return lines


def main(
    kernels: Annotated[
        list[str] | None, typer.Argument(help="Debian packages by name, .deb files, or bzImages.")
    ] = None,
    modules: Annotated[
        Path | None, typer.Option(help="lib/modules/VERSION of the bzImages. Default: KVM is built in.")
    ] = None,
    newest: Annotated[
        bool, typer.Option("--newest", help="Without arguments: the newest series only.")
    ] = False,
    seconds: Annotated[float, typer.Option(min=1, help="How long a kernel may take.")] = 120,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Test how kvm_amd of several kernels, under an emulated CPU, handles an access to a removed page.

    Exit code 0: all kernels answered; 1: one did not; 2: bad arguments; 3: this machine lacks a
    requirement. Packages are kept in $XDG_CACHE_HOME/daxfault.
    """
    with output.progress(lines=True) as progress:
        try:
            need_qemu()
            probe = probe_program().read_bytes()
            if not is_static(probe):
                raise Unsupported("daxfault-kvm-probe is not static: install a static libc, and build again")
            names = kernels or offered(progress)[-1 if newest else 0 :]
        except Unsupported as e:
            print(f"kvm_matrix: {e}", file=sys.stderr)
            raise typer.Exit(3) from None
        for name in names:
            if not is_kernel(name):
                print(f"kvm_matrix: {name}: neither a file nor a package (linux-image-...)", file=sys.stderr)
                raise typer.Exit(2)
        all_asked = [ask(name, modules, probe, seconds, progress) for name in names]
    if as_json:
        output.show_json({"schema": 1, "kernels": [dataclasses.asdict(a) for a in all_asked]})
    else:
        if any(asked.error is None for asked in all_asked):
            output.show(table(all_asked))
        for line in remarks(all_asked):
            print(line)
    raise typer.Exit(1 if any(asked.error is not None for asked in all_asked) else 0)


if __name__ == "__main__":
    typer.run(main)
