# SPDX-License-Identifier: Apache-2.0
"""Temporary directories, one of which becomes a mount of this process; removed however it ends.

Owns both directories, and a child process that cleans up after a SIGKILL: it unmounts at the end of its
standard input.  Must not mount.

A process that holds a descriptor of its own mount cannot exit: the kernel closes the descriptor
(FUSE_FLUSH) and waits for a server that no longer runs.  So no code may hold one for longer than a
call, except O_PATH.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from daxfault.vmm.errors import Unsupported

# -f: aborts the unanswered requests of the dead server, and wakes their tasks
_GUARD = """
read -r word && [ "$word" = done ] && exit
umount -f -l "$1/mount" || fusermount3 -u -z "$1/mount"
rm -rf --one-file-system "$1"
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Scratch:
    """Two empty directories."""

    backing: Path
    mount: Path


@contextlib.contextmanager
def scratch() -> Iterator[Scratch]:
    """Raises Unsupported when temporary directories cannot be made."""
    try:
        directory = tempfile.TemporaryDirectory(prefix="daxfault-")
    except OSError as e:
        raise Unsupported(f"temporary directories cannot be made: {e.strerror}") from e
    with contextlib.ExitStack() as stack:
        top = stack.enter_context(directory)
        backing, mount = Path(top, "backing"), Path(top, "mount")
        for one in (backing, mount):
            os.mkdir(one)
        with _guarded(top):
            yield Scratch(backing, mount)
            stack.close()


@contextlib.contextmanager
def _guarded(top: str) -> Iterator[None]:
    guard = subprocess.Popen(
        ["sh", "-c", _GUARD, "sh", top],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,  # Ctrl-C is handled by this process
    )
    try:
        yield
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            guard.communicate(b"done\n", timeout=5)
