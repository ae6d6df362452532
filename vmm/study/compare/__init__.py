# SPDX-License-Identifier: Apache-2.0
"""Every design on the same accesses, side by side.

A cell is a real run: a file on a mount of ours, a host, a fresh stand-in, one access, and
what became of it.  Nothing here knows what a design is supposed to do.
"""

from __future__ import annotations

from daxfault.vmm.study.compare.cell import Cell, Column, Outcome
from daxfault.vmm.study.compare.table import COLUMNS, Comparison, Row, run

__all__ = ["COLUMNS", "Cell", "Column", "Comparison", "Outcome", "Row", "run"]
