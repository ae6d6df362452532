# SPDX-License-Identifier: Apache-2.0
"""Stores that cannot be written back: every call that can say so does, the run's exit code and report too.

The host may write no file past LIMIT, its RLIMIT_FSIZE: a stand-in for a disk that fails late.
"""

import contextlib
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import environment
from mapscript import Mapper, compiled
from patience import PATIENCE, looks
from run_host import Place, RunningHost

from daxfault.vmm.programs import environment as program_environment
from daxfault.vmm.programs.run import LOST

PAGES = 8
LIMIT = 4 * 4096

# A program that says what each call answers.  Pages are brought before the limit comes: it holds for the
# page cache as well.
START = f"""
import errno, mmap, os, resource
def told(what, *arguments):
    try: what(*arguments)
    except OSError as e: return errno.errorcode[e.errno]
    return "0"
def limit(size): resource.prlimit(os.getppid(), resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
f = os.open("f", os.O_RDWR)
m = mmap.mmap(f, {PAGES * 4096})
sum(m[::4096])
limit({LIMIT})
"""


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path)
    (place.source / "f").write_bytes(b"o" * PAGES * 4096)
    return place


def stored(*pages: int) -> bytes:
    return b"".join((b"n" if n in pages else b"o") * 4096 for n in range(PAGES))


def test_program_that_ends_well_with_lost_stores_exits_74_and_the_report_names_them(place: Place) -> None:
    ran = place.python(START + "m[6 * 4096:7 * 4096] = b'n' * 4096")
    assert ran.code == ran.report["exit_code"] == LOST == os.EX_IOERR
    name = str(place.mount / "f")
    assert ran.report["lost"] == [{"file": name, "bytes": 4096, "errno": "EFBIG"}]
    (line,) = [line for line in ran.err.splitlines() if line.startswith("daxfault: ")]
    assert line == f"daxfault: {name}: 4096 bytes that were stored are not written: File too large"
    assert (place.source / "f").read_bytes() == stored()


def test_exit_code_of_a_program_that_failed_is_its_own_and_the_report_names_the_stores(place: Place) -> None:
    ran = place.python(START + "m[6 * 4096] = 110; os._exit(5)")
    assert (ran.code, [one["bytes"] for one in ran.report["lost"]]) == (5, [4096])


def test_pages_that_can_be_written_are_beside_those_that_cannot(place: Place) -> None:
    ran = place.python(START + f"m[:] = b'n' * {PAGES * 4096}")
    assert (ran.code, ran.report["lost"][0]["bytes"]) == (LOST, PAGES * 4096 - LIMIT)
    assert (place.source / "f").read_bytes() == stored(0, 1, 2, 3)


def test_close_msync_and_fsync_report_what_cannot_be_written_until_it_is(place: Place) -> None:
    ran = place.python(
        START
        + "m[6 * 4096:7 * 4096] = b'n' * 4096\n"
        + "g = os.open('f', os.O_RDWR)\n"
        + "print(told(m.flush), told(os.fsync, f), told(os.close, g))\n"
        + "r = os.open('f', os.O_RDONLY); print(told(os.close, r))\n"
        + "limit(resource.RLIM_INFINITY)\n"
        + "print(told(m.flush), told(os.fsync, f), told(os.close, f))\n"
    )
    assert ran.out.splitlines() == ["EFBIG EFBIG EFBIG", "0", "0 0 0"]
    assert (ran.code, ran.report["lost"]) == (0, [])
    assert (place.source / "f").read_bytes() == stored(6)


def test_close_after_munmap_reports_what_cannot_be_written(place: Place) -> None:
    """As ld.lld ends: nothing but close(2) is asked."""
    ran = place.python(START + "m[6 * 4096] = 110; m.close(); print(told(os.close, f))")
    assert (ran.out, ran.code) == ("EFBIG\n", LOST)


def test_stores_to_a_file_that_nobody_can_open_any_more_are_no_loss(place: Place) -> None:
    ran = place.python(START + "m[6 * 4096] = 110; os.unlink('f')")
    assert (ran.code, ran.report["lost"]) == (0, [])


@contextlib.contextmanager
def limited(pid: int) -> Iterator[None]:
    """The process may write nothing past LIMIT while the body runs."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (LIMIT, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)


def test_run_on_the_mount_of_another_host_exits_74_when_it_cannot_write(tmp_path: Path) -> None:
    with RunningHost(tmp_path) as host:
        for name in ("f", "g"):
            (host.source / name).write_bytes(stored())
        script = """
