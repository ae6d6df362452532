# SPDX-License-Identifier: Apache-2.0
"""The whole comparison: every design, every column, one after the other.

Owns the order and the shape of the result.  Cells are run one at a time: two loops side by
side would halve each other's rate.
"""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Callable, Sequence
from typing import Any

from vmm.compare import cost, nested
from vmm.compare.behaviour import BEHAVIOUR
from vmm.compare.cell import Cell, Column, Outcome
from vmm.compare.trial import Ground, ground
from vmm.designs import DESIGNS, Design

COLUMNS: dict[str, Column] = {
    **{name: column for name, (column, _) in BEHAVIOUR.items()},
    **{column.name: column for column in cost.COSTS},
}
PACED = "report"  # the design whose tasks' pace is drawn

Progress = Callable[[str], None]


@dataclasses.dataclass(slots=True)
class Row:
    """One design's cells, by column."""

    design: Design
    cells: dict[str, Cell] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(slots=True)
class Comparison:
    """What was found; as_json() is what --json prints and --html draws."""

    kernel: str
    seconds: float
    columns: tuple[Column, ...]
    rows: list[Row] = dataclasses.field(default_factory=list)
    series: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    latency: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    nested: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @property
    def kept(self) -> bool:
        """Our promise: nothing hangs, and under `report` every access has its right end."""
        behaviour = [column.name for column in self.columns if column.group == "behaviour"]
        return all(
            cell.outcome is not Outcome.HANG and (row.design.name != "report" or cell.ok is True)
            for row in self.rows
            for name, cell in row.cells.items()
            if name in behaviour
        )

    def as_json(self) -> dict[str, Any]:
        """`version` counts changes of this shape.  `ns` are CLOCK_MONOTONIC, rates cycles a second."""
        return {
            "version": 1,
            "kernel": self.kernel,
            "seconds": self.seconds,
            "kept": self.kept,
            "columns": [
                {
                    "name": column.name,
                    "title": column.title,
                    "group": column.group,
                    "right": column.right and column.right.value,
                    "meaning": column.meaning,
                }
                for column in self.columns
            ],
            "rows": [
                {
                    "design": row.design.name,
                    "title": row.design.name,
                    "summary": row.design.summary,
                    "cells": {name: cell.as_json() for name, cell in row.cells.items()},
                }
                for row in self.rows
            ],
            "pace": {"series": self.series},
            "nested": self.nested,
            "latency": self.latency,
        }


async def run(
    *,
    designs: Sequence[Design] = tuple(DESIGNS.values()),
    columns: Sequence[str] = tuple(COLUMNS),
    seconds: float = 0.25,
    in_nested: bool = False,
    progress: Progress = lambda _: None,
) -> Comparison:
    """Compare `designs` in `columns` (names, of COLUMNS).  `seconds`: how long a loop is watched.
    `in_nested`: ask every design about a guest in a guest, too.

    Raises Unsupported, fsd.MountError, or OSError when the machine will not; perhaps in exception
    groups, each with nothing beside it.
    """
    found = Comparison(platform.release(), seconds, tuple(COLUMNS[name] for name in columns))
    async with ground(seconds) as place:
        for design in designs:
            row = Row(design)
            found.rows.append(row)
            for name in columns:
                if name in BEHAVIOUR:
                    column, run_cell = BEHAVIOUR[name]
                    progress(f"{design.name}: {column.title}")
                    row.cells[name] = await run_cell(place, design)
        for row in found.rows:
            await _costs(place, row, columns, found, progress)
    if in_nested:
        # it mounts, and there is one mount at a time
        asked = {design.name for design in designs}
        found.nested = [result for result in await nested.run(progress) if result["design"] in asked]
    return found


async def _costs(
    place: Ground, row: Row, columns: Sequence[str], found: Comparison, progress: Progress
) -> None:
    """Last, for these measure time."""
    design = row.design
    if cost.LATENCY.name in columns or cost.CPU.name in columns:
        progress(f"{design.name}: {cost.LATENCY.title}")
        delivered, burnt, samples = await cost.latency_and_cpu(place, design)
        for column, cell in ((cost.LATENCY, delivered), (cost.CPU, burnt)):
            if column.name in columns:
                row.cells[column.name] = cell
        if samples:
            numbers = delivered.numbers
            found.latency.append({"design": design.name, **numbers, "samples": samples})
    if cost.OTHERS.name in columns:
        progress(f"{design.name}: {cost.OTHERS.title}")
        row.cells[cost.OTHERS.name] = await cost.others(place, design)
        if design.name == PACED:
            for async_pf in (True, False):
                progress(
                    f"{design.name}: pace beside a slow source, async faults {'on' if async_pf else 'off'}"
                )
                found.series.append(await cost.pace(place, design, async_pf))
