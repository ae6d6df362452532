#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Time what a program does with mappings, under `daxfault run` and without.

Owns the order of the measurements: every contender runs once a round, so that a noisy
machine is noisy for all of them; medians over the rounds are shown, and ratios of
medians of one run are what may be quoted.

    contender      the file is on
    backing        the backing directory itself
    plain FUSE     `daxfault mount`: the kernel's own mapping of a FUSE file
    run            `daxfault mount --programs`, by way of the preloaded library
    run, traced    the same, by way of ptrace

Run it with the interpreter of the tree: .venv/bin/python scripts/bench/bench_run.py
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from daxfault import native
from daxfault.vmm.cli import output
from daxfault.vmm.programs import control

BASE = "backing"
CONTENDERS = (BASE, "plain FUSE", "run", "run, traced")
PATIENCE = 60.0  # seconds, for a mount to answer or a program to end
ROWS = {
    "start": "start a program",
    "mmap": "mmap()",
    "munmap": "munmap()",
    "sequential": "touch in order",
    "sequential_again": "mapped again",
    "random": "touch at random",
    "store": "store in order",
    "msync": "msync() a page",
    "sigbus": "SIGBUS",
    "efault": "EFAULT",
}


@contextlib.contextmanager
def mounted(source: Path, mountpoint: Path, *options: str) -> Iterator[Path]:
    """`daxfault mount` while the body runs."""
    mountpoint.mkdir()
    daxfault = Path(sys.executable).with_name("daxfault")
    command = [daxfault, "mount", *options, source, mountpoint]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            if not server.stdout.readline():
                raise SystemExit(server.wait(PATIENCE) or 1)
            yield mountpoint
        finally:
            server.terminate()
            server.wait(PATIENCE)


def start_ns(command: list[str], environment: dict[str, str]) -> int:
    """From before the fork to the end of a program that does nothing."""
    begin = time.monotonic_ns()
    subprocess.run([*command, "/bin/true"], env=environment, check=True, timeout=PATIENCE)
    return time.monotonic_ns() - begin


def measured(directory: Path, pages: int, command: list[str], environment: dict[str, str]) -> dict[str, int]:
    """One run of the bench program on a fresh file; ns."""
    file = directory / "file"
    file.write_bytes(os.urandom(pages * native.PAGE_SIZE))
    program = native.program("daxfault-bench-mappings")
    done = subprocess.run(
        [*command, str(program), str(file), str(pages)],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    file.unlink()
    found: dict[str, int] = json.loads(done.stdout)
    return found | {"start": start_ns(command, environment)}


def measure(pages: int, rounds: int, top: Path, tick: Any) -> dict[str, list[dict[str, int]]]:
    """contender -> what each round measured."""
    found: dict[str, list[dict[str, int]]] = {name: [] for name in CONTENDERS}
    source = top / "source"
    source.mkdir()
    with mounted(source, top / "fuse") as fuse, mounted(source, top / "run", "--programs") as run:
        served = os.environ | control.ask(run, "environment")
        traced = {name: value for name, value in served.items() if name != "LD_PRELOAD"}
        ways: dict[str, tuple[Path, list[str], dict[str, str]]] = {
            BASE: (source, [], dict(os.environ)),
            "plain FUSE": (fuse, [], dict(os.environ)),
            "run": (run, [], served),
            "run, traced": (run, [str(native.tracer())], traced),
        }
        for _ in range(rounds):
            for name, (directory, command, environment) in ways.items():
                found[name].append(measured(directory, pages, command, environment))
                tick()
    return found


def table(medians: dict[str, dict[str, float]]) -> Table:
    shown = output.table(
        Column("us", no_wrap=True), *(Column(name, justify="right", no_wrap=True) for name in CONTENDERS)
    )
    for row, title in ROWS.items():
        base = medians[BASE][row]
        cells = [f"{medians[BASE][row] / 1e3:.2f}"]
        for name in CONTENDERS[1:]:
            value = medians[name][row]
            cells.append(f"{value / 1e3:.2f} ({value / base:.1f})")
        shown.add_row(title, *cells)
    return shown


def main(
    pages: Annotated[int, typer.Option(min=512, help="Pages of the file.")] = 4096,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; medians are shown.")] = 5,
    directory: Annotated[
        Path | None, typer.Option(help="Where the backing directory is made: on ext4, for instance.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """What mappings cost a program: under `daxfault run`, on plain FUSE and on the file system below.

    In microseconds; in parentheses how many times what it costs on the backing file system. Touches and
    stores are first ones, each of a page; SIGBUS and EFAULT are of pages that a truncation cut off.
    """
    with (
        tempfile.TemporaryDirectory(prefix="daxfault-", dir=directory) as top,
        output.measuring(rounds * len(CONTENDERS)) as advance,
    ):
        found = measure(pages, rounds, Path(top), advance)
    medians = {
        name: {row: statistics.median(run[row] for run in runs) for row in ROWS}
        for name, runs in found.items()
        if runs
    }
    if as_json:
        output.show_json({"kernel": platform.release(), "pages": pages, "rounds": rounds, "ns": medians})
    else:
        output.show(table(medians))


if __name__ == "__main__":
    typer.run(main)
