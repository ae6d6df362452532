# SPDX-License-Identifier: Apache-2.0
"""`daxfault mount SOURCE MOUNTPOINT`: serve a directory until a signal or an unmount.

Owns the options and the status line.  Must not know how files are served (fsd, serve_mount), nor
how a process goes into the background (daemon).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer


def mount(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="The directory to serve.", show_default=False)
    ],
    mountpoint: Annotated[
        Path, typer.Argument(metavar="MOUNTPOINT", help="An empty directory.", show_default=False)
    ],
    daemon: Annotated[
        bool, typer.Option("--daemon/--foreground", help="Run in the background once the mount answers.")
    ] = False,
    allow_other: Annotated[bool, typer.Option("--allow-other", help="Allow access to other users.")] = False,
    attr_timeout: Annotated[
        float, typer.Option(min=0.0, metavar="SECONDS", help="How long the kernel may cache attributes.")
    ] = 1.0,
    pid_file: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Written when the mount answers, removed when it ends."),
    ] = None,
    programs: Annotated[
        bool,
        typer.Option(
            "--programs",
            help="Also serve the mappings of programs: see `daxfault run --mount` and `daxfault inject`.",
        ),
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log operations: to stderr, a daemon to syslog.")
    ] = False,
) -> None:
    """Serve the directory SOURCE at MOUNTPOINT until SIGINT, SIGTERM or an unmount.

    Exit code 0, and nothing stays mounted.
    """
    from daxfault.vmm.doctor.fuse import check_fuse

    check_fuse(allow_other=allow_other)
    # a daemon's directory is /
    source, mountpoint = Path(os.path.abspath(source)), Path(os.path.abspath(mountpoint))
    pid_file = Path(os.path.abspath(pid_file)) if pid_file else None

    def serve(ready: Callable[[], None]) -> None:
        from daxfault.vmm.cli import serve_mount
        from daxfault.vmm.programs.served_mount import Options

        options = Options(
            source, mountpoint, allow_other=allow_other, attr_timeout=attr_timeout, daemon=daemon
        )
        serve_mount.log_to_stderr(verbose=verbose, syslog=daemon)
        serve_mount.run(options, ready, pid_file=pid_file, programs=programs)

    if daemon:
        from daxfault.vmm.cli.daemon import run_in_background

        run_in_background(serve)
    else:
        serve(lambda: print(f"{source} is served at {mountpoint}; Ctrl-C unmounts it", flush=True))
