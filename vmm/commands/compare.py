# SPDX-License-Identifier: Apache-2.0
"""`daxfault compare`: every design on the same accesses.

Owns the options and what is printed.  Must not know how a cell is run: that is
vmm.compare's.
"""

from __future__ import annotations

import enum
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from vmm.compare import Cell, Comparison, Row
    from vmm.designs import Design

# Names are written out here, for completion and errors must not wait for the imports that know them;
# a test compares them.


class DesignName(enum.StrEnum):
    """What becomes of a fault that the host cannot resolve."""

    MAINLINE = "mainline"
    RFC_V1 = "rfc-v1"
    JUNE_2020 = "june-2020"
    EXIT_TO_USER = "exit-to-user"
    GONE_IN_WAKEUP = "gone-in-wakeup"
    INJECT_ON_RETRY = "inject-on-retry"
    POISON = "poison"
    REPORT = "report"


class ColumnName(enum.StrEnum):
    """A question put to every design."""

    USER_READ = "user-read"
    USER_WRITE = "user-write"
    KERNEL_ENTRY = "kernel-entry"
    KERNEL_BARE = "kernel-bare"
    SYSTEM_CALL = "system-call"
    INTERRUPTS_OFF = "interrupts-off"
    ASYNC_OFF = "async-off"
    TWO_TASKS = "two-tasks"
    QUEUE_FULL = "queue-full"
    GROWN = "grown"
    IO_ERROR = "io-error"
    NO_SPACE = "no-space"
    KILLED = "killed"
    SLOW_PAGE = "slow-page"
    WAKE_ALL = "wake-all"
    KERNEL_AFTER_USER = "kernel-after-user"
    LATENCY = "latency"
    CPU = "cpu"
    OTHERS = "others"
    NESTED = "nested"


class Posted(enum.StrEnum):
    """A defect of RFC v1 as it was posted, or all of them, each in a row of its own."""

    SUCCESS_IS_ERROR = "success-is-error"
    GLA_OR = "gla-or"
    FOLL_WRITE = "foll-write"
    NO_ENTRY_LOOPS = "no-entry-loops"
    NO_GVA_FLAG = "no-gva-flag"
    WAKE_ALL_UNINIT = "wake-all-uninit"
    STALE_GVA = "stale-gva"
    ALL = "all"


