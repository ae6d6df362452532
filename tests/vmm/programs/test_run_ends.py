# SPDX-License-Identifier: Apache-2.0
"""How runs end: programs killed, hosts killed, disks full, and what the report says of it."""

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import environment
from mapscript import Mapper, compiled
from needs import require, require_root
from patience import PATIENCE, looks
from run_host import Place, RunningHost, require_programs

PAGES = 8
MAP = "import mmap, os, sys\nf = open('f', 'r+b')\nm = mmap.mmap(f.fileno(), 0)\n"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("mapper"))


def file_of(directory: Path, name: str = "f", pages: int = PAGES) -> Path:
    (directory / name).write_bytes(b"".join(bytes([97 + n % 26]) * 4096 for n in range(pages)))
    return directory / name


# ---- exit codes and the report


@pytest.mark.parametrize(("program", "code"), [("exit 7", 7), ("kill -KILL $$", 137)])
def test_exit_code_is_the_programs(place: Place, program: str, code: int) -> None:
    ran = place.ran("sh", "-c", program)
    assert ran.code == code
    assert ran.report["exit_code"] == code


def test_program_that_does_not_exist_is_127(place: Place) -> None:
    assert place.ran("/no/such/program").code == 127


@pytest.mark.parametrize("option", [["--fault", "EFOO"], ["--cache", "much"]])
def test_bad_option_is_refused_with_2_before_anything_runs(place: Place, option: list[str]) -> None:
    ran = place.ran("touch", place.source / "ran", options=option)
    assert ran.code == 2
    assert "Traceback" not in ran.err
    assert not (place.source / "ran").exists()


def test_fault_at_the_start_is_reported_with_file_offset_and_address(place: Place) -> None:
    file_of(place.source)
    script = MAP + "print(m[0]); sys.stdout.flush(); m[4 * 4096 + 9]"
    ran = place.python(script, options=["--fault", "EIO,file=f,offset=16K-20K", "--stacks"])
    assert (ran.code, ran.out) == (128 + signal.SIGBUS, "97\n")
    assert ran.report["ended"] == "died of SIGBUS"
    (failed,) = ran.failed
    assert (failed["errno"], failed["reason"], failed["offset"]) == ("EIO", "io", 16384)
    assert failed["file"] == str(place.mount / "f")
    assert failed["delivered"] == "poison"
    assert not failed["write"]
    (death,) = ran.report["deaths"]
    assert (death["file"], death["offset"]) == (failed["file"], 16384 + 9)
    assert death["address"] == failed["address"]
    assert (death["pid"], death["tid"]) == (failed["pid"], failed["tid"])
    assert any("mmap" in frame for frame in death["stack"])
    # and for a person
    assert "faults that failed" in ran.err
    assert "EIO" in ran.err
    assert "died of SIGBUS" in ran.err


def test_quiet_run_says_nothing_and_json_goes_to_standard_output(place: Place) -> None:
    file_of(place.source)
    program = ["env", "-C", place.mount, "python3", "-c", MAP + "m[0]"]
    command = place.command(program, "--fault", "EIO", "--quiet", "--json", "-")
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=PATIENCE, env=environment(place.top)
    )
    assert done.returncode == 128 + signal.SIGBUS
    assert json.loads(done.stdout)["failed_total"] == 1
    assert done.stderr == ""


def test_truncation_is_a_death_of_the_program_with_no_record_of_ours(place: Place) -> None:
    file_of(place.source)
    ran = place.python(MAP + "m[5 * 4096]; os.truncate('f', 8192); m[5 * 4096 + 1]")
    assert ran.code == 128 + signal.SIGBUS
    # the kernel has settled it: no fault came to us
    assert ran.failed == []
    (death,) = ran.report["deaths"]
    assert (death["file"], death["offset"]) == (str(place.mount / "f"), 5 * 4096 + 1)


