# SPDX-License-Identifier: Apache-2.0
"""`daxfault repro`, as a person runs it: told, refused, interrupted; nothing is left behind."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from checkout import ROOT
from command_line import assert_nothing_left, interrupted, told, wait_for_guest
from needs import require, require_root
from patience import PATIENCE
from private_mounts import private_mounts, without

REPRO = [sys.executable, "-m", "daxfault", "repro", "--seconds", "0.1"]


def repro(top: Path, *options: str, before: tuple[str, ...] = ()) -> "subprocess.CompletedProcess[str]":
    return told(top, *before, *REPRO, *options)


def stories(done: "subprocess.CompletedProcess[str]") -> dict[tuple[str, str], dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["version"] == 1
    assert outcome["ok"]
    return {(story["design"], story["via"]): story for story in outcome["stories"]}


def test_repro_without_options_loops_under_mainline_and_ends_in_errors_under_report(top: Path) -> None:
    told = stories(repro(top, "--json"))
    assert set(told) == {(design, via) for design in ("mainline", "report") for via in ("mount", "behind")}
    for (design, _), story in told.items():
        dead = [access for access in story["accesses"] if access["expected"] != "ok"]
        assert [access["outcome"] for access in dead] == (
            ["loop", "loop", "stopped", "loop"]
            if design == "mainline"
            else ["sigbus", "efault", "efault", "efault"]
        )
        for access in dead:
            assert access["error"] == "EFAULT"
            assert access["address"] == access["expected_address"] or access["outcome"] == "loop"
            assert (access["cycles"] >= 100) == (access["outcome"] == "loop")
            assert (access["rate"] > 0) == (access["outcome"] == "loop")
        # the guest is told of what happens in user mode; of the rest it sees nothing
        assert [access["told"] for access in dead] == [design == "mainline", False, False, False]


def test_repro_in_a_terminal_shows_a_table_a_design(top: Path) -> None:
    done = repro(top)
    assert done.returncode == 0
    for words in (
        "LOOP",
        "not present, ready",
        "vCPU halted, resumed",
        "no progress",
        "STOPPED",
        "SIGBUS",
        "(exact)",
        "16 bytes done, then EFAULT",
        "as expected",
    ):
        assert words in done.stdout


def test_repro_of_one_design_and_one_way_tells_one_story(top: Path) -> None:
    told = stories(repro(top, "--json", "--design", "report", "--via", "behind"))
    assert list(told) == [("report", "behind")]


def test_repro_with_a_file_leaves_the_file_alone(top: Path, tmp_path: Path) -> None:
    file = tmp_path / "data"
    content = os.urandom((5 << 20) + 123)
    file.write_bytes(content)
    told = stories(repro(top, "--json", "--design", "report", "--file", str(file)))
    assert {story["size"] for story in told.values()} == {len(content)}
    assert file.read_bytes() == content


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--file", "/nonexistent"], "/nonexistent"),
        (["--file", "/"], "not a regular file"),
        (["--file", "/proc/self/comm"], "32768"),
        (["--design", "hope"], "hope"),
        (["--via", "magic"], "magic"),
        (["--seconds", "0"], "seconds"),
    ],
)
def test_repro_asked_for_nonsense_exits_2_and_names_it(top: Path, options: list[str], words: str) -> None:
    done = repro(top, *options)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_repro_without_fuse_exits_3_and_names_doctor(top: Path) -> None:
    require_root()
    done = repro(top, before=without("fuse"))
    assert done.returncode == 3
    assert "daxfault doctor" in done.stderr
    assert "Traceback" not in done.stderr


def test_repro_without_userfaultfd_exits_3_and_names_it(top: Path) -> None:
    require_root()
    require(Path("/proc/sys/vm/unprivileged_userfaultfd").read_text() == "0\n", "userfaultfd restricted")
    done = repro(top, before=(*without("userfaultfd"), "setpriv", "--bounding-set=-sys_ptrace"))
    assert done.returncode == 3
    assert "userfaultfd: Operation not permitted" in done.stderr
    assert "Traceback" not in done.stderr


def test_repro_on_full_disk_exits_3_and_names_the_file_and_tmpdir(top: Path) -> None:
    require_root()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40k", "none", top], check=True)
    try:
        done = subprocess.run(
            REPRO,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
            cwd="/",
            env={**os.environ, "TMPDIR": str(top)},
        )
        assert done.returncode == 3
        assert f"{top}/daxfault-" in done.stderr
        assert "No space left on device; TMPDIR" in done.stderr
        assert "Traceback" not in done.stderr
        assert list(top.iterdir()) == []
    finally:
        subprocess.run(["umount", top], check=True)
    assert_nothing_left(top)


def test_repro_without_any_place_for_temporary_files_exits_3_and_says_so(top: Path) -> None:
    require_root()
    tree = ROOT
    # empty and read-only, but for this checkout, which may lie in one of them
    script = f"""
        mount -t tmpfs none /mnt && mkdir /mnt/tree && mount --bind {tree} /mnt/tree
        for d in /tmp /var/tmp /dev/shm; do
            mount -t tmpfs none $d && mkdir -p {tree} && mount --bind /mnt/tree {tree}
            mount -o remount,ro $d
        done
        cd /proc && TMPDIR=/proc exec "$@"
    """
    done = repro(top, before=private_mounts(script))
    assert done.returncode == 3
    assert "temporary" in done.stderr
    assert "Traceback" not in done.stderr


def test_repro_interrupted_in_a_loop_exits_130_and_leaves_nothing(top: Path) -> None:
    with interrupted(top, *REPRO[:-1], "60", "--design", "mainline") as child:
        mount = wait_for_mount(top, child)
        guest = wait_for_guest(child)
    assert not mount.exists()
    assert not Path(f"/proc/{guest}").exists()


def wait_for_mount(top: Path, child: "subprocess.Popen[str]") -> Path:
    while child.poll() is None:
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            if (path := line.split()[4]).startswith(f"{top}/"):
                return Path(path)
    raise AssertionError("it ended before it mounted anything")


def test_repro_into_a_closed_pipe_leaves_nothing(top: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*REPRO, "--design", "report"],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=PATIENCE,
        env={**os.environ, "TMPDIR": str(top)},
    )
    os.close(writing)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert_nothing_left(top)
