# SPDX-License-Identifier: Apache-2.0
"""The complete comparison: every design in every column, in the model and on KVM.

Owns the order and the form of the result.  Cells run one at a time: two concurrent loops would halve
each other's rate.
"""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Callable, Sequence
from typing import Any

from daxfault.native import kvm
from daxfault.vmm.designs import DESIGNS, Design
from daxfault.vmm.names import DesignName
from daxfault.vmm.study.compare import cost, nested
from daxfault.vmm.study.compare.behaviour import BEHAVIOUR
from daxfault.vmm.study.compare.cell import Cell, Column, Outcome
from daxfault.vmm.study.compare.kvm import cost as kvm_cost
from daxfault.vmm.study.compare.kvm.behaviour import KVM_BEHAVIOUR, run_cell
from daxfault.vmm.study.compare.kvm.differ import Difference, differences
from daxfault.vmm.study.compare.kvm.mechanisms import Mechanism
from daxfault.vmm.study.compare.kvm.trial import KvmTestbed
from daxfault.vmm.study.compare.trial import Testbed, testbed

STANDIN, KVM = "standin", "kvm"

COLUMNS: dict[str, Column] = {
    **{name: column for name, (column, _) in BEHAVIOUR.items()},
    **{name: column for name, (column, _) in KVM_BEHAVIOUR.items()},
    **{column.name: column for column in cost.COSTS},
}
OF_GUEST = {
    STANDIN: [*BEHAVIOUR, *(column.name for column in cost.COSTS)],
    KVM: [*KVM_BEHAVIOUR, *(column.name for column in kvm_cost.COSTS)],
}
PACED = DesignName.REPORT  # the design whose tasks' pace is drawn

Progress = Callable[[str], None]


@dataclasses.dataclass(slots=True)
class Row:
    """The cells of a design, or on KVM of a mechanism, by column.  `models`: the design that the mechanism
    corresponds to, or empty.  `promises`: every access must have its right outcome."""

    name: str
    summary: str
    guest: str = STANDIN
    models: str = ""
    promises: bool = False
    cells: dict[str, Cell] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(slots=True)
class Comparison:
    """The result; --json prints as_json(), --html draws it."""

    kernel: str
    seconds: float
    columns: tuple[Column, ...]
    rows: list[Row] = dataclasses.field(default_factory=list)
    series: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    latency: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    nested: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @property
    def kept(self) -> bool:
        """Whether daxfault keeps its promise: nothing hangs, and every access has its right outcome under
        `report`, and on KVM if the engine serves the memory."""
        behaviour = [column.name for column in self.columns if column.group == "behaviour"]
        return all(
            cell.outcome is not Outcome.HANG
            and (not row.promises or cell.ok is True or cell.outcome is Outcome.UNTRIED)
            for row in self.rows
            for name, cell in row.cells.items()
            if name in behaviour
        )

    @property
    def differences(self) -> list[Difference]:
        """The accesses whose outcome under a mechanism differs from that of its design."""
        rows = {row.name: row for row in self.rows}
        pairs = [(rows[row.models], row) for row in self.rows if row.models in rows]
        return [
            found
            for model, row in pairs
            for found in differences(model.name, model.cells, row.name, row.cells)
        ]

    def as_json(self) -> dict[str, Any]:
        """`version` counts changes of this form.  `ns` are CLOCK_MONOTONIC, rates in cycles per second."""
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
                    "design": row.name,
                    "title": row.name,
                    "summary": row.summary,
                    "guest": row.guest,
                    "models": row.models or None,
                    "cells": {name: cell.as_json() for name, cell in row.cells.items()},
                }
                for row in self.rows
            ],
            "pace": {"series": self.series},
            "nested": self.nested,
            "differences": [dataclasses.asdict(found) for found in self.differences],
            "latency": self.latency,
        }


async def run(
    *,
    designs: Sequence[Design] = tuple(DESIGNS.values()),
    mechanisms: Sequence[Mechanism] = (),
    columns: Sequence[str] = tuple(COLUMNS),
    seconds: float = 0.25,
    in_nested: bool = False,
    progress: Progress = lambda _: None,
) -> Comparison:
    """Compare `designs`, in the model, and `mechanisms`, on KVM, in `columns`, names of COLUMNS; a row has
    cells in the columns of its guest.  A mechanism is next to the design that it corresponds to.
    `seconds`: how long a loop is watched.  `in_nested`: also run every design with nested guests.

    Raises Unsupported, fsd.MountError or OSError, possibly in exception groups of one.
    """
    guests = [guest for guest, rows in ((STANDIN, designs), (KVM, mechanisms)) if rows]
    shown = [name for name in columns if any(name in OF_GUEST[guest] for guest in guests)]
    found = Comparison(platform.release(), seconds, tuple(COLUMNS[name] for name in shown))
    of_model = {design.name: Row(design.name, design.summary) for design in designs}
    on_kvm = {
        mechanism.name: Row(mechanism.name, mechanism.summary, KVM, mechanism.models, mechanism.promises)
        for mechanism in mechanisms
    }
    if DesignName.REPORT in of_model:
        of_model[DesignName.REPORT].promises = True
    found.rows = beside(list(of_model.values()), list(on_kvm.values()))
    async with testbed(seconds) as place:
        for design in designs:
            for name in (name for name in shown if name in BEHAVIOUR):
                column, run_one = BEHAVIOUR[name]
                progress(f"{design.name}: {column.title}")
                of_model[design.name].cells[name] = await run_one(place, design)
        real = KvmTestbed(place, kvm.probe() if mechanisms else None)
        for mechanism in mechanisms:
            for name in (name for name in shown if name in KVM_BEHAVIOUR):
                progress(f"{mechanism.name}, on KVM: {COLUMNS[name].title}")
                on_kvm[mechanism.name].cells[name] = await run_cell(real, mechanism, name)
        for design in designs:
            await _costs(place, design, of_model[design.name], shown, found, progress)
        for mechanism in mechanisms:
            await _costs_on_kvm(real, mechanism, on_kvm[mechanism.name], shown, found, progress)
    if in_nested:
        # it makes its own mount, and a process has one at a time
        asked = {design.name for design in designs}
        found.nested = [result for result in await nested.run(progress) if result["design"] in asked]
    return found


def beside(of_model: list[Row], on_kvm: list[Row]) -> list[Row]:
    """Each row of KVM after the design that it corresponds to; the others last."""
    found = []
    for row in of_model:
        found += [row, *(real for real in on_kvm if real.models == row.name)]
    return [*found, *(row for row in on_kvm if row not in found)]


async def _costs(
    place: Testbed, design: Design, row: Row, columns: Sequence[str], found: Comparison, progress: Progress
) -> None:
    """Run last, because these measure time."""
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


async def _costs_on_kvm(
    place: KvmTestbed,
    mechanism: Mechanism,
    row: Row,
    columns: Sequence[str],
    found: Comparison,
    progress: Progress,
) -> None:
    asked = [column for column in kvm_cost.COSTS if column.name in columns]
    if not asked:
        return
    progress(f"{mechanism.name}, on KVM: {cost.LATENCY.title}")
    cells, samples = await kvm_cost.latency_and_cpu(place, mechanism)
    for column in asked:
        row.cells[column.name] = cells[column.name]
    if samples and cost.LATENCY in asked:
        numbers = cells[cost.LATENCY.name].numbers
        found.latency.append({"design": mechanism.name, **numbers, "samples": samples})