def test_program_that_catches_its_sigbus_is_no_death(place: Place, program: Path) -> None:
    file_of(place.source)
    script = "open f f rw;map m f 0 8p r s;load m 1p 1"
    ran = place.ran(program, place.mount, place.source, script, options=["--fault", "EIO,file=f"])
    assert ran.code == 0
    assert ran.out.splitlines()[2].startswith("SIGBUS")
    assert ran.report["deaths"] == []
    assert [f["offset"] for f in ran.failed] == [4096]


def test_user_option_runs_the_program_as_that_user(program: Path) -> None:
    require_root()
    require_programs()
    with tempfile.TemporaryDirectory() as made:  # pytest's own are closed to others
        top = Path(made)
        top.chmod(0o755)
        place = Place(top)
        place.top.chmod(0o755)
        file_of(place.source).chmod(0o666)
        shutil.copy(program, top / "mapper")
        script = (
            "open f f rw;map m f 0 8p rw s;store m 1p nobody;load m 1p 7;fork;load m 2p 1;"
            "store m 3p child;end;ftrunc f 4p;load m 5p 1"
        )
        run = f"id -un; exec {top}/mapper {place.mount} - '{script}'"
        ran = place.ran("sh", "-c", run, options=["--user", "nobody"])
        data = (place.source / "f").read_bytes()
    assert (ran.code, ran.err) == (0, "")
    answers = ran.out.splitlines()
    assert answers[0] == "nobody"
    assert answers[4:] == ["[nobodyb]", "[c]", "5", "child: 0", "0", f"SIGBUS code 2 at +{5 * 4096}"]
    assert data[4096:].startswith(b"nobodyb")
    assert data[3 * 4096 :].startswith(b"childd")
    assert len(data) == 4 * 4096


def read_line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_interrupt_ends_program_and_run_and_leaves_nothing(place: Place) -> None:
    with place.started("sh", "-c", "echo ready; exec sleep 1000") as process:
        assert read_line(process) == "ready\n"
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        process.wait(timeout=PATIENCE)
        assert process.returncode == 130


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda n: n.name)
def test_signal_to_the_run_is_the_programs(place: Place, number: signal.Signals) -> None:
    handler = f"trap 'echo got it; exit 9' {number.name[3:]}; echo ready; while :; do sleep 0.01; done"
    with place.started("sh", "-c", handler) as process:
        assert read_line(process) == "ready\n"
        process.send_signal(number)
        assert read_line(process) == "got it\n"
        assert process.wait(timeout=PATIENCE) == 9


def test_signal_before_the_program_runs_ends_it_and_leaves_nothing(place: Place) -> None:
    with place.started("sleep", "1000") as process:
        for _ in looks():
            if place.is_mounted():
                break
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=PATIENCE) == 143


# A daemon: it has left its starter, its session and its descriptors behind, and goes on when it is told to.
DAEMON = (
    MAP
    + """
r, w = os.pipe()
if os.fork():
    os.read(r, 1)
    os._exit(0)
os.setsid()
os.write(w, b"x")
os.closerange(0, 1024)
while not os.path.exists(sys.argv[1]): pass
m[3 * 4096:3 * 4096 + 6] = b"daemon"
"""
)


def test_run_waits_for_the_daemon_that_a_program_leaves(place: Place) -> None:
    file_of(place.source)
    go = place.top.parent / "go"
    with place.started("env", "-C", place.mount, "python3", "-c", DAEMON, go) as process:
        assert process.stderr is not None
        assert "waiting for their end" in process.stderr.readline()
        go.touch()
        assert process.wait(timeout=PATIENCE) == 0
    assert (place.source / "f").read_bytes()[3 * 4096 :].startswith(b"daemond")


