# SPDX-License-Identifier: Apache-2.0
"""`daxfault doctor --kvm`: its output.

Owns the tables.  Must not test anything itself (daxfault.vmm.kvm.probe does).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import typer

from daxfault.vmm.cli import output

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from daxfault.vmm.kvm.probe import Answers

_CASES = {
    "async_pf": "async page faults on",
    "irqs_on": "off, interrupts on",
    "irqs_off": "off, interrupts off",
    "no_irqchip": "off, no irqchip in KVM",
    "kernel": "off, in ring 0",
}
_RESCUES = {
    "unmap": "unmapped",
    "forbid": "PROT_NONE",
    "shrink": "a shorter memslot",
    "poison": "poison moved over it",
}
_INJECTIONS = {
    "area": "#PF, reason and gva in the async_pf area",
    "pf": "#PF, a bit in its error code",
    "mc": "#MC, the gpa in a bank",
    "event": "an interrupt, reason and gva in the area",
}


def doctor_kvm(*, as_json: bool) -> NoReturn:
    """Test, print, and exit."""
    from daxfault.vmm.kvm.probe import probe

    with output.progress() as shown:
        shown("testing KVM")
        answers = probe()
    if as_json:
        output.show_json(answers)
    else:
        output.show(*render(answers))
    raise typer.Exit(0 if answers["usable"] else 3)


def render(answers: Answers) -> list[RenderableType]:
    """The answers as a list of parts to print."""
    from rich.text import Text

    kernel, cpu, kvm = answers["kernel"], answers["cpu"], answers["kvm"]
    under = f", under {cpu['hypervisor'] or 'a hypervisor without a name'}" if kvm["nested"] else ""
    modules = ", ".join(kvm["modules"]) or "no module"
    offers = f", offers a guest {kvm['signature']}, features {kvm['features']:#x}" if kvm["signature"] else ""
    parts: list[RenderableType] = [
        Text(f"Linux {kernel['release']} {kernel['version']}, {kernel['machine']}", style="bold"),
        Text(f"{cpu['vendor']}, {cpu['model']}{under}"),
        Text(f"KVM by {kvm['backend']} ({modules}){offers}"),
        Text(),
    ]
    if not answers["usable"]:
        return [*parts, Text(answers["reason"], style="red")]
    parts += [_cases(answers), _rescues(answers), _injections(answers)]
    verdict = "This kernel loops." if answers["loops"] else "No access looped."
    return [*parts, Text(f"{verdict} Tested in {answers['seconds']:.1f} s.")]


def _table(title: str, *columns: str) -> Table:
    from rich.table import Column

    return output.table(*(Column(column, overflow="fold") for column in columns), title=title)


def _coloured(word: str) -> str:
    bad = word.startswith(("LOOP", "FAILS", "no exit"))
    return f"[red]{word}[/]" if bad else word


def _cases(answers: Answers) -> Table:
    from rich.markup import escape

    from daxfault.vmm.kvm.probe import of_case

    table = _table("An access to a page that a truncation removed", "", "access", "KVM_RUN", "")
    for name, case in answers["cases"].items():
        why = case["why"] or ""
        if case["counted_by"] is not None:
            whose = "" if case["counted_by"] == "kvm" else " (the guest's count)"
            why = f"{case['faults']:,} faults{whose}"
        if case["ready"]:
            why += f", {case['not_present']:,} x not present, {case['ready']:,} x ready"
        table.add_row(name, _CASES.get(name, ""), _coloured(of_case(case)), escape(why))
    return table


def _rescues(answers: Answers) -> Table:
    from rich.markup import escape

    from daxfault.vmm.kvm.probe import of_rescue

    table = _table(
        f"Ending the loop of {answers['rescued']}" if answers["rescued"] else "Ending a loop",
        "",
        "by",
        "then",
        "says where",
        "after",
    )
    for name, rescue in answers["rescues"].items():
        after = "" if rescue["milliseconds"] is None else f"{rescue['milliseconds']:.2f} ms"
        where = {"gpa": "the gpa", "page": "the page", "nowhere": "no", None: ""}.get(
            rescue["where"], "WRONG"
        )
        tail = f"{after} {escape(rescue['why'] or '')}".strip()
        table.add_row(name, _RESCUES.get(name, ""), _coloured(of_rescue(rescue)), where, tail)
    return table


def _injections(answers: Answers) -> Table:
    from rich.markup import escape

    from daxfault.vmm.kvm.probe import of_injection

    table = _table("Reporting to the guest", "", "by", "arrives", "")
    for name, injection in answers["injections"].items():
        works = _coloured(of_injection(injection))
        table.add_row(name, _INJECTIONS.get(name, ""), works, escape(injection["why"] or ""))
    return table
