# SPDX-License-Identifier: Apache-2.0
"""`daxfault mount SOURCE MOUNTPOINT`: serve a directory until told to stop.

Owns the options, the status line and the pid file.  Must not know how files are
served (fsd), nor how a process goes into the background (daxfault.vmm.cli.daemon).
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
        bool, typer.Option("--daemon/--foreground", help="Go into the background when the mount answers.")
    ] = False,
    allow_other: Annotated[bool, typer.Option("--allow-other", help="Let other users in.")] = False,
    attr_timeout: Annotated[
        float, typer.Option(min=0.0, metavar="SECONDS", help="How long the kernel may believe attributes.")
    ] = 1.0,
    pid_file: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Written when the mount answers, removed when it ends."),
    ] = None,
    programs: Annotated[
        bool,
        typer.Option(
            "--programs", help="Serve programs too: `daxfault run --mount MOUNTPOINT`, `daxfault inject`."
        ),
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log what is done: on stderr, a daemon to syslog.")
    ] = False,
) -> None:
    """Serve the directory SOURCE at MOUNTPOINT until SIGINT, SIGTERM or an unmount.

    Each of these ends it with 0, and leaves nothing mounted.
    """
    _check_fuse(allow_other)
    # a daemon's directory is /
    source, mountpoint = Path(os.path.abspath(source)), Path(os.path.abspath(mountpoint))
    pid_file = Path(os.path.abspath(pid_file)) if pid_file else None

    def serve(ready: Callable[[], None]) -> None:
        from daxfault.vmm.cli import serve_mount as serving

        serving.run(
            source,
            mountpoint,
            ready,
            allow_other=allow_other,
            attr_timeout=attr_timeout,
            pid_file=pid_file,
            programs=programs,
            verbose=verbose,
            syslog=daemon,
        )

    if daemon:
        from daxfault.vmm.cli.daemon import run_in_background

        run_in_background(serve)
    else:
        serve(lambda: print(f"{source} is served at {mountpoint}; Ctrl-C unmounts it", flush=True))


def _check_fuse(allow_other: bool) -> None:
    """Raise Unsupported when this machine lacks what a mount needs."""
    from daxfault.vmm.doctor import devices, settings
    from daxfault.vmm.errors import Unsupported

    device = devices.fuse()
    if not device.openable:
        advice = device.mend or "the container's owner must permit the device"
        raise Unsupported(f"{device.path}: {device.problem}; {advice}")
    wanted = [settings.fusermount3()]
    if allow_other:
        wanted.append(settings.user_allow_other())
    for setting in wanted:
        if not setting.enough:
            raise Unsupported(f"{setting.name}: {setting.value}, wanted for {setting.use}; {setting.mend}")