def test_interrupt_while_a_daemon_is_waited_for_leaves_it_an_error(place: Place) -> None:
    file_of(place.source)
    pid_file, go = place.top.parent / "pid", place.top.parent / "go"
    script = DAEMON.replace("os.setsid()", f"open('{pid_file}', 'w').write(str(os.getpid())); os.setsid()")
    with place.started("env", "-C", place.mount, "python3", "-c", script, go) as process:
        assert process.stderr is not None
        assert "waiting for their end" in process.stderr.readline()
        handle = os.pidfd_open(int(pid_file.read_text()))
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=PATIENCE) == 130
        go.touch()
        assert select.select([handle], [], [], PATIENCE)[0]
        os.close(handle)
    assert (place.source / "f").read_bytes()[3 * 4096 :].startswith(b"ddd")


# ---- a program that is killed


def test_program_killed_loses_nothing_it_stored(run_host: RunningHost, program: Path) -> None:
    file_of(run_host.source, "k", 64)
    mapper = Mapper(run_host, program)
    for line in ("open f k rw", "map m f 0 64p rw s", "fill m 0 40p K", "store m 50p+7 last"):
        mapper(line)
    mapper.close()
    data = (run_host.settled() / "k").read_bytes()
    assert data[: 40 * 4096] == b"K" * (40 * 4096)
    assert data[50 * 4096 + 7 :].startswith(b"last")
    assert data[41 * 4096 :].startswith(b"pppp")


def test_files_nobody_maps_any_more_are_freed(run_host: RunningHost, program: Path) -> None:
    for name in ("x", "y"):
        file_of(run_host.source, name)
    first, second = Mapper(run_host, program), Mapper(run_host, program)
    for mapper in (first, second):
        for line in ("open f x rw", "map m f 0 8p rw s", "open g y r", "map n g 0 8p r s"):
            mapper(line)
        assert mapper("load m 3p 1") == "[d]"
        assert mapper("load n 3p 1") == "[d]"

    def held() -> set[str]:
        return {os.path.basename(name) for name in run_host.ask("status")["files"]} & {"x", "y"}

    def wait_for(names: set[str]) -> None:
        for _ in looks():
            if held() == names:
                return

    assert first("unmap n 0 8p") == "0"
    assert held() == {"x", "y"}
    assert second("unmap n 0 8p") == "0"
    wait_for({"x"})
    first.close()
    assert held() == {"x"}
    second.close()
    wait_for(set())
    for _ in looks():
        if run_host.ask("status")["cache_used"] == 0:
            break


# ---- a host that is killed


@pytest.fixture
def dying(tmp_path: Path) -> Iterator[RunningHost]:
    require_root()  # to unmount what its server has left
    require_programs()
    host = RunningHost(tmp_path)
    yield host
    host.kill()
    subprocess.run(["umount", "-l", host.mount], check=False, stderr=subprocess.DEVNULL)
    assert not host.is_mounted()


def test_host_killed_gives_sigbus_not_zeros_and_nobody_hangs(dying: RunningHost, program: Path) -> None:
    file_of(dying.source)
    mapper, blocked, idle = (Mapper(dying, program) for _ in range(3))
    for one in (mapper, blocked):
        one("open f f rw")
        one("map m f 0 8p rw s")
    assert idle("open f f rw") == "0"
    dying.inject("never,file=f,offset=20K-24K")
    assert mapper("load m 0 1") == "[a]"
    assert mapper("store m 1p kept") == "4"
    before = dying.ask("status")["counters"]["parked"]
    blocked.send("load m 5p 1")
    for _ in looks():
        if dying.ask("status")["counters"]["parked"] > before:
            break
    dying.process.send_signal(signal.SIGKILL)
    dying.process.wait(timeout=PATIENCE)
    # who waits for a page, and who comes later: an error, never zeros
    assert blocked.answer().startswith("SIGBUS")
    for n in range(PAGES):
        got = mapper(f"load m {n}p 1")
        assert got.startswith("SIGBUS") or got == (f"[{chr(97 + n)}]" if n != 1 else "[k]")
    assert mapper("load m 5p 1").startswith("SIGBUS")
    assert mapper("put m 5p 10") == "EFAULT"
    # new mappings are refused
    assert mapper("map n f 0 8p rw s") == "ENODEV"
    assert idle("map n f 0 8p rw s") in ("ENODEV", "ENOTCONN", "ECONNABORTED")
    assert mapper("msync m 0 8p s") == "EIO"
    for one in (mapper, blocked, idle):
        assert one.end() == 0


