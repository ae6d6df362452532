# SPDX-License-Identifier: Apache-2.0
"""`daxfault repro --guest kvm`, as a person runs it: told, refused, interrupted, killed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import assert_nothing_left, environment, interrupted, told
from kvm_guest import require_kvm
from needs import require_root
from patience import PATIENCE
from private_mounts import private_mounts, without

REPRO = [sys.executable, "-m", "daxfault", "repro", "--guest", "kvm"]

HOST = """
import os, signal, trio
from daxfault.vmm.kvm.machine import machine
from daxfault.native.kvm_script import Op, Step, async_pf
from daxfault.vmm.kvm.window import FileMemory

async def main():
    fd = os.memfd_create("window")
    os.ftruncate(fd, 65536)
    async with machine(lambda: FileMemory(os.dup(fd)), vcpus=2, rescue=None) as guest:
        await guest.run(async_pf())
        os.ftruncate(fd, 4096)
        guest.start(Step(Op.SPIN, ring=0, interrupts=False), vcpu=1)
        guest.start(Step(Op.LOAD, offset=8192))
        while guest.vcpus[0].mailbox.counts().not_present < 10:
            await trio.sleep(0.001)
        print("loops", flush=True)
        await trio.sleep_forever()

try:
    trio.run(main)
except* KeyboardInterrupt:
    raise SystemExit(130)
"""


@pytest.fixture
def top(top: Path) -> Path:
    require_kvm()
    return top


def repro(top: Path, *options: str, before: tuple[str, ...] = ()) -> "subprocess.CompletedProcess[str]":
    return told(top, *before, *REPRO, "--seconds", "0.1", *options)


def test_repro_on_kvm_loops_both_ways_and_ends_in_the_exact_error(top: Path) -> None:
    done = repro(top, "--json")
    assert done.returncode == 0, done.stderr + done.stdout
    outcome = json.loads(done.stdout)
    assert (outcome["version"], outcome["guest"], outcome["ok"]) == (1, "kvm", True)
    assert [story["via"] for story in outcome["stories"]] == ["mount", "behind"]
    for story in outcome["stories"]:
        loops = [access["watched"] for access in story["accesses"] if access["watched"]]
        assert len(loops) == 2
        halted, counted = loops
        assert halted["guest"] is None
        assert counted["guest"] >= 19
        assert counted["faults"] - counted["guest"] in (0, 1)
        errors = [access for access in story["accesses"] if access["got"] in ("sigbus", "fixup")]
        assert len(errors) == 3
        assert all(access["address"] == access["expected_address"] for access in errors)


def test_repro_on_kvm_shows_a_table_a_story(top: Path) -> None:
    done = repro(top)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("LOOP") == 4
    assert "Everything was as expected." in done.stdout


def test_repro_on_kvm_tells_the_story_of_a_large_file_of_ones_own(top: Path, tmp_path: Path) -> None:
    file = tmp_path / "own"
    data = os.urandom(5 << 20)
    file.write_bytes(data)
    done = repro(top, "--file", str(file), "--via", "mount", "--json")
    assert done.returncode == 0, done.stderr
    (story,) = json.loads(done.stdout)["stories"]
    assert story["size"] == len(data)
    assert file.read_bytes() == data


def test_repro_on_kvm_with_a_design_exits_2(top: Path) -> None:
    done = repro(top, "--design", "report")
    assert done.returncode == 2
    assert "--design" in done.stderr


def test_repro_without_kvm_exits_3_and_names_it(top: Path) -> None:
    require_root()
    done = repro(top, before=without("kvm"))
    assert done.returncode == 3, done.stderr
    assert "/dev/kvm" in done.stderr
    assert "Traceback" not in done.stderr


def test_kvm_that_is_not_permitted_is_named_with_the_user() -> None:
    require_root()
    code = (
        "import os; from daxfault.native import kvm; "
        "os.setgroups([]); os.setuid(65534); print(kvm.unsupported())"
    )
    hide = private_mounts('mount -t tmpfs none /dev && : > /dev/kvm && exec "$@"')
    strict = ("sh", "-c", 'chmod 600 /dev/kvm && exec "$@"', "sh")
    command = [*hide, *strict, sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
    assert done.stdout == "/dev/kvm: not permitted to uid 65534\n", done.stderr


@pytest.mark.parametrize("guest", ["kvm", "standin"])
def test_repro_killed_in_a_loop_leaves_nothing(top: Path, guest: str) -> None:
    child = subprocess.Popen(
        [*REPRO[:-1], guest, "--seconds", "60"],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        cwd="/",
        env=environment(top),
    )
    try:
        wait_for_the_loop(child, top)
    finally:
        child.kill()
        child.communicate(timeout=PATIENCE)  # it dies, though it serves what it has mapped
    end = time.monotonic() + PATIENCE
    while list(top.iterdir()) and time.monotonic() < end:  # its guard, which has no parent now, cleans up
        time.sleep(0.01)
    assert_nothing_left(top)


def wait_for_the_loop(child: "subprocess.Popen[bytes]", top: Path) -> None:
    """Until its own thread that runs a vCPU, or the guest that it has started, has burnt time."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and child.poll() is None:  # a loop tells nobody of itself
        mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {top}" in line]
        if mounts and sum(busy_seconds(child.pid)) > 1.0:
            return
        time.sleep(0.01)
    raise AssertionError("never in the loop")


def test_repro_on_kvm_interrupted_in_a_loop_exits_130_and_leaves_nothing(top: Path) -> None:
    with interrupted(top, *REPRO, "--seconds", "60") as child:
        wait_for_a_busy_thread(child)


def wait_for_a_busy_thread(child: "subprocess.Popen[str]") -> None:
    """Until one of its threads has burnt half a second: the vCPU, in the loop."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and child.poll() is None:  # a loop tells nobody of itself
        if max(busy_seconds(child.pid)[1:], default=0.0) > 0.5:
            return
        time.sleep(0.01)
    raise AssertionError("never in the loop")


def busy_seconds(pid: int) -> list[float]:
    """Processor time of its threads, the main one's first."""
    found = []
    for task in sorted(Path(f"/proc/{pid}/task").iterdir(), key=lambda task: int(task.name)):
        with contextlib.suppress(OSError):
            fields = (task / "stat").read_text().rpartition(")")[2].split()
            found.append((int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"))
    return found


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_host_of_looping_vcpus_ends_by_a_signal(how: signal.Signals) -> None:
    require_kvm()
    child = subprocess.Popen(
        [sys.executable, "-c", HOST], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/"
    )
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "loops\n"
        child.send_signal(how)
        _, log = child.communicate(timeout=PATIENCE)
    finally:
        child.kill()
        child.communicate()
    # reaped: its threads, its machine and its memory are gone with it
    assert child.returncode == (130 if how == signal.SIGINT else -how), log
