# SPDX-License-Identifier: Apache-2.0
"""`daxfault inject MOUNT RULE`: make accesses of running programs fail on purpose.

Owns the options and the table.  Must not know what a rule does (daxfault.vmm.programs.faults).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from daxfault.vmm.cli import output


def inject(
    mount: Annotated[
        Path, typer.Argument(metavar="MOUNT", help="A mount whose host serves programs.", show_default=False)
    ],
    rules: Annotated[
        list[str] | None, typer.Argument(metavar="[RULE]...", help="For instance EIO,file=*.db,offset=4K-8K.")
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Remove all rules first.")] = False,
    remove: Annotated[list[int] | None, typer.Option(metavar="ID", help="Remove this rule first.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="List the rules as JSON.")] = False,
) -> None:
    """Make page accesses of programs that run on MOUNT fail on purpose; without RULE, list the rules.

    A rule is a list of words, separated by commas.

    Effect: the name of an errno (`EIO`, `ENOSPC`, `EACCES`), `delay=SECONDS`, `never` (the page does
    not arrive; the host gives up after 30 s), `truncate=SIZE` (truncates the file at the access).

    Accesses: `file=PATTERN` (the path on the mount, or the name), `offset=START-END` (bytes).

    Condition: `nth=N` (the first N-1 accesses succeed), `count=N` (N accesses fail, later ones
    succeed), `probability=P` and `seed=N`, `stores` (only stores), `when=PATH` (while that file exists).

    A rule takes effect at once: clean pages of the page cache are dropped, and read again. Removing
    a rule restores the pages that it has failed.
    """
    from daxfault.vmm.errors import UsageError
    from daxfault.vmm.programs import control

    if clear:
        control.ask(mount, "remove")
    for id in remove or []:
        if not control.ask(mount, "remove", id=id):
            raise UsageError(f"{mount}: there is no rule {id}; `daxfault inject {mount}` lists them")
    for rule in rules or []:
        control.ask(mount, "inject", rule=rule)
    found = control.ask(mount, "rules")
    if as_json:
        output.show_json(found)
    else:
        _show(found)


def _show(rules: list[dict[str, object]]) -> None:
    from rich.table import Column

    table = output.table(Column("id", justify="right"), "rule", "active")
    for rule in rules:
        table.add_row(str(rule["id"]), str(rule["rule"]), "yes" if rule["on"] else "its file does not exist")
    if rules:
        output.show(table)
    else:
        print("no rules")
