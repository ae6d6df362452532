# SPDX-License-Identifier: Apache-2.0
"""Compares all designs on the same accesses.

A cell is a real run: a file on a mount, a host, a new stand-in, one access, and its outcome.  Nothing
here knows the expected behaviour of a design.
"""

from __future__ import annotations

from daxfault.vmm.study.compare.cell import Cell, Column, Outcome
from daxfault.vmm.study.compare.table import COLUMNS, Comparison, Row, run

__all__ = ["COLUMNS", "Cell", "Column", "Comparison", "Outcome", "Row", "run"]
