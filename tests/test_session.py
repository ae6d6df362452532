# SPDX-License-Identifier: Apache-2.0
"""The tests' own safeguards: waits end, and what a test leaves is found."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import session
from needs import require_root
from patience import within


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of temporary files, in which nothing is left yet."""
    monkeypatch.setattr(session, "SECONDS", 0.0)
    monkeypatch.setenv(session.MARK, os.fspath(tmp_path))
    assert session.left_behind(tmp_path, tmp_path) == []
    return tmp_path


def test_within_a_wait_that_has_no_bound_fails_the_test() -> None:
    reader, writer = os.pipe()
    try:
        with (
            pytest.raises(pytest.fail.Exception, match=r"the pipe took more than 0\.05 s"),
            within(0.05, "the pipe"),
        ):
            os.read(reader, 1)
    finally:
        os.close(reader)
        os.close(writer)


def test_within_an_outer_bound_that_is_shorter_fails_at_the_outer_one() -> None:
    with pytest.raises(pytest.fail.Exception, match="outer"), within(0.05, "outer"), within(30, "inner"):
        time.sleep(30)


def test_within_a_bound_that_has_ended_the_outer_one_goes_on() -> None:
    def inner() -> None:
        with within(0.01, "inner"):
            pass
        time.sleep(30)

    with pytest.raises(pytest.fail.Exception, match="outer"), within(0.1, "outer"):
        inner()


def test_left_behind_process_is_found_by_its_environment(empty: Path) -> None:
    script = "import subprocess; print(subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL).pid)"
    orphan = int(subprocess.check_output([sys.executable, "-c", script], text=True))
    try:
        assert session.left_behind(empty, empty) == [f"process {orphan}: sleep 60 "]
    finally:
        os.kill(orphan, 9)


def test_left_behind_child_is_found_whatever_its_environment(empty: Path) -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, env={}) as child:
        assert session.left_behind(empty, empty) == [f"process {child.pid}: cat "]


def test_left_behind_mount_and_file_are_found(empty: Path) -> None:
    require_root()
    place = empty / "mount"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
    try:
        assert session.left_behind(empty, empty) == [os.fspath(place), f"mount {place}"]
    finally:
        subprocess.run(["umount", place], check=True)
