# SPDX-License-Identifier: Apache-2.0
"""`daxfault mount`, as a person runs it: started, used, ended, refused; nothing stays mounted."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from needs import require_fuse
from patience import PATIENCE


@dataclass(frozen=True)
class Place:
    """A directory with one file, and an empty one to mount it on."""

    source: Path
    mountpoint: Path

    def command(self, *options: str) -> list[str]:
        return [sys.executable, "-m", "daxfault", "mount", *options, str(self.source), str(self.mountpoint)]

    def start(self, *options: str) -> "subprocess.Popen[str]":
        """A mount in the foreground that answers."""
        child = subprocess.Popen(
            self.command(*options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/"
        )
        assert child.stdout
        line = child.stdout.readline()
        if "is served at" not in line:
            _, log = child.communicate(timeout=PATIENCE)
            pytest.fail(f"the mount did not start: {line}{log}")
        return child

    def refused(self, *options: str) -> "subprocess.CompletedProcess[str]":
        """A mount that does not come about."""
        return subprocess.run(
            self.command(*options), capture_output=True, text=True, check=False, timeout=PATIENCE, cwd="/"
        )

    def is_mounted(self) -> bool:
        return f" {self.mountpoint} " in Path("/proc/self/mountinfo").read_text()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    require_fuse()
    place = Place(tmp_path / "source", tmp_path / "mount")
    place.source.mkdir()
    place.mountpoint.mkdir()
    (place.source / "file").write_text("bytes")
    yield place
    left = place.is_mounted()
    if left:
        subprocess.run(["umount", "-l", place.mountpoint], check=False)
    assert not left


def wait_for_end(pid: int) -> None:
    """Return when the process, no child of ours, has ended."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([pidfd], [], [], PATIENCE)[0], f"process {pid} goes on"
    finally:
        os.close(pidfd)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
def test_foreground_signal_unmounts_and_ends_with_0(place: Place, number: signal.Signals) -> None:
    with place.start() as child:
        assert (place.mountpoint / "file").read_text() == "bytes"
        child.send_signal(number)
        assert child.wait(PATIENCE) == 0
    assert not place.is_mounted()


def test_foreground_unmounted_by_another_ends_with_0(place: Place) -> None:
    with place.start() as child:
        subprocess.run(["umount", place.mountpoint], check=True)
        assert child.wait(PATIENCE) == 0


def test_foreground_open_file_does_not_keep_it_mounted(place: Place) -> None:
    with place.start() as child:
        fd = os.open(place.mountpoint / "file", os.O_RDONLY)
        child.send_signal(signal.SIGINT)
        assert child.wait(PATIENCE) == 0
        assert not place.is_mounted()
    with pytest.raises(OSError, match="not connected"):
        os.close(fd)


def test_foreground_verbose_tells_of_the_signal(place: Place) -> None:
    with place.start("--verbose") as child:
        child.send_signal(signal.SIGTERM)
        _, log = child.communicate(timeout=PATIENCE)
    assert "SIGTERM" in log


def test_foreground_relative_paths_are_the_callers(place: Place) -> None:
    command = [sys.executable, "-m", "daxfault", "mount", "source", "mount"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        cwd=place.source.parent,
        env=os.environ | {"PYTHONSAFEPATH": "1"},
    ) as child:
        assert child.stdout
        assert str(place.mountpoint) in child.stdout.readline()
        child.send_signal(signal.SIGINT)
        assert child.wait(PATIENCE) == 0


def test_pid_file_is_there_while_mounted(place: Place, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    with place.start("--pid-file", str(pid_file)) as child:
        assert pid_file.read_text() == f"{child.pid}\n"
        child.send_signal(signal.SIGTERM)
        assert child.wait(PATIENCE) == 0
    assert not pid_file.exists()


def test_pid_file_that_cannot_be_written_leaves_nothing_mounted(place: Place, tmp_path: Path) -> None:
    done = place.refused("--pid-file", str(tmp_path / "nowhere" / "pid"))
    assert done.returncode == 2
    assert "No such file" in done.stderr
    assert not place.is_mounted()


def test_daemon_answers_when_the_command_returns(place: Place, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    # its pipes reach end of file only if the daemon holds none of them
    done = place.refused("--daemon", "--pid-file", str(pid_file))
    pid = int(pid_file.read_text())
    try:
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert (place.mountpoint / "file").read_text() == "bytes"
        assert os.getsid(pid) not in (pid, os.getsid(0))  # a new session that the daemon does not lead
        assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")
    finally:
        os.kill(pid, signal.SIGTERM)
        wait_for_end(pid)
    assert not place.is_mounted()
    assert not pid_file.exists()


@pytest.mark.parametrize("mode", ["--foreground", "--daemon"])
class TestRefused:
    """Each refusal has the same words and the same code in both modes."""

    def test_missing_source_is_named(self, place: Place, mode: str) -> None:
        done = Place(place.source / "nowhere", place.mountpoint).refused(mode)
        assert done.returncode == 2
        assert str(place.source / "nowhere") in done.stderr
        assert len(done.stderr.splitlines()) == 1

    def test_mountpoint_missing_is_named(self, place: Place, mode: str) -> None:
        done = Place(place.source, place.mountpoint / "nowhere").refused(mode)
        assert done.returncode == 2
        assert str(place.mountpoint / "nowhere") in done.stderr

    def test_mountpoint_that_is_a_file_is_named(self, place: Place, mode: str) -> None:
        done = Place(place.mountpoint, place.source / "file").refused(mode)
        assert done.returncode == 2
        assert "not a directory" in done.stderr

    def test_mountpoint_not_empty_is_named(self, place: Place, mode: str) -> None:
        done = Place(place.mountpoint, place.source).refused(mode)
        assert done.returncode == 2
        assert "not empty" in done.stderr

    def test_mountpoint_in_use_is_named(self, place: Place, mode: str) -> None:
        with place.start() as child:
            done = place.refused(mode)
            assert done.returncode == 2
            assert "already" in done.stderr
            child.send_signal(signal.SIGINT)
            assert child.wait(PATIENCE) == 0

    def test_negative_timeout_is_a_usage_error(self, place: Place, mode: str) -> None:
        assert place.refused(mode, "--attr-timeout", "-1").returncode == 2
