# SPDX-License-Identifier: Apache-2.0
"""The entry point of the command line: the names of the commands, and their exit codes.

Owns exit codes.  Must not know what a command does, nor import its modules.

    0    success
    1    an expectation failed, or an error occurred while it ran
    2    the request is invalid
    3    the machine lacks a requirement
    130  Ctrl-C
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from daxfault.vmm.cli.compare import compare
from daxfault.vmm.cli.doctor import doctor
from daxfault.vmm.cli.inject import inject
from daxfault.vmm.cli.mount import mount
from daxfault.vmm.cli.repro import repro
from daxfault.vmm.cli.run import run
from daxfault.vmm.cli.trace import trace
from daxfault.vmm.errors import DaxfaultError, alone

INTERRUPTED = 130  # 128 + SIGINT, as a shell has it


class Commands(TyperGroup):
    """Turns the exceptions of a command into a message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (Exception, KeyboardInterrupt, BaseExceptionGroup) as exc:
            reason = alone(exc)
            if isinstance(reason, KeyboardInterrupt):
                raise typer.Exit(INTERRUPTED) from None
            if isinstance(reason, DaxfaultError):
                print(f"daxfault: {reason}", file=sys.stderr)
                raise typer.Exit(reason.exit_code) from None
            raise


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"daxfault {version('daxfault')}")
        raise typer.Exit


app = typer.Typer(
    name="daxfault",
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    # a plain traceback is the most useful one for a bug
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def daxfault(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", help="Print the version and exit.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Page faults on files that fail: every fault ends in the right bytes or the right error."""


app.command()(repro)
app.command()(doctor)
app.command()(trace)
app.command()(mount)
app.command(context_settings={"allow_interspersed_args": False})(run)
app.command()(inject)
app.command()(compare)


def main() -> None:
    """Run the command line; the entry point of `daxfault` and of `python -m daxfault`."""
    try:
        app()
    finally:
        if "DAXFAULT_VERIFY" in os.environ:
            from daxfault import native

            if native.verify_differences():
                sys.exit("daxfault: DAXFAULT_VERIFY: see above")  # 1