def test_keeper_ends_after_its_host_is_killed(dying: RunningHost) -> None:
    tasks = Path(f"/proc/{dying.process.pid}/task").glob("*/children")
    children = [pid for task in tasks for pid in task.read_text().split()]
    keepers = [pid for pid in children if "keeper" in Path(f"/proc/{pid}/cmdline").read_text()]
    assert len(keepers) == 1
    handle = os.pidfd_open(int(keepers[0]))
    dying.kill()
    assert select.select([handle], [], [], PATIENCE)[0]
    os.close(handle)


# ---- a disk that is full


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    require_root()
    image, top = tmp_path / "image", tmp_path / "small"
    top.mkdir()
    image.write_bytes(b"")
    os.truncate(image, 4 << 20)
    require(shutil.which("mkfs.ext4", path=os.environ["PATH"] + ":/usr/sbin:/sbin"), "mkfs.ext4")
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    subprocess.run(
        ["mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", image],
        check=True,
        env={**os.environ, "PATH": path},
    )
    made = subprocess.run(["mount", "-o", "loop", image, top], check=False, capture_output=True).returncode
    require(made == 0, "loop devices")
    yield top
    subprocess.run(["umount", "-l", top], check=True)


def test_full_disk_at_write_back_is_told_by_msync_and_fsync_and_heals(
    tmp_path: Path, small_disk: Path, program: Path
) -> None:
    (tmp_path / "run").mkdir()
    with contextlib.ExitStack() as stack:
        host = stack.enter_context(RunningHost(tmp_path / "run", source=small_disk))
        (small_disk / "sparse").write_bytes(b"")
        os.truncate(small_disk / "sparse", 8 << 20)
        mapper = Mapper(host, program)
        stack.callback(mapper.close)
        mapper("open f sparse rw")
        mapper("map m f 0 2048p rw s")
        assert mapper("fill m 0 2048p X") == str(8 << 20)
        assert mapper("msync m 0 2048p s") == "ENOSPC"
        assert mapper("fsync f") == "ENOSPC"
        # nothing is lost: when there is room again it goes to the disk
        assert mapper("ftrunc f 256p") == "0"
        assert mapper("msync m 0 256p s") == "0"
        assert mapper("fsync f") == "0"
        assert (small_disk / "sparse").read_bytes() == b"X" * (256 * 4096)
        assert mapper.end() == 0
        host.settled()


# ---- memory


def test_cache_limit_bounds_memory_and_content_is_right(tmp_path: Path) -> None:
    require_programs()
    size = 200 << 20
    script = (
        f"size = {size}"
        + """
import mmap, os
with open("big", "wb") as f:
    os.truncate("big", size)
f = open("big", "r+b")
m = mmap.mmap(f.fileno(), 0)
step = 1 << 20
for at in range(0, size, step):
    m[at:at + step] = (at // step).to_bytes(4, "little") * (step // 4)
print("written", flush=True)
for at in range(0, size, step):
    assert m[at:at + step] == (at // step).to_bytes(4, "little") * (step // 4), at
print("read", flush=True)
"""
    )
    with RunningHost(tmp_path, "--cache", "8M") as host:
        process = host.start(sys.executable, "-c", script)
        most = 0
        for _ in looks():
            most = max(most, host.ask("status")["cache_used"])
            if process.poll() is not None:
                break
        out, err = process.communicate()
        assert (process.returncode, out) == (0, "written\nread\n"), err
        data = (host.settled() / "big").read_bytes()
    assert 0 < most < size // 2
    step = 1 << 20
    assert all(
        data[at : at + step] == (at // step).to_bytes(4, "little") * (step // 4)
        for at in range(0, len(data), step)
    )