import mmap, sys
f = open(sys.argv[1], "r+b")
m = mmap.mmap(f.fileno(), 0)
print(sum(m[::4096]), flush=True)
input()
m[-1] = 110
"""

        def run(name: str) -> subprocess.Popen[str]:
            program = [sys.executable, "-c", script, os.fspath(host.mount / name)]
            return subprocess.Popen(
                [sys.executable, "-m", "daxfault", "run", "--mount", os.fspath(host.mount), "--", *program],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/",
                env=environment(host.top),
            )  # fmt: skip

        first, second = run("f"), run("g")
        for process in (first, second):
            assert process.stdout is not None
            process.stdout.readline()
        with limited(host.process.pid):
            _, err = first.communicate("\n", timeout=PATIENCE)
            assert first.returncode == LOST, err
            assert f"daxfault: {host.mount / 'f'}: 4096 bytes" in err
        _, err = second.communicate("\n", timeout=PATIENCE)
        assert (second.returncode, err) == (0, "")
        for name in ("f", "g"):
            assert (host.settled() / name).read_bytes()[-1:] == b"n"


@contextlib.contextmanager
def mounted(place: Place) -> Iterator[subprocess.Popen[str]]:
    """A `daxfault mount --programs` that answers."""
    mount = subprocess.Popen(
        [sys.executable, "-m", "daxfault", "mount", "--programs", place.source, place.mount],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/", env=environment(place.top),
    )  # fmt: skip
    try:
        assert mount.stdout is not None
        assert "is served" in mount.stdout.readline()
        yield mount
    finally:
        mount.kill()
        mount.communicate()
        subprocess.run(["umount", "-l", place.mount], check=False, stderr=subprocess.DEVNULL)


def test_mount_that_ends_with_lost_stores_logs_one_line_for_each_file(place: Place) -> None:
    with mounted(place) as mount:
        script = START.replace("os.getppid()", str(mount.pid)) + "m[6 * 4096] = 110"
        command = [sys.executable, "-m", "daxfault", "run", "--mount", os.fspath(place.mount), "--"]
        done = subprocess.run(
            [*command, "env", "-C", place.mount, sys.executable, "-c", script],
            check=False, capture_output=True, text=True, cwd="/", env=environment(place.top),
            timeout=PATIENCE,
        )  # fmt: skip
        assert done.returncode == LOST, done.stderr
        mount.send_signal(signal.SIGTERM)
        _, err = mount.communicate(timeout=PATIENCE)
    lines = [line for line in err.splitlines() if line.startswith("ERROR")]
    assert len(lines) == 1, err
    assert f"{place.mount / 'f'}: 4096 bytes that were stored are not written" in lines[0]


COUNTED = 1024  # pages: writing them all takes long enough for many stores to come meanwhile

# Counts in every page of the mapping in turn, and then in a page of an ordinary file.
COUNT = f"""
import itertools, mmap, struct, sys
f, log = open(sys.argv[1], "r+b"), open(sys.argv[2], "r+b")
m, done = mmap.mmap(f.fileno(), 0), mmap.mmap(log.fileno(), 0)
put = struct.Struct("=Q").pack_into
print("begins", flush=True)
for n in itertools.count(1):
    put(m, n % {COUNTED} * 4096, n)
    put(done, 0, n)
"""


@pytest.mark.parametrize("round", range(3))
def test_stores_until_the_service_ends_around_a_program_are_all_in_the_backing_file(
    place: Place, round: int
) -> None:
    log = place.source.parent / "log"
    log.write_bytes(bytes(4096))
    os.truncate(place.source / "f", 0)
    os.truncate(place.source / "f", COUNTED * 4096)  # holes, which take longest to be written
    with mounted(place) as mount:
        program = subprocess.Popen(
            [sys.executable, "-c", COUNT, place.mount / "f", log],
            stdout=subprocess.PIPE, text=True, cwd="/",
            env={**environment(place.top), **program_environment.of_mount(place.mount)},
        )  # fmt: skip
        assert program.stdout is not None
        assert program.stdout.readline() == "begins\n"
        for _ in looks():
            if int.from_bytes(log.read_bytes()[:8], "little") > 300 * COUNTED * (round + 1):
                break
        mount.send_signal(signal.SIGTERM)
        program.communicate(timeout=PATIENCE)
        mount.communicate(timeout=PATIENCE)
    assert (program.returncode, mount.returncode) == (-signal.SIGBUS, 0)
    acknowledged = int.from_bytes(log.read_bytes()[:8], "little")
    data = (place.source / "f").read_bytes()
    found = [int.from_bytes(data[n * 4096 :][:8], "little") for n in range(COUNTED)]
    last = [acknowledged - (acknowledged - n) % COUNTED for n in range(COUNTED)]
    # the store after the last that it acknowledged may have been made as well
    assert all(have in (want, acknowledged + 1) for have, want in zip(found, last, strict=True)), (
        found,
        last,
    )


def test_stores_of_a_program_that_was_killed_are_lost_with_its_host_limit(tmp_path: Path) -> None:
    mapper = compiled(tmp_path)
    with RunningHost(tmp_path) as host:
        (host.source / "f").write_bytes(stored())
        program = Mapper(host, mapper)
        program("open f f rw")
        program("map m f 0 8p rw s")
        assert program("fill m 6p 1p n")
        with limited(host.process.pid):
            program.close()
            _, err = host.end()
        assert host.process.returncode == LOST
        assert "4096 bytes that were stored are not written: File too large" in err
