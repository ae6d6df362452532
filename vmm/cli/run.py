# SPDX-License-Identifier: Apache-2.0
"""`daxfault run -- PROGRAM`: run a program whose mappings are served by the host.

Owns the options and the output.  Must not know how a program is served (daxfault.vmm.programs).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from daxfault.vmm.cli import output

if TYPE_CHECKING:
    import pwd
    from collections.abc import Sequence

    from daxfault.vmm.programs.faults import Rule
    from daxfault.vmm.programs.run import Ended
    from daxfault.vmm.programs.served_mount import Options


def run(
    command: Annotated[
        list[str], typer.Argument(metavar="PROGRAM [ARGUMENT]...", help="What to run.", show_default=False)
    ],
    source: Annotated[
        Path | None,
        typer.Option(
            "--source",
            "-s",
            metavar="DIR",
            help="The directory whose files are served. Default: the current one.",
        ),
    ] = None,
    mount: Annotated[
        Path | None,
        typer.Option(
            "--mount",
            "-m",
            metavar="DIR",
            help="Serve it at this empty directory, or use the mount of `daxfault mount --programs` there. "
            "Default: a temporary directory, in which PROGRAM runs.",
        ),
    ] = None,
    user: Annotated[
        str | None, typer.Option(metavar="NAME", help="Run PROGRAM as this user; only for root.")
    ] = None,
    fault: Annotated[
        list[str] | None,
        typer.Option("--fault", "-f", metavar="RULE", help="Inject a fault: see `daxfault inject --help`."),
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Limit the memory of the page caches: 64M, 2G, or 0 for none; else half of what there is.",
        ),
    ] = None,
    stacks: Annotated[
        bool, typer.Option("--stacks", help="Report the stack of a program that dies of a mapping.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write a report; - is standard output.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not list failed faults.")] = False,
) -> None:
    """Run PROGRAM on a mount of a directory, its mappings served by the fault host.

    Mappings of files on the mount behave as on any file system: an access past the end of a
    truncated file, or to a page that cannot be read, raises SIGBUS, or fails with EFAULT in a system
    call. At the end, standard error lists failed faults, and files whose stores were lost. The exit
    code is PROGRAM's, 128 + N when signal N killed it, 74 instead of 0 when stores are lost, or 3 when
    this machine lacks a requirement.

    For example: `daxfault run -- sqlite3 my.db 'PRAGMA mmap_size=1000000; SELECT count(*) FROM t'`
    """
    from daxfault.vmm.doctor.fuse import check_fuse
    from daxfault.vmm.errors import UsageError
    from daxfault.vmm.programs.served_mount import Options

    check_fuse(allow_other=user is not None)
    limit = _size(cache) if cache is not None else None
    if mount is not None and (served := _served(mount)) is not None:
        if source is not None or fault or cache or stacks or report:
            raise UsageError(
                f"{mount} is served already, only --user applies; `daxfault inject {mount}` injects faults"
            )
        raise typer.Exit(_attached(mount, command, served, _user(user)))
    source = source or Path(".")
    if not source.is_dir():
        raise UsageError(f"{source}: no such directory")
    options = Options(source, mount, _user(user), _rules(fault or []), limit)
    ended = _run(command, options, stacks=stacks)
    if report is not None:
        _write(report, ended)
    if not quiet:
        _show(ended)
    _warn(ended.lost)
    raise typer.Exit(ended.exit_code)


def _served(mount: Path) -> dict[str, str] | None:
    """The environment of programs served by the host of `mount`; None when nothing is mounted there."""
    from daxfault.vmm.errors import UsageError
    from daxfault.vmm.programs import control, environment

    if not mount.is_mount():
        return None
    try:
        control.ask(mount, "status")
    except UsageError as e:
        raise UsageError(f"{mount} is a mount that does not serve programs: {e}") from e
    return environment.of_mount(mount)


def _attached(mount: Path, command: list[str], served: dict[str, str], user: pwd.struct_passwd | None) -> int:
    import trio

    from daxfault.vmm.errors import DaxfaultError, UsageError
    from daxfault.vmm.programs import control
    from daxfault.vmm.programs import run as running
    from daxfault.vmm.programs.files import Unwritten

    socket = served["DAXFAULT_SOCKET"]
    if user is not None and user.pw_uid not in (0, owner := os.stat(socket).st_uid):
        raise UsageError(
            f"--user {user.pw_name}: the host of {mount} serves programs of user {owner} and of root; "
            "start one with `daxfault run --source DIR --user NAME`"
        )
    before = control.ask(mount, "unwritten")
    status = trio.run(running.attached, command, served, user)
    try:
        unwritten = [Unwritten(**one) for one in control.ask(mount, "write_back") if one not in before]
    except DaxfaultError as e:
        _warn([f"{e}; it is unknown whether all stores are written"])
        return running.exit_code(status, lost=True)
    _warn(unwritten)
    return running.exit_code(status, lost=bool(unwritten))


def _warn(lost: Sequence[object]) -> None:
    """Name the files with lost stores."""
    import sys

    for one in lost:
        print(f"daxfault: {one}", file=sys.stderr)


def _user(name: str | None) -> pwd.struct_passwd | None:
    import pwd

    from daxfault.vmm.errors import UsageError

    if name is None:
        return None
    try:
        return pwd.getpwnam(name)
    except KeyError:
        raise UsageError(f"--user {name}: there is no such user") from None


def _rules(texts: list[str]) -> tuple[Rule, ...]:
    from daxfault.vmm.errors import UsageError
    from daxfault.vmm.programs import faults

    try:
        return tuple(faults.parse(text) for text in texts)
    except faults.BadRule as e:
        raise UsageError(f"--fault {e}") from e


def _size(text: str) -> int:
    from daxfault.vmm.errors import UsageError
    from daxfault.vmm.programs import faults

    try:
        return faults.size(text)
    except ValueError:
        raise UsageError(f"--cache {text}: give a size in bytes, with K, M, G or T") from None


def _run(command: list[str], options: Options, *, stacks: bool) -> Ended:
    import functools
    import sys

    import trio

    from daxfault import fsd
    from daxfault.vmm.errors import UsageError
    from daxfault.vmm.programs import run as running

    def lingering() -> None:
        print("daxfault: other programs still map files; waiting for their end", file=sys.stderr)

    go = functools.partial(running.run, command, options, stacks=stacks, lingering=lingering)
    with output.doctor_hint():
        try:
            return trio.run(go)
        except fsd.MountError as e:
            raise UsageError(str(e)) from e


def _show(ended: Ended) -> None:
    from daxfault.vmm.cli import run_report

    output.show(*run_report.tables(ended), error=True)


def _write(path: Path, ended: Ended) -> None:
    from daxfault.vmm.cli import run_report
    from daxfault.vmm.errors import UsageError

    report = run_report.as_json(ended)
    if path == Path("-"):
        output.show_json(report)
        return
    try:
        path.write_text(json.dumps(report, indent=2) + "\n")
    except OSError as e:
        raise UsageError(f"{path}: {e.strerror}") from e
