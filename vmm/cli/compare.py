# SPDX-License-Identifier: Apache-2.0
"""`daxfault compare`: every design on the same accesses.

Owns the options.  Must not know how a cell is run (vmm.study.compare), nor how it is shown
(compare_tables).
"""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from daxfault.vmm.cli import output
from daxfault.vmm.names import Defect, DesignName

if TYPE_CHECKING:
    from daxfault.vmm.designs import Design
    from daxfault.vmm.study.compare import Comparison
    from daxfault.vmm.study.compare.kvm.mechanisms import Mechanism

# Repeated here because the modules that define these names are slow to import; a test compares them.


class ColumnName(enum.StrEnum):
    """A column: an access, or a measurement, under every design."""

    USER_READ = "user-read"
    USER_WRITE = "user-write"
    KERNEL_ENTRY = "kernel-entry"
    KERNEL_BARE = "kernel-bare"
    SYSTEM_CALL = "system-call"
    INTERRUPTS_OFF = "interrupts-off"
    ASYNC_OFF = "async-off"
    TWO_TASKS = "two-tasks"
    QUEUE_FULL = "queue-full"
    GROWN = "grown"
    IO_ERROR = "io-error"
    NO_SPACE = "no-space"
    KILLED = "killed"
    SLOW_PAGE = "slow-page"
    WAKE_ALL = "wake-all"
    KERNEL_AFTER_USER = "kernel-after-user"
    USER_MASKED = "user-masked"
    NO_IRQCHIP = "no-irqchip"
    TWO_VCPUS = "two-vcpus"
    LATENCY = "latency"
    CPU = "cpu"
    OTHERS = "others"
    NESTED = "nested"


class GuestName(enum.StrEnum):
    """The guest that makes the accesses."""

    STANDIN = "standin"
    KVM = "kvm"
    BOTH = "both"


class RescueName(enum.StrEnum):
    """The rescue that makes accesses of a KVM guest past the end of the file fail."""

    UNMAP = "unmap"
    FORBID = "forbid"
    SHRINK = "shrink"
    POISON = "poison"


class InjectionName(enum.StrEnum):
    """How an error is reported to a KVM guest."""

    AREA = "area"
    PF = "pf"
    MC = "mc"
    EVENT = "event"


