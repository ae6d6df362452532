# SPDX-License-Identifier: Apache-2.0
"""A host that is out of descriptors: what needs one more is refused, alone, and all else goes on."""

import contextlib
import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import messages
import pytest
from command_line import environment
from messages import GONE
from needs import require
from patience import PATIENCE
from raw_guest import uffd
from raw_program import RawProgram
from run_host import Place, RunningHost, require_programs

PROGRAM = Path(__file__).resolve().parents[2] / "programs" / "descriptors.py"


def limited(place: Place, limit: int, *program: str | Path, soft_only: bool = False) -> str:
    """Run a program with a host that may have `limit` descriptors; -> its standard output."""
    command = ["prlimit", f"--nofile={limit}:{'' if soft_only else limit}", *place.command(program)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
        cwd="/",
        env=environment(place.top),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.fixture
def place(tmp_path: Path) -> Place:
    require_programs()
    require(os.path.exists("/usr/bin/prlimit"), "prlimit(1)")
    return Place(tmp_path)


@pytest.mark.parametrize("limit", [72, 100, 131, 199, 256, 299])
@pytest.mark.parametrize("fork", [0, 1])
def test_more_files_than_descriptors_refuses_mappings_and_nothing_else(
    place: Place, limit: int, fork: int
) -> None:
    out = limited(place, limit, "env", "-C", place.mount, sys.executable, PROGRAM, "200", str(fork))
    assert out == "True ['EMFILE'] 0 True\n"


def test_a_mapped_file_costs_the_host_two_descriptors(run_host: RunningHost) -> None:
    script = """if True:
        import mmap, os, sys
        maps = []
        for i in range(int(sys.argv[1])):
            fd = os.open(f"two{i}", os.O_RDWR | os.O_CREAT)
            os.ftruncate(fd, 4096)
            maps.append(mmap.mmap(fd, 4096))
            os.close(fd)
        print(len(os.listdir(f"/proc/{sys.argv[2]}/fd")))
        """
    one, many = (int(run_host.python(script, n, str(run_host.process.pid))) for n in ("1", "51"))
    assert many - one <= 100


def test_soft_limit_is_raised_for_the_host_and_restored_for_the_program(place: Place) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    require(hard >= 1000, "a hard RLIMIT_NOFILE of 1000")
    script = """if True:
        import mmap, os, resource
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        maps = []
        for i in range(150):  # 300 descriptors of the host
            fd = os.open(f"s{i}", os.O_RDWR | os.O_CREAT)
            os.ftruncate(fd, 4096)
            maps.append(mmap.mmap(fd, 4096))
            os.close(fd)
        print(soft, hard, sum(m[0] for m in maps))
        """
    program = ["env", "-C", place.mount, sys.executable, "-c", script]
    assert limited(place, 200, *program, soft_only=True) == f"200 {hard} 0\n"


@pytest.mark.parametrize("served", [False, True])
def test_process_with_too_many_connections_is_refused_and_others_are_served(
    tmp_path: Path, served: bool
) -> None:
    with RunningHost(tmp_path) as host, contextlib.ExitStack() as held:
        resource.prlimit(host.process.pid, resource.RLIMIT_NOFILE, (300, 300))
        (host.source / "a").write_bytes(b"A" * 4096)
        errors = []
        for _ in range(100):
            program = RawProgram(host.programs_environment["DAXFAULT_SOCKET"])
            held.callback(program.close)
            errors.append(program.ask(messages.attach()))
            if served and not errors[-1]:
                fd = uffd(None)
                errors[-1] = program.ask(messages.serve(), fd)
                os.close(fd)
        assert errors[0] == 0
        assert errno.EMFILE in errors
        assert set(errors) <= {0, errno.EMFILE, GONE}
        script = "import mmap, os; print(mmap.mmap(os.open('a', os.O_RDWR), 4096)[0])"
        assert [host.python(script) for _ in range(3)] == ["65\n"] * 3
