#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Run file system suites on a mount of ours, on libfuse's passthrough_hp, and on what both serve.

Owns the order, the comparison and the table.  Must not know how a suite is run (fs_programs.py) or a
place is made (fs_places.py).

    scripts/suites/fs_suites                          everything, an hour or so
    scripts/suites/fs_suites --quick                  some of each, a few minutes
    scripts/suites/fs_suites --suite fsx --suite fio --on daxfault --on backing

--json prints {"schema": 1, "suites": {suite: {place: {"passed", "failed", "skipped", "seconds", "missing"}}},
"failures": [{"suite", "case", "judged", "reason", "places": {place: why or null}}]}, of every case that
failed somewhere; "judged" is "worse" where ours failed and the other passed, else "lacking", "same" or
"better".
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from fs_case import FAILED, PASSED, SKIPPED, Results
from fs_places import BACKING, EXAMPLE, NAMES, OURS, place
from fs_programs import SUITES
from rich.table import Column, Table

from daxfault.vmm.cli import output
from daxfault.vmm.errors import Unsupported

sys.path.append(str(Path(__file__).parents[2] / "tests" / "support"))
from posix_cases import LACKING

# suite, case -> why ours may fail where another does not
EXPECTED = {("posix", case): reason for case, reason in LACKING.items()}


@dataclasses.dataclass(slots=True)
class Ran:
    """One suite in one place; `missing` says what it would have needed."""

    results: Results = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    missing: str | None = None

    def count(self, outcome: str) -> int:
        return sum(result.outcome == outcome for result in self.results.values())


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """A case that failed somewhere."""

    suite: str
    case: str
    judged: str
    reason: str | None
    places: dict[str, str | None]


All = dict[str, dict[str, Ran]]  # by suite and place


def run_all(suites: list[str], places: list[str], quick: bool, base: Path, progress: output.Progress) -> All:
    found: All = {suite: {} for suite in suites}
    for name in places:
        try:
            with place(name, base, progress) as where:
                for suite in suites:
                    ran = found[suite][name] = Ran()
                    at = where.path / suite
                    at.mkdir()
                    began = time.monotonic()
                    try:
                        ran.results = SUITES[suite](where, at, quick, progress)
                    except Unsupported as e:
                        ran.missing = str(e)
                    ran.seconds = round(time.monotonic() - began, 1)
        except Unsupported as e:
            for suite in suites:
                found[suite].setdefault(name, Ran(missing=str(e)))
    return found


def judge(found: All, places: list[str]) -> list[Failure]:
    """Every case that failed somewhere, worst first.  Ours is held against passthrough_hp, or against the
    backing file system where that was not run."""
    other = EXAMPLE if EXAMPLE in places else BACKING
    failures = []
    for suite, by_place in found.items():
        results = {name: by_place[name].results for name in places if name in by_place}
        for case in dict.fromkeys(case for cases in results.values() for case in cases):
            outcomes = {name: cases[case].outcome for name, cases in results.items() if case in cases}
            if FAILED not in outcomes.values():
                continue
            why = {name: results[name][case].why if outcomes[name] == FAILED else None for name in outcomes}
            reason = EXPECTED.get((suite, case))
            if outcomes.get(OURS) != FAILED:
                judged = "better"
            elif outcomes.get(other) == FAILED:
                judged = "same"
            else:
                judged = "lacking" if reason else "worse"
            failures.append(Failure(suite, case, judged, reason, why))
    order = ("worse", "lacking", "same", "better")
    return sorted(failures, key=lambda failure: order.index(failure.judged))


def table(found: All, places: list[str]) -> Table:
    rows = output.table(
        Column("passed / failed / skipped", no_wrap=True),
        *(Column(name, justify="right", no_wrap=True) for name in places),
    )
    for suite, by_place in found.items():
        cells = []
        for name in places:
            ran = by_place[name]
            failed = ran.count(FAILED)
            counts = f"{ran.count(PASSED):,} / {failed} / {ran.count(SKIPPED)}"
            coloured = f"[red]{counts}[/]" if failed and name == OURS else counts
            cells.append("missing" if ran.missing else f"{coloured} {ran.seconds:4.0f} s")
        rows.add_row(suite, *cells)
    return rows


def show(found: All, places: list[str], failures: list[Failure]) -> None:
    output.show(table(found, places), at_least=100)
    for missing in dict.fromkeys(ran.missing for by in found.values() for ran in by.values() if ran.missing):
        print(f"missing: {missing}")
    for failure in failures:
        if failure.judged == "better":
            continue
        where = ", ".join(name for name, why in failure.places.items() if why is not None)
        why = failure.reason or failure.places[OURS]
        print(f"{failure.judged}: {failure.suite}: {failure.case}: fails on {where}: {why}")
    better = sum(failure.judged == "better" for failure in failures)
    if better:
        print(f"{better} cases fail elsewhere and pass on {OURS}; --json names them")


def main(
    suite: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(SUITES)}. Default: all.")] = None,
    on: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(NAMES)}. Default: all.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Some of each.")] = False,
    backing: Annotated[
        Path | None, typer.Option(help="Where the directories to be served are made. Default: $TMPDIR.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Run file system suites on a mount of ours, on libfuse's passthrough_hp, and on what both serve.

    Ends with 0 when ours failed nowhere that passthrough_hp passed, 1 when it did, 2 for bad arguments,
    3 when nothing could be run here.
    """
    suites, places = suite or list(SUITES), on or list(NAMES)
    for name, known in [*((name, SUITES) for name in suites), *((name, NAMES) for name in places)]:
        if name not in known:
            print(f"fs_suites: {name}: not one of {', '.join(known)}", file=sys.stderr)
            raise typer.Exit(2)
    if os.geteuid() != 0:
        print("fs_suites: cases are those of several users, which takes root", file=sys.stderr)
        raise typer.Exit(3)
    os.umask(0o022)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unmounting on the way
    with tempfile.TemporaryDirectory(prefix="daxfault-", dir=backing, ignore_cleanup_errors=True) as folder:
        base = Path(folder)
        base.chmod(0o755)  # some cases are other users'
        with output.progress(lines=True) as progress:
            found = run_all(suites, places, quick, base, progress)
    failures = judge(found, places)
    if as_json:
        counted = {
            name: {
                where: {outcome: ran.count(outcome) for outcome in (PASSED, FAILED, SKIPPED)}
                | {"seconds": ran.seconds, "missing": ran.missing}
                for where, ran in by_place.items()
            }
            for name, by_place in found.items()
        }
        listed = [dataclasses.asdict(failure) for failure in failures]
        output.show_json({"schema": 1, "suites": counted, "failures": listed})
    else:
        show(found, places, failures)
    if not any(ran.results for by_place in found.values() for ran in by_place.values()):
        raise typer.Exit(3)
    raise typer.Exit(1 if any(failure.judged == "worse" for failure in failures) else 0)


if __name__ == "__main__":
    typer.run(main)
