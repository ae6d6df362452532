# SPDX-License-Identifier: Apache-2.0
"""`daxfault doctor --kvm` and daxfault-kvm-probe: what they find here, and where they cannot ask."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
from checkout import DOCS
from kvm_guest import require_kvm
from needs import require_root
from private_mounts import private_mounts
from serving import eventually

from daxfault.native.kvm import probe, probe_program
from daxfault.vmm.errors import DaxfaultError
from daxfault.vmm.kvm.probe import understand

PAGE = DOCS / "kvm.md"


def run_doctor(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "daxfault", "doctor", "--kvm", *arguments],
        capture_output=True,
        text=True,
        cwd="/",
    )


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    require_kvm()
    done = run_doctor("--json")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def keys(answers: object) -> set[str]:
    """Every key, at whatever depth."""
    if isinstance(answers, dict):
        return set(answers).union(*(keys(value) for value in answers.values()))
    return set()


def test_probe_kernel_and_abilities_are_this_machines(found: dict[str, Any]) -> None:
    can = probe()
    assert found["kernel"]["release"] == os.uname().release
    assert found["kvm"]["abilities"]["async_pf"] == can.async_pf
    assert found["kvm"]["abilities"]["memory_fault"] == can.memory_fault
    assert found["kvm"]["signature"] == "KVMKVMKVM"


def test_probe_async_page_faults_here_loop(found: dict[str, Any]) -> None:
    """As every kernel from 5.8 on that was tried: one "page ready" for each fault, and no exit."""
    case = found["cases"]["async_pf"]
    if not found["kvm"]["abilities"]["async_pf"]:
        assert case["outcome"] == "untried"
        assert "async page faults" in case["why"]
        return
    assert (case["outcome"], case["exit"], found["loops"]) == ("loop", None, True)
    assert case["not_present"] >= 8
    assert abs(case["ready"] - case["not_present"]) <= 1


def test_probe_without_irqchip_exits(found: dict[str, Any]) -> None:
    case = found["cases"]["no_irqchip"]
    assert (case["outcome"], case["faults"]) == ("exit", None)
    assert case["exit"] in ("EFAULT", "MMIO", "MEMORY_FAULT")


def test_probe_rescues_end_the_loop_where_there_is_one(found: dict[str, Any]) -> None:
    if not found["loops"]:
        assert {rescue["works"] for rescue in found["rescues"].values()} == {None}
        return
    rescues = found["rescues"]
    assert {name for name, rescue in rescues.items() if rescue["works"]} >= {"unmap", "forbid", "shrink"}
    # EFAULT: a fault that had begun when the slot went away (docs/kvm.md)
    shrink = rescues["shrink"]
    assert (shrink["exit"], shrink["where"]) in (("MMIO", "gpa"), ("EFAULT", "nowhere"))
    poison = rescues["poison"]
    assert poison["where"] == "page" if poison["works"] else "UFFDIO_POISON" in poison["why"]


def test_probe_guest_is_told_in_every_way(found: dict[str, Any]) -> None:
    assert {name: told["works"] for name, told in found["injections"].items()} == {
        "area": True,
        "pf": True,
        "mc": True,
        "event": True,
    }


def test_probe_keys_are_documented(found: dict[str, Any]) -> None:
    text = PAGE.read_text()
    assert {key for key in keys(found) if not re.search(rf"`{key}`", text)} == set()


def test_command_tables_say_what_each_case_does(found: dict[str, Any]) -> None:
    done = run_doctor()
    assert done.returncode == 0
    for name in (*found["cases"], *found["rescues"], *found["injections"]):
        assert re.search(rf"^ {name} ", done.stdout, re.MULTILINE)
    assert ("LOOP" in done.stdout) == found["loops"]


def private_dev(then: str) -> list[str]:
    """A command run with a /dev of its own, made to measure by `then`; $1 is the program."""
    script = f"mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && {then}"
    return [*private_mounts(script), str(probe_program())]


@pytest.mark.parametrize(
    ("then", "reason"),
    [
        ('exec "$1"', "/dev/kvm: this machine has no KVM"),
        (
            ': > /dev/kvm && chmod 600 /dev/kvm && exec 3< "$1" && '
            "exec setpriv --reuid 65534 --clear-groups /proc/self/fd/3",
            "/dev/kvm: not permitted to uid 65534",
        ),
        ('ln -s null /dev/kvm && exec "$1"', "KVM_CREATE_VM: Inappropriate ioctl for device"),
    ],
    ids=["absent", "refused", "something-else"],
)
def test_probe_where_kvm_cannot_be_used_says_why(then: str, reason: str) -> None:
    require_root()
    done = subprocess.run(private_dev(then), capture_output=True, text=True)
    answers = understand(done.stdout)
    assert (done.returncode, answers["usable"], answers["reason"]) == (3, False, reason)
    assert answers["kernel"]["release"] == os.uname().release
    assert "cases" not in answers


def test_command_where_kvm_cannot_be_used_ends_with_3() -> None:
    require_root()
    command = private_dev(f'exec "{sys.executable}" -m daxfault doctor --kvm')
    done = subprocess.run(command, capture_output=True, text=True, cwd="/")
    assert (done.returncode, "/dev/kvm: this machine has no KVM" in done.stdout) == (3, True), done.stderr


@pytest.mark.parametrize("arguments", [["--seconds"], ["--seconds", "0"], ["--seconds", "1x"], ["what"]])
def test_probe_bad_arguments_end_with_2(arguments: list[str]) -> None:
    done = subprocess.run([probe_program(), *arguments], capture_output=True, text=True)
    assert (done.returncode, done.stdout, "usage:" in done.stderr) == (2, "", True)


def test_probe_without_room_for_its_file_says_why(tmp_path: Path) -> None:
    require_kvm()
    done = subprocess.run(
        [probe_program()],
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path / "absent")},
    )
    assert done.returncode == 3
    assert understand(done.stdout)["reason"] == "a file in $TMPDIR, or /tmp: No such file or directory"


def running_probe(parent: int) -> str | None:
    """The child that is daxfault-kvm-probe."""
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{child}/exe") == str(probe_program().resolve()):
                return child
    return None


def test_command_interrupted_leaves_nothing(tmp_path: Path) -> None:
    require_kvm()
    with subprocess.Popen(
        [sys.executable, "-m", "daxfault", "doctor", "--kvm"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env={**os.environ, "TMPDIR": str(tmp_path)},
        process_group=0,
    ) as command:
        # an editable install has other children first, which look whether there is something to build
        child = trio.run(eventually, lambda: running_probe(command.pid), "the program has been started")
        os.killpg(command.pid, signal.SIGINT)
        assert command.wait(10) == 130
    # waited for, unless the signal came between its start and Popen's return
    trio.run(eventually, lambda: not os.path.exists(f"/proc/{child}/exe"), "the program has ended")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema": 2}'])
def test_understand_something_else_is_an_error(text: str) -> None:
    with pytest.raises(DaxfaultError, match="daxfault-kvm-probe"):
        understand(text)
