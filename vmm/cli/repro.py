# SPDX-License-Identifier: Apache-2.0
"""`daxfault repro`: the truncate loop, and its end.

Owns the options and the output.  Must not run the guest (daxfault.vmm.study.repro does).
"""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from daxfault.vmm.cli import output
from daxfault.vmm.names import DesignName

if TYPE_CHECKING:
    from rich.console import RenderableType

    from daxfault.vmm.study.repro import Access, Outcome, Story


class ReproDesign(enum.StrEnum):
    """The designs that are reproduced."""

    MAINLINE = DesignName.MAINLINE
    REPORT = DesignName.REPORT


class Via(enum.StrEnum):
    """How the file is truncated."""

    MOUNT = "mount"
    BEHIND = "behind"


class GuestName(enum.StrEnum):
    """The guest that touches the file."""

    STANDIN = "standin"
    KVM = "kvm"


def repro(
    guest: Annotated[
        GuestName,
        typer.Option(help="The stand-in process, or a virtual machine on /dev/kvm."),
    ] = GuestName.STANDIN,
    file: Annotated[
        Path | None,
        typer.Option(help="Use a copy of this file. Default: 64 KiB of random bytes."),
    ] = None,
    design: Annotated[
        list[ReproDesign] | None, typer.Option(help="Only this design; repeatable. Default: all.")
    ] = None,
    via: Annotated[
        list[Via] | None,
        typer.Option(help="Truncate through the mount, or the backing file behind it. Default: both."),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.05, max=60, help="How long to watch each loop.")] = 0.5,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON object; pydoc daxfault.vmm.study.story describes it."),
    ] = False,
) -> None:
    """Reproduce the truncate loop, then end it.

    A guest maps a file of a FUSE mount and reads it through userfaultfd; the file is truncated;
    the guest touches the pages that were cut off. Under `mainline` the error is dropped, the guest
    gets "page ready", and the fault repeats endlessly. Under `report` the process gets SIGBUS at the
    exact address, and a system call fails with EFAULT.

    With `--guest kvm` the file is the memory of a virtual machine, and the loop is in the kernel's
    KVM; KVM and the guest count its faults. Then the host detects the loop, ends it, and reports the
    error to the guest.

    Exit code 0: all results were as expected; 1: one was not; 3: this machine lacks a requirement
    (see `daxfault doctor`).
    """
    from daxfault.vmm.errors import UsageError
    from daxfault.vmm.study import repro as standin
    from daxfault.vmm.study.story import check_file

    check_file(file)
    if guest is GuestName.KVM:
        from daxfault.vmm.cli.repro_kvm import repro_kvm

        if design:
            raise UsageError("--design needs --guest standin: with --guest kvm the kernel decides")
        repro_kvm(file, [name.value for name in via or Via], seconds, as_json=as_json)
    designs = [name.value for name in design or ReproDesign]
    vias = [name.value for name in via or Via]

    with output.doctor_hint():
        standin.check_machine()
    outcome = output.run_with_progress(
        lambda progress: standin.run(
            file=file, designs=designs, vias=vias, seconds=seconds, progress=progress
        )
    )
    if as_json:
        output.show_json(outcome.as_json())
    else:
        output.show(*render(outcome))
    raise typer.Exit(0 if outcome.ok else 1)


def render(outcome: Outcome) -> list[RenderableType]:
    """The stories as tables, and a verdict."""
    from rich.text import Text

    from daxfault.vmm.designs import DESIGNS
    from daxfault.vmm.study.story import through

    parts: list[RenderableType] = [Text(f"Linux {outcome.kernel}, file: {outcome.file_name}", style="dim")]
    for story in outcome.stories:
        design = story.design or ""
        title = Text.assemble("\n", (design, "bold"), f": {DESIGNS[design].summary}\n")
        noticed = f"{story.noticed_ms:.1f} ms"
        title.append(
            f"truncated {through(story.via)}, {story.size} -> {story.cut} bytes, acted upon within {noticed}"
        )
        parts += [title, _table(story)]
    parts.append(_verdict(outcome))
    return parts


def _table(story: Story) -> RenderableType:
    from rich.table import Column

    table = output.table(
        "access",
        Column("got", no_wrap=True),
        "evidence",
        Column("time", justify="right", no_wrap=True),
        Column("", no_wrap=True),
    )
    for access in story.accesses:
        got = access.outcome.upper() if access.outcome != "ok" else "bytes"
        if access.outcome in ("loop", "stopped"):
            got = f"[red]{got}[/]"
        mark = "[green]✓[/]" if access.ok else f"[red]✗ expected {access.expected}[/]"
        table.add_row(access.what, got, _evidence(access), _time(access.ns), mark)
    return table


def _evidence(access: Access) -> str:
    if access.outcome == "loop":
        busy = 100 * access.cpu / (access.ns / 1e9)
        each = "not present, ready" if access.told else "vCPU halted, resumed"
        return (
            f"{access.cycles} x fault, {access.error}, {each} in {access.seconds:.2f} s = "
            f"[b]{access.rate:,.0f}/s[/], no progress, {busy:.0f} % CPU; ended by the watchdog"
        )
    if access.outcome == "sigbus":
        exact = "exact" if access.address == access.expected_address else "WRONG"
        return f"si_code {access.si_code}, si_addr {access.address or 0:#x} ({exact}), {access.error}"
    if access.outcome in ("efault", "short"):
        return f"{access.done} bytes done, then EFAULT"
    if access.outcome == "stopped":
        return f"KVM_RUN would fail with {access.error}; the vCPU is not resumed"
    return f"{access.done} bytes"


def _time(ns: int) -> str:
    return f"{ns / 1e9:.2f} s" if ns >= 1e9 else f"{ns / 1e6:.2f} ms" if ns >= 1e6 else f"{ns / 1e3:.1f} us"


def _verdict(outcome: Outcome) -> RenderableType:
    from rich.text import Text

    loops = [a for s in outcome.stories for a in s.accesses if a.outcome == "loop"]
    errors = [a for s in outcome.stories for a in s.accesses if a.outcome in ("sigbus", "efault")]
    text = Text("\n")
    if loops:
        best = max(loop.rate for loop in loops)
        text.append(f"{len(loops)} accesses looped, up to {best:,.0f} cycles a second without progress. ")
    if errors:
        text.append(f"{len(errors)} ended in the right error. ")
    if outcome.ok:
        text.append("Everything was as expected.", style="green")
    else:
        text.append("Something was not as expected.", style="red")
    return text
