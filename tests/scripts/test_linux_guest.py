# SPDX-License-Identifier: Apache-2.0
"""scripts/kernels/linux_guest: its parts by themselves; and all of it, which is slow."""

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from needs import require
from patience import PATIENCE
from scripts_here import run_script, script_module, start_script, unpacked

from daxfault.native.kvm import level2_program, rescue_program

KERNEL = script_module("kvm_kernels").Kernel("x", b"the kernel", {"kvm": b"the module"})


@pytest.fixture(scope="module")
def level1() -> Any:
    return script_module("linux_level1")


@pytest.fixture(scope="module")
def story() -> Any:
    return script_module("linux_story")


def test_level1_initramfs_holds_qemu_and_level2(level1: Any) -> None:
    require(shutil.which(level1.QEMU), level1.QEMU)
    found = unpacked(level1.level1_ramfs(KERNEL, b"the shell", b"the rescue", b"the init"))
    assert found["bin/daxfault-rescue"] == (0o100755, b"the rescue")
    assert found["level2/vmlinuz"] == (0o100644, b"the kernel")
    assert found["lib/kvm.ko"] == (0o100644, b"the module")
    assert unpacked(found["level2/initramfs"][1])["init"] == (0o100755, b"the init")
    assert found[f"bin/{level1.QEMU}"][1] == Path(shutil.which(level1.QEMU) or "").read_bytes()
    assert any(path.endswith("/libc.so.6") for path in found)
    assert any("/ld-linux" in path for path in found)
    assert {f"qemu/{name}" for name in level1.FIRMWARE} < set(found)


def test_programs_of_both_levels_need_no_libraries() -> None:
    is_static = script_module("kvm_kernels").is_static
    assert is_static(level2_program().read_bytes())
    assert is_static(rescue_program().read_bytes())


class Played:
    """A level 1 whose serial ports the test has."""

    def __init__(self, module: Any, seconds: float = 10) -> None:
        pairs = {name: socket.socketpair() for name in module.PORTS}
        self.far = {name: pair[1] for name, pair in pairs.items()}
        self.near = {name: pair[0] for name, pair in pairs.items()}
        self.far["shell"].sendall(b"@ready\n")
        self.level1 = module.Level1(self.near, time.monotonic() + seconds)

    def close(self) -> None:
        for port in [*self.far.values(), *self.near.values()]:
            port.close()


@pytest.fixture
def played(level1: Any) -> Iterator[Played]:
    with contextlib.closing(Played(level1)) as played:
        yield played


def test_level1_command_gives_its_status_and_what_it_printed(played: Played) -> None:
    played.far["shell"].sendall(b"one\r\ntwo\n@done 3\n")
    assert played.level1.run("some command") == (3, ["one", "two"])
    assert played.far["shell"].recv(99) == b"some command\n"


def test_level1_event_that_comes_in_pieces_is_one(played: Played) -> None:
    played.far["events"].sendall(b'{"touches": 1}\n{"tou')
    played.far["console"].sendall(b"[    1.0] words\n")
    while len(played.level1.events) < 1 or not played.level1.console:
        played.level1.wait()
    played.far["events"].sendall(b'ches": 2}\n')
    while len(played.level1.events) < 2:
        played.level1.wait()
    assert played.level1.events == [{"touches": 1}, {"touches": 2}]
    assert played.level1.console == ["[    1.0] words"]


def test_level1_event_that_makes_no_sense_is_an_error(level1: Any, played: Played) -> None:
    played.far["events"].sendall(b'{"touches"{"error": 1}\n')
    with pytest.raises(level1.Ended, match="init said"):
        played.level1.run("anything")


def test_level1_that_ends_is_an_error_with_its_last_words(level1: Any, played: Played) -> None:
    played.far["kernel"].sendall(b"Kernel panic\n")
    while not played.level1.wait():
        pass
    played.far["kernel"].close()
    with pytest.raises(level1.Ended, match=r"level 1 has ended.*Kernel panic"):
        played.level1.run("anything")


def test_level1_that_is_silent_is_an_error_at_the_deadline(level1: Any) -> None:
    with (
        pytest.raises(level1.Ended, match="out of time"),
        contextlib.closing(Played(level1, seconds=0.1)) as played,
    ):
        played.level1.run("anything")


def faults(level1: Any, taken: int, fixed: int) -> Any:
    return level1.Faults(at=taken / 100, taken=taken, not_present=taken, fixed=fixed)


@pytest.mark.parametrize(
    ("taken", "fixed", "loads", "told", "seen"),
    [
        (500, 0, 0, 500, True),
        (500, 0, 0, 0, False),  # level 2 was told of nothing
        (500, 3, 0, 400, True),  # the rest of level 2 has faults as well
        (500, 490, 0, 500, False),  # somebody mends pages
        (500, 0, 1, 500, False),  # the process gets on
        (8, 0, 0, 8, False),
    ],
)
def test_loop_is_faults_without_a_mended_page_or_a_load(
    level1: Any, story: Any, taken: int, fixed: int, loads: int, told: int, seen: bool
) -> None:
    said = [{"touches": 7, "told": 1}, {"touches": 7 + loads, "told": 1 + told}]
    loop = story.between(faults(level1, 100, 20), faults(level1, 100 + taken, 20 + fixed), said, True)
    assert loop.seen is seen


