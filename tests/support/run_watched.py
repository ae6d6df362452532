# SPDX-License-Identifier: Apache-2.0
"""C programs of tests/programs under `daxfault run`, watched: when one stands still, the test fails
with what everybody waits for.

Owns building them, and their end.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkout import PROGRAMS
from command_line import assert_nothing_left, environment
from patience import PATIENCE
from run_host import Place

from daxfault.vmm.errors import DaxfaultError

SEED = int(os.environ.get("DAXFAULT_STRESS_SEED", "1"))
SECONDS = float(os.environ.get("DAXFAULT_STRESS_SECONDS", "0"))


def built(directory: Path, name: str) -> Path:
    """Compile tests/programs/NAME.c, and NAME_*.c, with the build's own strictness."""
    sources, program = [PROGRAMS / f"{name}.c", *PROGRAMS.glob(f"{name}_*.c")], directory / name
    if not sources[0].exists():
        pytest.skip("the C sources are not beside the tests")
    flags = ["-std=gnu11", "-D_GNU_SOURCE", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-sign-compare"]
    subprocess.run(["cc", *flags, *sources, "-o", program, "-lpthread"], check=True)
    return program


def watched(place: Place, *program: str | Path, options: tuple[str, ...] = (), seconds: float) -> str:
    """Run a program in the mount to its end, which must be with status 0; -> what it has printed.

    It may take `seconds`; when it takes longer, or says "stuck:", it has hung.
    """
    out = place.top.parent / "out"
    with out.open("w+") as output:
        process = subprocess.Popen(
            place.command(["env", "-C", place.mount, *program], "--quiet", *options),
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd="/",
            env=environment(place.top),
            start_new_session=True,
        )
        try:
            until = time.monotonic() + seconds
            while process.poll() is None:
                if time.monotonic() > until or "stuck:" in out.read_text():
                    raise AssertionError(f"it hangs\n{out.read_text()}{_evidence(place, process.pid)}")
                time.sleep(0.05)
        finally:
            for pid in _session(process.pid):
                os.kill(pid, signal.SIGKILL)
            process.wait(PATIENCE)
            if place.is_mounted():
                subprocess.run(["umount", "-l", place.mount], check=False)
    said = out.read_text()
    assert process.returncode == 0, said
    assert_nothing_left(place.top)
    print(said)
    return said


def _session(leader: int) -> Iterator[int]:
    """All processes of a session."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            yield int(path.parent.name)


def _evidence(place: Place, leader: int) -> str:
    """Where each thread of the session is, and what the host says of itself."""
    found = []
    for pid in _session(leader):
        for task in Path(f"/proc/{pid}/task").glob("*"):
            try:
                name = (task / "comm").read_text().strip()
                where = (task / "stack").read_text() if os.geteuid() == 0 else ""
                call = (task / "syscall").read_text()
            except OSError:
                continue
            found.append(f"{pid}/{task.name} {name}: {call}{where}")
    return "\n".join([*found, _state(place)])


def _state(place: Place) -> str:
    # in a process of its own: whoever asks a mount that hangs, hangs
    ask = "import sys; from daxfault.vmm.programs import control; print(control.ask(sys.argv[1], 'status'))"
    try:
        done = subprocess.run(
            [sys.executable, "-c", ask, place.mount], capture_output=True, text=True, check=False, timeout=10
        )
    except (subprocess.TimeoutExpired, DaxfaultError) as e:
        return f"the host does not answer: {e}"
    return done.stdout + done.stderr