def compare(
    guest: Annotated[
        GuestName,
        typer.Option(help="The stand-in process, a virtual machine on /dev/kvm, or both side by side."),
    ] = GuestName.STANDIN,
    design: Annotated[
        list[DesignName] | None,
        typer.Option(help="Only this design, on KVM what corresponds to it; repeatable. Default: all."),
    ] = None,
    rescue: Annotated[
        list[RescueName] | None,
        typer.Option(help="On KVM, only with this way to end a loop; repeatable. Default: all."),
    ] = None,
    injection: Annotated[
        list[InjectionName] | None,
        typer.Option(help="On KVM, only with this way to report to the guest; repeatable. Default: all."),
    ] = None,
    column: Annotated[
        list[ColumnName] | None, typer.Option(help="Only this column; repeatable. Default: all.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.05, max=60, help="How long to watch each loop.")] = 0.25,
    as_posted: Annotated[
        list[Defect] | None,
        typer.Option(help="Add a row: rfc-v1 with this defect as it was posted; repeatable."),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print one JSON object; pydoc daxfault.vmm.study.compare.table describes it."
        ),
    ] = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print Markdown, as in docs/designs/table.md.")
    ] = False,
    html: Annotated[Path | None, typer.Option(help="Write an HTML page that shows every message.")] = None,
) -> None:
    """Compare the designs that were proposed for failed faults, on the same accesses.

    For each design and access, a file is created on a FUSE mount, a new guest maps it, the file is
    truncated (or its disk fails, or is slow), and the guest touches it. The tables show the observed
    result: SIGBUS, EFAULT, bytes, a guest panic, an endless LOOP with its rate, a stopped VM. A mark
    says whether it is right: ✓ yes, ~ the right error without its address, ✗ no. docs/compare.md
    explains the columns, docs/designs the designs.

    With `--guest kvm` the guest is a virtual machine, and the rows are what a stock kernel allows:
    its own behaviour (`kernel`), each way to end a loop combined with each way to report to the guest
    (`unmap+area` ...), and memory that the engine serves (`engine+event` ...). With `--guest both`
    each design stands beside its counterpart on KVM, and every difference is listed with its reason.

    Examples: `daxfault compare --design mainline --design report`, `daxfault compare
    --column user-read --json`, `daxfault compare --design rfc-v1 --as-posted all`,
    `daxfault compare --guest kvm --rescue unmap`, `daxfault compare --guest both`.

    Exit code 0: nothing hung, and every access under `report` (on KVM: `engine+...`) had the right
    result; 1: otherwise; 3: this machine lacks something (see `daxfault doctor`).
    """
    if as_json and as_markdown:
        raise typer.BadParameter("--json and --markdown are one or the other")
    from daxfault.vmm.designs import DESIGNS
    from daxfault.vmm.errors import UsageError
    from daxfault.vmm.study import compare as comparison
    from daxfault.vmm.study import repro
    from daxfault.vmm.study.repro_kvm import check_machine as check_kvm

    in_model, on_kvm = guest is not GuestName.KVM, guest is not GuestName.STANDIN
    if not on_kvm and (rescue or injection):
        raise UsageError("--rescue and --injection need --guest kvm")
    if not in_model and as_posted:
        raise UsageError("--as-posted needs --guest standin: no stock kernel has RFC v1's code")
    chosen = [name.value for name in design or DesignName]
    designs = [DESIGNS[name] for name in chosen] if in_model else []
    designs += _posted(as_posted or [])
    picks = [name.value for name in rescue or []], [name.value for name in injection or []]
    mechanisms = _on_kvm(chosen, *picks, every=not design and not in_model) if on_kvm else []
    columns = [name.value for name in column or ColumnName]
    _check_columns(columns, guest)
    if html is not None and not html.absolute().parent.is_dir():
        raise UsageError(f"{html}: no such directory")

    async def run(progress: output.Progress) -> Comparison:
        return await comparison.run(
            designs=designs,
            mechanisms=mechanisms,
            columns=[name for name in columns if name != ColumnName.NESTED],
            seconds=seconds,
            in_nested=ColumnName.NESTED in columns and in_model,
            progress=progress,
        )

    with output.doctor_hint():
        if in_model:
            repro.check_machine()
        if on_kvm:
            check_kvm()
    found = output.run_with_progress(run)
    if html is not None:
        _write_page(html, found)
    from daxfault.vmm.cli.compare_tables import markdown, render

    if as_json:
        output.show_json(found.as_json())
    elif as_markdown:
        print(markdown(found))
    else:
        from rich.console import Console

        output.show(*render(found, Console().width))
    raise typer.Exit(0 if found.kept else 1)


def _posted(names: list[Defect]) -> list[Design]:
    """The rows that --as-posted adds."""
    from daxfault.vmm.designs import POSTED, as_posted

    chosen = POSTED if Defect.ALL in names else dict.fromkeys(name.value for name in names)
    return [as_posted([name]) for name in chosen]


def _on_kvm(designs: list[str], rescues: list[str], injections: list[str], *, every: bool) -> list[Mechanism]:
    """The mechanisms with these rescues and injections; without any, those of the designs, or `every` one."""
    from daxfault.vmm.study.compare.kvm.mechanisms import MECHANISMS, of_designs

    if not rescues and not injections:
        return list(MECHANISMS.values()) if every else of_designs(designs)
    return [
        one
        for one in MECHANISMS.values()
        if (not rescues or one.rescue in rescues) and (not injections or one.injection in injections)
    ]


def _check_columns(columns: list[str], guest: GuestName) -> None:
    from daxfault.vmm.errors import UsageError
    from daxfault.vmm.study.compare.table import OF_GUEST

    guests = OF_GUEST if guest is GuestName.BOTH else [guest.value]
    known = {name for of in guests for name in OF_GUEST[of]}
    if GuestName.STANDIN in guests:
        known.add(ColumnName.NESTED)
    if not known.intersection(columns):
        raise UsageError(f"--column {columns[0]} is not a column of --guest {guest.value}")


def _write_page(path: Path, found: Comparison) -> None:
    from daxfault.vmm.errors import UsageError
    from daxfault.vmm.study.page import render as page

    try:
        path.write_text(page(found.as_json()), encoding="utf-8")
    except OSError as e:
        raise UsageError(f"{path}: {e.strerror}") from e