def test_loop_without_async_page_faults_asks_nothing_of_level_2(level1: Any, story: Any) -> None:
    said = [{"touches": 7, "told": -1}]
    loop = story.between(faults(level1, 100, 20), faults(level1, 600, 20), said, False)
    assert (loop.seen, loop.told, loop.per_second) == (True, None, 100)


def test_panic_is_told_with_the_machine_check_before_it(story: Any) -> None:
    console = [
        "[    8.0] mce: [Hardware Error]: RIP 33:<0000000000401a40>",
        "[    8.1] some other line",
        "[    8.2] Kernel panic - not syncing: Fatal local machine check",
    ]
    assert (
        story.panic(console)
        == "RIP 33:<0000000000401a40>; Kernel panic - not syncing: Fatal local machine check"
    )
    assert story.panic(console[:2]) is None


@pytest.mark.parametrize(
    ("rescue", "end", "value", "expected"),
    [
        ("poison", "refused", None, False),
        ("grow", "healed", 0, True),
        ("grow", "healed", 90, False),
        ("grow", "loop", None, False),
        ("forbid", "stopped", None, True),
        ("poison", "panic", None, True),
        ("poison", "signal", None, True),
        ("poison", "loop", None, False),
        ("forbid", "healed", 0, False),
    ],
)
def test_chapter_is_as_expected_when_its_loop_ended_in_the_right_way(
    story: Any, rescue: str, end: str, value: int | None, expected: bool
) -> None:
    loop = story.Loop(2.0, 500, 0, 500, 500, 0)
    assert story.Chapter(True, rescue, 0x1000, loop, end, "", value).as_expected is expected


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("./absent/bzImage",), "./absent/bzImage: neither a file nor a package"),
        (("--rescue", "prayer"), "prayer: not one of grow"),
        (("--seconds", "0"), "--seconds"),
    ],
)
def test_linux_guest_bad_argument_is_a_usage_error(arguments: tuple[str, ...], words: str) -> None:
    done = run_script("linux_guest", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr


def test_linux_guest_without_qemu_says_what_to_install(tmp_path: Path) -> None:
    done = run_script("linux_guest", "linux-image-1", path=str(tmp_path))
    assert (done.returncode, done.stdout) == (3, "")
    assert "apt-get install qemu-system-x86" in done.stderr


@pytest.fixture
def qemu_that(tmp_path: Path, level1: Any) -> Callable[[str], str]:
    """A PATH on which QEMU is a line of shell; the firmware is the true one's."""
    require(shutil.which(level1.QEMU), level1.QEMU)

    def make(line: str) -> str:
        program = tmp_path / level1.QEMU
        program.write_text(f"#!/bin/sh\n{line}\n")
        program.chmod(0o755)
        (tmp_path / "bzImage").write_bytes(b"the kernel")
        return f"{tmp_path}:{os.environ['PATH']}"

    return make


def test_linux_guest_whose_level_1_ends_fails_with_its_last_words(
    qemu_that: Callable[[str], str], tmp_path: Path
) -> None:
    done = run_script(
        "linux_guest", "--json", str(tmp_path / "bzImage"), path=qemu_that("echo cannot do that >&2; exit 1")
    )
    found = json.loads(done.stdout)
    assert (done.returncode, found["chapters"]) == (1, [])
    assert "level 1 has ended; level 1 said last: cannot do that" in found["error"]


@pytest.mark.parametrize(("ending", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_linux_guest_that_is_ended_leaves_no_qemu(
    qemu_that: Callable[[str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ending: int,
    status: int,
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # SIGKILL leaves it temporary files
    path = qemu_that(f"echo $$ >{tmp_path}/pid.new; mv {tmp_path}/pid.new {tmp_path}/pid; exec sleep 600")
    with start_script("linux_guest", str(tmp_path / "bzImage"), path=path) as running:
        # it has nothing to wait for but its own QEMU's start
        while running.poll() is None and not (tmp_path / "pid").exists():
            time.sleep(0.02)
        qemu = os.pidfd_open(int((tmp_path / "pid").read_text()))
        running.send_signal(ending)
        assert running.wait(PATIENCE) == status
    # killed by the kernel, at the latest when its parent has ended; readable when that is done
    assert select.select([qemu], [], [], 10)[0]
    os.close(qemu)


@pytest.mark.slow
def test_linux_guest_loops_heals_and_is_ended() -> None:
    """Under a minute where nothing else runs."""
    require(shutil.which("qemu-system-x86_64"), "qemu-system-x86_64")
    done: subprocess.CompletedProcess[str] = run_script("linux_guest", "--json")
    require(done.returncode != 3, done.stderr.strip())
    found = json.loads(done.stdout)
    assert (done.returncode, found["error"]) == (0, None)
    ends = [(chapter["async_pf"], chapter["rescue"], chapter["end"]) for chapter in found["chapters"]]
    assert ends[:2] == [(True, "grow", "healed"), (True, "forbid", "stopped")]
    assert ends[3:5] == [(False, "grow", "healed"), (False, "forbid", "stopped")]
    # which of QEMU and the guest's kernel gives up first is a race, where async page faults are on
    assert {ends[2][2], ends[5][2]} <= {"died", "panic", "signal"}
