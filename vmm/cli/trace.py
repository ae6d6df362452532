# SPDX-License-Identifier: Apache-2.0
"""`daxfault trace`: records a run for ui.perfetto.dev or chrome://tracing.

Owns the options and the file.  Must not know how a run is recorded (daxfault.vmm.study.trace), nor the
format (daxfault.vmm.study.timeline).
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daxfault.vmm.names import DesignName

if TYPE_CHECKING:
    from daxfault.vmm.study.timeline import Recording


def trace(
    design: Annotated[DesignName, typer.Option(help="How to answer failed faults.")] = DesignName.REPORT,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where to write it; - is standard output.")
    ] = Path("daxfault-trace.json"),
) -> None:
    """Record a run: guest tasks, vCPUs, the host's engine and its file server on one time line.

    Two vCPUs read present pages, slow pages, pages that a truncation cut off, and the same pages
    after the file has grown again. Open the result in ui.perfetto.dev or chrome://tracing;
    docs/trace.md explains the tracks.
    """
    from daxfault.vmm.errors import UsageError
    from daxfault.vmm.study import timeline

    if output != Path("-") and not output.absolute().parent.is_dir():
        raise UsageError(f"{output}: {output.absolute().parent} is not a directory; name a file in one")
    recording = _recorded(design.value)
    made = timeline.chrome(recording)
    if output == Path("-"):
        print(json.dumps(made))
        return
    _write(output, made)
    tracks = sum(event["name"] == "thread_name" for event in made["traceEvents"])
    print(f"{output}: {len(made['traceEvents'])} events on {tracks} tracks, design {design.value}")
    print("Open it in https://ui.perfetto.dev (it stays in your browser) or chrome://tracing.")


def _recorded(name: str) -> Recording:
    from daxfault.vmm.cli.output import run_with_progress
    from daxfault.vmm.designs import DESIGNS
    from daxfault.vmm.study import trace as recorder

    return run_with_progress(lambda progress: recorder.record(DESIGNS[name], progress=progress))


def _write(output: Path, made: dict[str, Any]) -> None:
    """Write atomically: an old file stays until the new one is complete."""
    from daxfault.vmm.errors import UsageError

    try:
        parent = output.absolute().parent
        with tempfile.NamedTemporaryFile("w", dir=parent, prefix=".trace-", delete=False) as file:
            try:
                json.dump(made, file)
                os.chmod(file.fileno(), 0o644)
                os.replace(file.name, output)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as e:
        raise UsageError(f"{output}: {e.strerror}") from e
