# SPDX-License-Identifier: Apache-2.0
"""`daxfault repro --guest kvm`: its output.

Must not run the guest itself (daxfault.vmm.study.repro_kvm does).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer

from daxfault.vmm.cli import output

if TYPE_CHECKING:
    from rich.console import RenderableType

    from daxfault.vmm.study.repro_kvm import Access, Outcome, Story


def repro_kvm(file: Path | None, vias: list[str], seconds: float, *, as_json: bool) -> NoReturn:
    """Run, print, and exit."""
    from daxfault.vmm.study import repro_kvm as kvm

    kvm.check_machine()
    outcome = output.run_with_progress(
        lambda progress: kvm.run(file=file, vias=vias, seconds=seconds, progress=progress)
    )
    if as_json:
        output.show_json(outcome.as_json())
    else:
        output.show(*render(outcome))
    raise typer.Exit(0 if outcome.ok else 1)


def render(outcome: Outcome) -> list[RenderableType]:
    """The stories as tables, and a verdict."""
    from rich.text import Text

    from daxfault.vmm.study.story import through

    parts: list[RenderableType] = [
        Text(f"Linux {outcome.kernel}, a KVM guest over file: {outcome.file_name}", style="dim")
    ]
    for story in outcome.stories:
        title = f"truncated {through(story.via)}, {story.size} -> {story.cut} bytes, noticed within "
        parts += [Text(f"\n{title}{story.noticed_ms:.1f} ms"), _table(story)]
    loops = [a.watched for s in outcome.stories for a in s.accesses if a.watched and a.got == "loop"]
    verdict = Text("\n")
    if loops:
        best = max(loop.rate for loop in loops)
        verdict.append(f"{len(loops)} accesses looped, up to {best:,.0f} faults a second; each was ended. ")
    if outcome.ok:
        verdict.append("Everything was as expected.", style="green")
    else:
        verdict.append("Something was not as expected.", style="red")
    return [*parts, verdict]


def _table(story: Story) -> RenderableType:
    from rich.table import Column

    table = output.table("access", Column("got", no_wrap=True), "evidence", Column("", no_wrap=True))
    for access in story.accesses:
        got = "bytes" if access.got == "ok" else access.got.upper()
        mark = "[green]✓[/]" if access.ok else f"[red]✗ expected {access.expected}[/]"
        table.add_row(access.what, f"[red]{got}[/]" if access.watched else got, _evidence(access), mark)
    return table


def _evidence(access: Access) -> str:
    if (loop := access.watched) is not None:
        guest = "the guest sees nothing" if loop.guest is None else f"the guest {loop.guest}"
        return (
            f"KVM counts {loop.faults} faults, {loop.fixed} fixed, {guest}; {loop.exits} exits in "
            f"{loop.seconds:.2f} s = [b]{loop.rate:,.0f}/s[/], {100 * loop.cpu / loop.seconds:.0f} % CPU"
        )
    if access.address is None:
        return f"{access.done} bytes" if access.done != 1 else "1 byte"
    exact = "exact" if access.address == access.expected_address else "WRONG"
    parts = [f"gva {access.address:#x} ({exact}), by {access.via}"]
    if access.rescue:
        parts.append(
            f"noticed in {access.detect_ms or 0:.1f} ms, {access.rescue} in {access.rescue_ms or 0:.2f} ms"
        )
    else:
        parts.append(f"{access.done} bytes done")
    parts.append(f"reported in {access.answer_us or 0:.0f} us")
    return ", ".join(parts)
