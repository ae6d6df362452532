# SPDX-License-Identifier: Apache-2.0
"""The failed faults of a run, as tables and as JSON.

Owns both formats.  Must not print.
"""

from __future__ import annotations

import errno
import os
import signal
from typing import Any

from rich.console import RenderableType
from rich.table import Column, Table
from rich.text import Text

from daxfault.vmm.cli import output
from daxfault.vmm.programs.run import Ended

SHOWN = 20  # rows of a table


def ending(status: int) -> str:
    """How the program ended; `status` is that of Popen.returncode."""
    if status >= 0:
        return f"exit code {status}"
    return f"died of {signal.Signals(-status).name}"


def as_json(ended: Ended) -> dict[str, Any]:
    """Stable keys.  `failed` are the newest failed faults of `failed_total` (abi.md, records), `deaths`
    the newest of `deaths_total` programs that died of a mapping, `lost` the files with lost stores."""
    return {
        "version": 1,
        "exit_code": ended.exit_code,
        "ended": ending(ended.status),
        "programs": ended.served,
        "faults": ended.counters.faults,
        "filled": ended.counters.filled,
        "failed_total": ended.failed,
        "failed": [record.as_json() for record in ended.records],
        "deaths_total": ended.died,
        "deaths": [death.as_json() for death in ended.deaths],
        "lost": [one.as_json() for one in ended.lost],
    }


def tables(ended: Ended) -> list[RenderableType]:
    """The faults that failed and the programs that died of one; empty when there are none."""
    parts: list[RenderableType] = []
    if ended.records:
        parts.append(_failures(ended))
    if ended.deaths:
        parts.append(_deaths(ended))
    if parts:
        parts.append(Text(f"the program: {ending(ended.status)}"))
    return parts


def _failures(ended: Ended) -> Table:
    table = output.table(
        "file",
        Column("offset", justify="right"),
        "address",
        Column("pid/tid", justify="right"),
        "access",
        "error",
        "delivered by",
        title="faults that failed",
    )
    for record in ended.records[-SHOWN:]:
        f = record.failure
        error = errno.errorcode.get(f.error, str(f.error))
        table.add_row(
            os.path.basename(record.name),
            str(f.offset),
            hex(f.address),
            f"{record.pid or '?'}/{f.tid}",
            "store" if f.write else "load",
            f"{error}, {f.reason.name.lower()}",
            "-" if record.delivery is None else record.delivery.name.lower(),
        )
    if ended.failed > SHOWN:
        table.caption = f"the newest {SHOWN} of {ended.failed}"
    return table


def _deaths(ended: Ended) -> Table:
    columns = ("pid/tid", "file", "offset", "address", "si_code")
    table = output.table(*columns, title="programs that died of a mapping")
    for death in ended.deaths[-SHOWN:]:
        table.add_row(
            f"{death.pid}/{death.tid}",
            os.path.basename(death.file) if death.file else "-",
            "-" if death.offset is None else str(death.offset),
            hex(death.address),
            str(death.code),
        )
        for frame in death.stack:
            table.add_row("", "", "", frame, "")
    if ended.died > SHOWN:
        table.caption = f"the newest {SHOWN} of {ended.died}"
    return table
