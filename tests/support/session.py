# SPDX-License-Identifier: Apache-2.0
"""The surroundings of a test run: how it is started makes no difference, and it leaves nothing.

Owns the signals that the tests' children inherit, the directory of their temporary files, and the
search for what is left in the end.  Each worker of pytest-xdist has its own.
"""

import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Set
from pathlib import Path

MARK = "DAXFAULT_TEST_SESSION"  # in the environment of every process that a test starts
SHORT = 32  # bytes: what is below it must fit into the address of a socket (unix(7): 108)
SECONDS = 5.0  # for what has been ended and is still ending


def reset_signals() -> None:
    """Children begin with the default actions, though nohup(1) or a shell's `&` ignores some.

    A signal that was ignored still does not end this process, but for SIGINT.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:  # Python ignores these
        if signal.getsignal(number) is signal.SIG_IGN:
            # execve(2) resets what has a handler, and keeps what is ignored
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else lambda *_: None)


def make_temporary_directory() -> Path:
    """Make a directory with a short path and have this process and its children use it as TMPDIR."""
    top = tempfile.gettempdir()
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker:
        made = Path(top, worker)
        made.mkdir()
    else:
        if len(top) > SHORT:
            top = next(place for place in ("/tmp", "/var/tmp", "/dev/shm") if os.access(place, os.W_OK))
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", top)  # tmp_path stays where pytest keeps it
        made = Path(tempfile.mkdtemp(prefix="df-", dir=top))
    made.chmod(0o1777)  # as /tmp: some tests are other users
    os.environ["TMPDIR"] = os.environ[MARK] = os.fspath(made)
    tempfile.tempdir = None
    return made


def remove_temporary_directory(made: Path) -> None:
    shutil.rmtree(made, ignore_errors=True)


def found(made: Path, tests: Path) -> set[str]:
    """Processes, mounts and temporary files of the tests; `tests` is where their tmp_path are."""
    return {*_processes(), *_mounts(made, tests), *map(os.fspath, made.iterdir())}


def left_behind(made: Path, tests: Path, before: Set[str] = frozenset()) -> list[str]:
    """What is found beyond `before`, and goes on to be there."""
    until = time.monotonic() + SECONDS
    while left := found(made, tests) - before:
        if time.monotonic() > until:
            return sorted(left)
        time.sleep(0.02)
    return []


def _processes() -> Iterator[str]:
    """Children of this process, and what they have started."""
    mark = f"{MARK}={os.environ[MARK]}".encode()
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() or mark in (path / "environ").read_bytes().split(b"\0"):
                command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                yield f"process {path.name}: {command or (path / 'comm').read_text().strip()}"


def _mounts(*places: Path) -> list[str]:
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [f"mount {point}" for point in points if any(Path(point).is_relative_to(p) for p in places)]
