# SPDX-License-Identifier: Apache-2.0
"""The result of `daxfault compare` as one self-contained HTML page.

Owns the page's content and order; sequence.py and plots.py lay the drawings out, the templates draw
them.  Must not run anything, nor judge an outcome: the comparison has done that.

The drawings are SVG made here, because they must follow the page's style sheet (dark, light, print);
plotting libraries fix the colours and have no sequence diagrams.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from daxfault.vmm.study.page.numbers import count, duration, rate
from daxfault.vmm.study.page.plots import Latency, Pace, Rates
from daxfault.vmm.study.page.sequence import Sequence, laid_out

__all__ = ["render"]

VERSION = 1  # of the JSON

# outcome -> its text in the legend, in the legend's order
OUTCOMES = {
    "bytes": "the access got its bytes",
    "sigbus": "the task got SIGBUS",
    "efault": "the copy or system call ended in EFAULT, or short",
    "killed": "the task was killed",
    "panic": "the guest kernel panicked",
    "stopped": "the VM stopped: its vCPU's run failed",
    "loop": "fault, “ready”, fault, … until the watchdog ended it",
    "hang": "it never came back",
    "wrong": "wrong bytes, or the wrong error",
    "measured": "a measurement",
    "untried": "cannot be done here",
}
MARKS = {"right": "the right end", "half": "the right error, without its address", "bad": "a wrong end"}
_BAD = ("loop", "hang", "wrong", "stopped")
_MARK = {True: "right", None: "half", False: "bad"}
_UNITS = {"ns": 1, "us": 1e3, "ms": 1e6, "seconds": 1e9}
_GROUPS = {"behaviour": "What the access came to", "cost": "What it costs"}


@dataclasses.dataclass(frozen=True, slots=True)
class Cell:
    """One access under one design.

    `kind` is an outcome, or `other` for an unknown one; `mark` is a key of MARKS, or empty if there is no
    right outcome.
    """

    id: str
    design: str
    column: str
    kind: str
    outcome: str
    text: str
    detail: str
    mark: str
    facts: list[tuple[str, str]]
    sequence: Sequence
    open: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One design; `cells` in the order of the columns, None where it was not run.

    It is a column on the page: there are more accesses than designs.
    """

    title: str
    summary: str
    cells: list[Cell | None]
    right: int
    judged: int


def render(result: Mapping[str, Any]) -> str:
    """The page for a comparison's JSON.

    Raises ValueError when it is of another version.  All its strings are escaped, and a
    Content-Security-Policy allows only the page's own style and script.
    """
    if result.get("version") != VERSION:
        raise ValueError(f"the comparison has version {result.get('version')!r}; this page draws {VERSION}")
    columns = [{"meaning": "", **column} for column in result["columns"]]
    rows = _rows(result, columns)
    titles = {row["design"]: str(row.get("title") or row["design"]) for row in result["rows"]}
    style, script = _source("style.css"), _source("page.js")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
        environment=_environment(result),
        groups=_groups(columns),
        columns=columns,
        rows=rows,
        legend=_legend(rows),
        pace=Pace.of(result.get("pace") or {}, titles),
        latency=Latency.of(result.get("latency") or [], titles),
        rates=Rates.of(result["rows"], columns, titles),
        nested=result.get("nested") or [],
        differences=result.get("differences") or [],
        accesses={column["name"]: column["title"] for column in columns},
        real=any(row.get("guest") == "kvm" for row in result["rows"]),
        titles=titles,
        verdict=_verdict(rows),
        outcomes=OUTCOMES,
        marks=MARKS,
    )


def _source(name: str) -> str:
    return resources.files("daxfault.vmm.study.page").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _rows(result: Mapping[str, Any], columns: list[dict[str, Any]]) -> list[Row]:
    shown = _opened(result, columns)
    rows = []
    for r, row in enumerate(result["rows"]):
        title = str(row.get("title") or row["design"])
        cells = []
        for c, column in enumerate(columns):
            found = row["cells"].get(column["name"])
            cells.append(found and _cell(f"s{r}-{c}", title, column, found, result, (r, c) in shown))
        judged = [cell for cell in cells if cell and cell.mark]
        right = sum(cell.mark == "right" for cell in judged)
        rows.append(Row(title, str(row.get("summary") or ""), cells, right, len(judged)))
    return rows


