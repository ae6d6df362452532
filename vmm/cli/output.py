# SPDX-License-Identifier: Apache-2.0
"""The output functions of all commands and scripts.

Owns the format of tables, JSON and progress, and the advice to run `daxfault doctor`.  Results go to
standard output, everything else to standard error.  Imports rich and trio only when they are used, so
that `daxfault --help` stays quick.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from rich.console import RenderableType
    from rich.table import Column, Table

T = TypeVar("T")
Progress = Callable[[str], None]


def table(*columns: Column | str, title: str | None = None) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    return Table(
        *columns, title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False
    )


def show(*parts: RenderableType, error: bool = False, at_least: int = 0) -> None:
    """Print `parts` in order, on standard error if `error`.  A file or pipe counts as at least
    `at_least` columns wide."""
    from rich.console import Console

    console = Console(highlight=False, stderr=error)
    if not console.is_terminal:
        console.width = max(console.width, at_least)
    for part in parts:
        console.print(part)


def show_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


@contextlib.contextmanager
def progress(*, lines: bool = False) -> Iterator[Progress]:
    """A function that shows the current step: on a terminal in a line that changes; elsewhere not at all,
    or with `lines` as one line per step."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    if console.is_terminal:
        with console.status("starting") as status:
            yield status.update
    elif lines:
        yield lambda text: print(text, file=sys.stderr, flush=True)
    else:
        yield lambda _: None


@contextlib.contextmanager
def measuring(total: int) -> Iterator[Callable[[], None]]:
    """A progress bar on a terminal; the function advances it by one of `total` steps."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("measuring", total=total)
        yield lambda: bar.advance(task)


@contextlib.contextmanager
def doctor_hint() -> Iterator[None]:
    """Turn errors of this machine into Unsupported, with the advice to run `daxfault doctor`."""
    from daxfault import fsd
    from daxfault.vmm.errors import Unsupported, alone

    try:
        yield
    except Exception as e:
        reason = alone(e)
        if not isinstance(reason, fsd.MountError | PermissionError):
            raise
        why = reason.strerror if isinstance(reason, OSError) else reason
        hint = "Run `daxfault doctor`: it shows what is missing here, and how to fix it."
        raise Unsupported(f"{why}\n{hint}") from e


def run_with_progress(main: Callable[[Progress], Awaitable[T]]) -> T:
    """trio.run(`main`, progress), with doctor_hint()."""
    import trio

    with progress() as shown, doctor_hint():
        return trio.run(main, shown)