def compare(
    design: Annotated[
        list[DesignName] | None, typer.Option(help="Only this design; may be given again. Default: all.")
    ] = None,
    column: Annotated[
        list[ColumnName] | None, typer.Option(help="Only this column; may be given again. Default: all.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.05, max=60, help="How long to watch each loop.")] = 0.25,
    as_posted: Annotated[
        list[Posted] | None,
        typer.Option(help="Add a row: rfc-v1 with this defect of its posting; may be given again."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object; pydoc vmm.compare.table describes it.")
    ] = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the tables as docs/designs/table.md has them.")
    ] = False,
    html: Annotated[Path | None, typer.Option(help="Write a page that shows every message.")] = None,
) -> None:
    """Compare what was ever proposed for a failed fault, on the same accesses.

    For every design and every access a file is put on a FUSE mount, a fresh guest maps it,
    the file is truncated (or its disk fails, or is slow), and the guest touches it. What is
    shown is what happened, never what should: SIGBUS, EFAULT, bytes, a guest panic, an endless
    LOOP with its rate, a VM that stopped. A mark says whether that is the right end: ✓ yes,
    ~ the right error without its address, ✗ no. docs/compare.md explains every column, and
    docs/designs every design.

    Examples: `daxfault compare --design mainline --design report`, `daxfault compare
    --column user-read --json`, `daxfault compare --design rfc-v1 --as-posted all`.

    Ends with 0 when nothing hung and every access under `report` had its right end, with 1
    when not, with 3 when this machine lacks what is needed (`daxfault doctor` says what).
    """
    if as_json and as_markdown:
        raise typer.BadParameter("--json and --markdown are one or the other")
    import trio

    import fsd
    from vmm import compare as comparison
    from vmm import repro
    from vmm.designs import DESIGNS
    from vmm.errors import Unsupported, UsageError

    designs = [DESIGNS[name.value] for name in design or DesignName]
    designs += _posted(as_posted or [])
    columns = [name.value for name in column or ColumnName]
    if html is not None and not html.absolute().parent.is_dir():
        raise UsageError(f"{html}: no such directory")

    async def run(progress: comparison.table.Progress) -> Comparison:
        return await comparison.run(
            designs=designs,
            columns=[name for name in columns if name != ColumnName.NESTED],
            seconds=seconds,
            in_nested=ColumnName.NESTED in columns,
            progress=progress,
        )

    try:
        repro.check_machine()
        found = _with_progress(lambda progress: trio.run(run, progress))
    except (fsd.MountError, PermissionError) as e:
        hint = "Run `daxfault doctor`: it says what is missing here, and what mends it."
        why = e.strerror if isinstance(e, OSError) else e
        raise Unsupported(f"{why}\n{hint}") from e
    if html is not None:
        _write_page(html, found)
    if as_json:
        print(json.dumps(found.as_json(), indent=2))
    elif as_markdown:
        print(markdown(found))
    else:
        from rich.console import Console

        console = Console(highlight=False)
        for part in render(found, console.width):
            console.print(part)
    raise typer.Exit(0 if found.kept else 1)


def _posted(names: list[Posted]) -> list[Design]:
    """The rows that --as-posted adds."""
    from vmm.designs import POSTED, as_posted

    chosen = POSTED if Posted.ALL in names else dict.fromkeys(name.value for name in names)
    return [as_posted([name]) for name in chosen]


def _with_progress(body: object) -> Comparison:
    """Run `body(progress)`, showing on a terminal what is under way."""
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("starting") as status:
        return body(status.update if console.is_terminal else lambda _: None)  # type: ignore[no-any-return, operator]


def _write_page(path: Path, found: Comparison) -> None:
    from vmm.errors import UsageError
    from vmm.page import render as page

    try:
        path.write_text(page(found.as_json()), encoding="utf-8")
    except OSError as e:
        raise UsageError(f"{path}: {e.strerror}") from e


# ---- tables: designs across, accesses down

_MARK = {True: "✓", None: "~", False: "✗"}
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
    if found.kept:
        parts.append(Text("Nothing hung, and under report every access had its right end.", style="green"))
    else:
        parts.append(Text("Something hung, or an access under report had a wrong end.", style="red"))
    return parts


def _table(found: Comparison, rows: list[Row]) -> RenderableType:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("access")
    for row in rows:
        table.add_column(row.design.name)
    for column in found.columns:
        cells = [row.cells.get(column.name) for row in rows]
        shown = [Text(_words(cell), style=_style(cell)) for cell in cells]
        table.add_row(column.title, *shown)
    if found.nested:
        table.add_row("guest in a guest", *(_nested(found, row.design.name) for row in rows))
    return table


def _nested(found: Comparison, design: str) -> str:
    """What became of the access of a guest in a guest."""
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
    measured = cell.outcome == "measured"
    return cell.text if measured else f"{_MARK[cell.ok]} {cell.text}"


def _style(cell: Cell | None) -> str:
    if cell is None or cell.outcome == "measured":
        return ""
    return {True: "green", None: "yellow", False: "red"}[cell.ok]


def markdown(found: Comparison) -> str:
    """docs/designs/table.md."""
    names = [row.design.name for row in found.rows]
    lines = [
        "# What each design did",
        "",
        "`daxfault compare --markdown` writes this page: designs against accesses, what each got, on the",
        f"machine where it ran. Linux {found.kernel}, loops watched for {found.seconds:g} s. ✓ is the right",
        "end, ~ the right error without its address, ✗ a wrong end. What every row is:",
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
    if found.series:
        lines += ["", "Pace of a task while its neighbour waits for 20 ms a page, of its pace alone:", ""]
        lines += [f"- {series['label']}: {series['ratio']:.0%}" for series in found.series]
    return "\n".join(lines)
