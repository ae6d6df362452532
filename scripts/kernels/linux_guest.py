#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Truncate the file in the window of a Linux guest: stock kernels and stock QEMU, at both levels.

Level 1 is booted under QEMU's emulated CPU, which has SVM; in it, QEMU with KVM boots level 2, the same
kernel, with a file as an ivshmem device.  Needs neither root nor KVM.  Owns the command line and the
output; linux_story.py runs the story.  docs/linux-guest.md explains it.

    scripts/kernels/linux_guest                              the newest Debian kernel that APT knows
    scripts/kernels/linux_guest linux-image-6.1.0-50-cloud-amd64
    scripts/kernels/linux_guest arch/x86/boot/bzImage --modules lib/modules/6.18.0

--json prints {"schema": 1, "kernel", "chapters": [...], "error"}; a chapter has the fields of Chapter and
Loop in linux_story.py.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from kvm_kernels import busybox, is_static, offered
from kvm_qemu import is_kernel, load, need_qemu
from linux_level1 import Ended, level1, level1_ramfs
from linux_story import RESCUES, Chapter, run_chapter

from daxfault.native.kvm import level2_program, rescue_program
from daxfault.vmm.cli import output
from daxfault.vmm.errors import Unsupported

# unmap has the same result as forbid
DEFAULT = RESCUES[:3]
ENDS = {
    "healed": "goes on",
    "signal": "the process got",
    "panic": "the guest's kernel ended itself",
    "stopped": "QEMU has stopped the guest for good",
    "died": "QEMU has ended",
    "refused": "level 1's kernel refused the rescue, and it loops on",
    "loop": "STILL LOOPS",
}


def lines(chapter: Chapter) -> list[str]:
    """A chapter as text."""
    loop = chapter.loop
    told = "" if loop.told is None else f", {loop.not_present} x page not present, {loop.told} x page ready"
    shown = "LOOP" if loop.seen else "NO LOOP"
    value = "" if chapter.value is None else f"; the byte is {chapter.value}"
    return [
        f"async page faults {'on' if chapter.async_pf else 'off'}, rescue {chapter.rescue}",
        f"  gva {chapter.gva:#x}: {shown}: {loop.faults} faults in {loop.seconds:.1f} s"
        f" = {loop.per_second:,.0f}/s, {loop.fixed} fixed{told}, {loop.loads} loads",
        f"  then {ENDS[chapter.end]}: {chapter.why}{value}  {'✓' if chapter.as_expected else '✗'}",
    ]


def chapters_of(rescues: list[str], async_pf: bool | None) -> list[tuple[bool, str]]:
    modes = (True, False) if async_pf is None else (async_pf,)
    return [(mode, rescue) for mode in modes for rescue in rescues]


def main(
    kernel: Annotated[
        str | None, typer.Argument(help="A Debian package by name, a .deb file, or a bzImage.")
    ] = None,
    modules: Annotated[
        Path | None, typer.Option(help="lib/modules/VERSION of the bzImage. Default: KVM is built in.")
    ] = None,
    rescue: Annotated[
        list[str] | None,
        typer.Option(help=f"One of {', '.join(RESCUES)}; again for more. Default: all but unmap."),
    ] = None,
    async_pf: Annotated[
        bool | None,
        typer.Option("--async-pf/--no-async-pf", help="Level 2's async page faults. Default: both."),
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, help="How long all of it may take.")] = 600,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Let a Linux guest under nested KVM touch a page whose file was truncated, and try to help it.

    Ends with 0 when each guest looped and each rescue did what it is known to do, 1 when not, 2 for bad
    arguments, 3 when something is missing here.
    """
    deadline = time.monotonic() + seconds
    for name in rescue or ():
        if name not in RESCUES:
            raise typer.BadParameter(f"{name}: not one of {', '.join(RESCUES)}", param_hint="--rescue")
    if kernel is not None and not is_kernel(kernel):
        print(f"linux_guest: {kernel}: neither a file nor a package (linux-image-...)", file=sys.stderr)
        raise typer.Exit(2)
    chapters: list[Chapter] = []
    error = None
    with output.progress(lines=True) as progress:
        try:
            need_qemu()
            programs = [program().read_bytes() for program in (rescue_program, level2_program)]
            if not all(map(is_static, programs)):
                raise Unsupported("the programs are not static: install a static libc, and build again")
            kernel = kernel or offered(progress)[-1]
            progress(f"{kernel}: unpacking")
            image = load(kernel, modules, progress)
            ramfs = level1_ramfs(image, busybox(progress), *programs)
        except (Unsupported, OSError) as e:
            print(f"linux_guest: {e}", file=sys.stderr)
            raise typer.Exit(3) from None
        try:
            progress(f"level 1: {kernel} under QEMU's emulated CPU")
            with level1(image, ramfs, deadline) as below:
                for mode, name in chapters_of(rescue or list(DEFAULT), async_pf):
                    healed = chapters[-1] if chapters and chapters[-1].end == "healed" else None
                    progress(f"level 2: async page faults {'on' if mode else 'off'}, rescue {name}")
                    chapters.append(run_chapter(below, mode, name, healed))
                    if not as_json:
                        print("\n".join(lines(chapters[-1])), flush=True)
        except Ended as e:
            error = str(e)
    if as_json:
        found = [dataclasses.asdict(chapter) for chapter in chapters]
        print(json.dumps({"schema": 1, "kernel": kernel, "chapters": found, "error": error}, indent=2))
    elif error:
        print(f"linux_guest: {error}", file=sys.stderr)
    raise typer.Exit(0 if error is None and all(chapter.as_expected for chapter in chapters) else 1)


if __name__ == "__main__":
    typer.run(main)