def _opened(result: Mapping[str, Any], columns: list[dict[str, Any]]) -> set[tuple[int, int]]:
    """The cells that are open initially: one access with a wrong outcome, and the same with a right one."""
    for c, column in enumerate(columns):
        found = [row["cells"].get(column["name"]) or {} for row in result["rows"]]
        bad = [r for r, cell in enumerate(found) if cell.get("ok") is False and cell.get("events")]
        loops = [r for r in bad if found[r].get("outcome") in _BAD]
        good = [r for r, cell in enumerate(found) if cell.get("ok") is True and cell.get("events")]
        if loops and good:
            return {(loops[0], c), (good[-1], c)}
    return set()


def _cell(
    ident: str,
    design: str,
    column: Mapping[str, Any],
    cell: Mapping[str, Any],
    result: Mapping[str, Any],
    shown: bool,
) -> Cell:
    outcome = str(cell.get("outcome") or "")
    per_second = cell.get("rate") or 0.0
    # the trace covers only a part of them
    cycles = (cell.get("numbers") or {}).get("cycles") or round(per_second * (result.get("seconds") or 0))
    return Cell(
        id=ident,
        design=design,
        column=str(column["title"]),
        kind=outcome if outcome in OUTCOMES else "other",
        outcome=outcome or "?",
        text=_text(outcome, str(cell.get("text") or "")),
        detail=str(cell.get("detail") or ""),
        mark=_MARK[cell.get("ok")] if column.get("group") == "behaviour" and outcome != "untried" else "",
        facts=_facts(cell),
        sequence=laid_out(cell.get("events") or [], cycles, per_second),
        open=shown,
    )


def _text(outcome: str, text: str) -> str:
    """`text` without the name of the outcome, which is shown above it."""
    return re.sub(rf"^(guest |vm )?{re.escape(outcome)}s?\b[ ,]*", "", text, flags=re.IGNORECASE)


def _facts(cell: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = []
    if cell.get("rate"):
        facts.append(("rate", rate(cell["rate"])))
    if cell.get("si_code") is not None:
        facts.append(("si_code", str(cell["si_code"])))
    if cell.get("address_exact") is not None:
        facts.append(("address", "exact" if cell["address_exact"] else "wrong"))
    for name, value in (cell.get("numbers") or {}).items():
        what, _, unit = name.rpartition("_")
        if unit in _UNITS and isinstance(value, int | float):
            facts.append((what.replace("_", " ") or "took", duration(value * _UNITS[unit])))
        elif value is not None:
            facts.append((name.replace("_", " "), count(value)))
    return facts


def _groups(columns: list[dict[str, Any]]) -> list[tuple[str, list[int]]]:
    """The groups' titles, each with the numbers of its columns."""
    groups: dict[str, list[int]] = {}
    for number, column in enumerate(columns):
        name = str(column.get("group") or "")
        groups.setdefault(_GROUPS.get(name, name), []).append(number)
    return list(groups.items())


def _legend(rows: list[Row]) -> list[tuple[str, str, int]]:
    """Outcome, its meaning, its number of cells; only outcomes in the table."""
    kinds = [cell.kind for row in rows for cell in row.cells if cell]
    return [(kind, words, kinds.count(kind)) for kind, words in OUTCOMES.items() if kind in kinds]


def _verdict(rows: list[Row]) -> str:
    """The result in a sentence."""
    perfect = [row.title for row in rows if row.judged and row.right == row.judged]
    loops = sum(cell.kind == "loop" and cell.mark != "" for row in rows for cell in row.cells if cell)
    parts = [f"{len(rows)} designs, {sum(row.judged for row in rows)} accesses."]
    if loops:
        parts.append(f"{loops} end in a loop." if loops > 1 else "One ends in a loop.")
    if perfect:
        parts.append(f"Every access ends rightly under {' and '.join(perfect)}.")
    elif rows:
        parts.append("No design ends every access rightly.")
    return " ".join(parts)


def _environment(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The environment of the run; other values in the JSON are shown unchanged."""
    shown = [("kernel", f"Linux {result['kernel']}")]
    if result.get("date"):
        shown.append(("date", str(result["date"])))
    if result.get("seconds") is not None:
        shown.append(("loops watched", f"{result['seconds']:g} s each"))
    for name in ("versions", "machine"):
        shown += [(str(key), str(value)) for key, value in (result.get(name) or {}).items()]
    return shown
