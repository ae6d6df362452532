# SPDX-License-Identifier: Apache-2.0
"""`daxfault compare`: its output, for a terminal and as Markdown.

Owns the tables, designs across, accesses down.  Must not run anything, nor judge an outcome.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from daxfault.vmm.cli import output

if TYPE_CHECKING:
    from rich.console import RenderableType

    from daxfault.vmm.study.compare import Cell, Comparison, Row

_MARK = {True: "✓", None: "~", False: "✗"}
_UNJUDGED = ("measured", "untried")
_NESTED = {"sigbus": "SIGBUS", "loop": "LOOP", "stopped": "VM stopped", "hang": "HANG"}
_ACCESS_WIDTH, _DESIGN_WIDTH = 30, 25  # characters of a table's columns


def render(found: Comparison, width: int) -> list[RenderableType]:
    """Tables of as many designs as fit into `width` characters, and a verdict."""
    from rich.text import Text

    parts: list[RenderableType] = [
        Text(f"Linux {found.kernel}; loops watched for {found.seconds:g} s", style="dim")
    ]
    across = max(2, (width - _ACCESS_WIDTH) // _DESIGN_WIDTH)
    for first in range(0, len(found.rows), across):
        parts.append(_table(found, found.rows[first : first + across]))
    for series in found.series:
        parts.append(Text(f"pace of another task, {series['label']}: {series['ratio']:.0%}"))
    parts += [Text(line, style="dim") for line in _untried(found)]
    if found.differences:
        parts.append(_differences(found))
    whose = " and ".join(_promising(found))
    if found.kept:
        right = f", and under {whose} every access had its right end" if whose else ""
        parts.append(Text(f"Nothing hung{right}.", style="green"))
    else:
        parts.append(Text(f"Something hung, or an access under {whose} had a wrong end.", style="red"))
    return parts


def _untried(found: Comparison) -> list[str]:
    """The reasons why cells could not be run here, one line for each reason."""
    whose: dict[str, list[str]] = {}
    for row in found.rows:
        for name, cell in row.cells.items():
            if cell.outcome == "untried":
                every = all(other.detail == cell.detail for other in row.cells.values())
                whose.setdefault(cell.detail, []).append(row.name if every else f"{row.name} ({name})")
    return [f"not here: {', '.join(dict.fromkeys(names))}: {why}" for why, names in whose.items()]


def _promising(found: Comparison) -> list[str]:
    """`report`, and on KVM all mechanisms that the engine serves."""
    names = [row.name for row in found.rows if row.promises]
    engines = [name for name in names if name.startswith("engine+")]
    return [name for name in names if name not in engines] + (["engine+..."] if engines[1:] else engines)


def _differences(found: Comparison) -> RenderableType:
    table = output.table("access", "design, in the model", "on KVM", "why", title="Model and reality")
    titles = {column.name: column.title for column in found.columns}
    for one in found.differences:
        model, real = f"{one.design}: {one.model}", f"{one.way}: {one.kvm}"
        table.add_row(titles[one.column], model, real, one.why or "unknown")
    return table


def _table(found: Comparison, rows: list[Row]) -> RenderableType:
    from rich.text import Text

    table = output.table("access", *(row.name for row in rows))
    for column in found.columns:
        cells = [row.cells.get(column.name) for row in rows]
        shown = [Text(_words(cell), style=_style(cell)) for cell in cells]
        table.add_row(column.title, *shown)
    if found.nested:
        table.add_row("guest in a guest", *(_nested(found, row.name) for row in rows))
    return table


def _nested(found: Comparison, design: str) -> str:
    """The outcome of the access of a nested guest."""
    for result in found.nested:
        if result["design"] == design:
            right = result["outcome"] == "sigbus"
            mark = _MARK[None if right and not result["address_exact"] else right]
            rate = f" {result['rate']:,.0f}/s" if result["rate"] else ""
            return f"{mark} {_NESTED.get(result['outcome'], result['outcome'])}{rate}"
    return ""


def _words(cell: Cell | None) -> str:
    if cell is None:
        return ""
    return cell.text if cell.outcome in _UNJUDGED else f"{_MARK[cell.ok]} {cell.text}"


def _style(cell: Cell | None) -> str:
    if cell is None or cell.outcome in _UNJUDGED:
        return "dim" if cell and cell.outcome == "untried" else ""
    return {True: "green", None: "yellow", False: "red"}[cell.ok]


def markdown(found: Comparison) -> str:
    """docs/designs/table.md, and kvm-table.md."""
    names = [row.name for row in found.rows]
    guests = {row.guest for row in found.rows}
    guest = "" if guests == {"standin"} else " --guest kvm" if guests == {"kvm"} else " --guest both"
    lines = [
        "# What each design did" if not guest else "# What each design did, and what is done on KVM",
        "",
        f"`daxfault compare{guest} --markdown` writes this page: designs against accesses, what each got,",
        f"on the machine where it ran. Linux {found.kernel}, loops watched for {found.seconds:g} s. ✓ is the",
        "right end, ~ the right error without its address, ✗ a wrong end. What every row is:",
        "[../compare.md](../compare.md).",
        "",
        f"| | {' | '.join(names)} |",
        f"|---|{'---|' * len(names)}",
    ]
    for column in found.columns:
        cells = [_words(row.cells.get(column.name)) for row in found.rows]
        lines.append(f"| {column.title} | {' | '.join(cells)} |")
    if found.nested:
        cells = [_nested(found, name) for name in names]
        lines.append(f"| guest in a guest | {' | '.join(cells)} |")
    if untried := _untried(found):
        lines += ["", *(f"- {line}" for line in untried)]
    if found.differences:
        lines += [
            "",
            "## Model and reality",
            "",
            "| access | in the model | on KVM | why |",
            "|---|---|---|---|",
        ]
        titles = {column.name: column.title for column in found.columns}
        lines += [
            f"| {titles[one.column]} | {one.design}: {one.model} | {one.way}: {one.kvm} | {one.why} |"
            for one in found.differences
        ]
    if found.series:
        lines += ["", "Pace of a task while its neighbour waits for 20 ms a page, of its pace alone:", ""]
        lines += [f"- {series['label']}: {series['ratio']:.0%}" for series in found.series]
    return "\n".join(lines)
