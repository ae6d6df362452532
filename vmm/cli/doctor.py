# SPDX-License-Identifier: Apache-2.0
"""`daxfault doctor`: shows what works on this machine, and how to fix what does not.

Owns the tables.  Must not inspect the machine itself (daxfault.vmm.doctor.report does).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from daxfault.vmm.cli import output

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from daxfault.vmm.doctor.report import Report


def doctor(
    kvm: Annotated[
        bool,
        typer.Option("--kvm", help="Test how this kernel's KVM handles pages that a truncation removed."),
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print one JSON object; pydoc daxfault.vmm.doctor.report, or docs/kvm.md, describes it.",
        ),
    ] = False,
) -> None:
    """Show what works on this machine, and how to fix what does not.

    Exit code 0: `daxfault repro` can run here (with --kvm: KVM could be tested); 3: it cannot.
    """
    if kvm:
        from daxfault.vmm.cli.doctor_kvm import doctor_kvm

        doctor_kvm(as_json=as_json)
    from daxfault.vmm.doctor import report as machine

    report = machine.probe()
    if as_json:
        output.show_json(machine.as_json(report))
    else:
        output.show(*render(report))
    raise typer.Exit(0 if report.repro else 3)


def render(report: Report) -> list[RenderableType]:
    """The report as a list of parts to print."""
    from rich.text import Text

    machine = report.machine
    uffd = machine.userfaultfd
    user = "root" if machine.uid == 0 else f"uid {machine.uid}"
    head = Text(f"Linux {machine.kernel}, {machine.machine}, as {user}", style="bold")
    parts: list[RenderableType] = [head, Text(), _abilities(report), _devices(report), _settings(report)]
    if uffd.problem:
        parts.append(Text(uffd.problem, style="red"))
    parts.append(_features(report))
    return parts


def _table(title: str, *columns: str) -> Table:
    from rich.table import Column

    rest = [Column(column, overflow="fold") for column in columns[1:]]
    return output.table(Column(columns[0], no_wrap=True), *rest, title=title)


def _mark(good: bool | None) -> str:
    if good is None:
        return "[yellow]?[/]"
    return "[green]yes[/]" if good else "[red]no[/]"


def _abilities(report: Report) -> Table:
    from rich.markup import escape

    table = _table("What works here", "", "works", "what", "why")
    for ability in report.abilities:
        table.add_row(ability.name, _mark(ability.works), ability.what, escape(ability.reason))
    return table


def _devices(report: Report) -> Table:
    table = _table("Devices", "", "open", "mode", "for", "fix with")
    for device in report.machine.devices:
        owner = device.owner or device.problem or ""
        table.add_row(device.path, _mark(device.openable), owner, device.use, device.mend or "")
    return table


def _settings(report: Report) -> Table:
    table = _table("Limits and switches", "", "enough", "value", "for", "fix with")
    for setting in report.machine.settings:
        table.add_row(setting.name, _mark(setting.enough), setting.value, setting.use, setting.mend or "")
    return table


def _features(report: Report) -> Table:
    from daxfault.vmm.host.uffd_features import FEATURES, has

    bits = report.machine.userfaultfd.bits
    table = _table("userfaultfd", "feature", "here", "since", "used to")
    for feature in FEATURES:
        here = None if bits is None else has(bits, feature.name)
        needed = " [dim](needed)[/]" if feature.needed else ""
        table.add_row(feature.name, _mark(here), f"Linux {feature.since}", feature.use + needed)
    return table
