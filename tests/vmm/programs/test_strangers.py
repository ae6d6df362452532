# SPDX-License-Identifier: Apache-2.0
"""Other users of the machine: none answers in a host's place, or chooses what root mounts and unmounts."""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command_line import environment
from needs import require_root
from patience import PATIENCE
from run_host import Place, require_programs

from daxfault.vmm.errors import UsageError
from daxfault.vmm.programs import control, sockets

VICTIM, MALLORY = 61001, 61002  # nobody's; no process of theirs outlives its test


def as_user(uid: int, call: Callable[[], object]) -> None:
    """Call it in a child process of this user, which has to end well."""
    child = os.fork()
    if not child:
        status = 1
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            call()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory as /tmp is, in which users look for their hosts."""
    require_root()
    with tempfile.TemporaryDirectory() as made:  # pytest's own are closed to others
        path = Path(made)
        path.chmod(0o1777)
        monkeypatch.setenv("XDG_RUNTIME_DIR", made)
        yield path


def refused() -> None:
    for ask in (lambda: control.ask("/", "status"), sockets.make_directory):
        with pytest.raises(UsageError, match=f"daxfault-{VICTIM}"):
            ask()


def test_directory_of_sockets_is_closed_to_others(shared: Path) -> None:
    as_user(VICTIM, sockets.make_directory)
    as_user(VICTIM, sockets.make_directory)  # it is there
    status = (shared / f"daxfault-{VICTIM}").stat()
    assert (status.st_uid, status.st_mode & 0o777) == (VICTIM, 0o700)


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o777])
def test_directory_of_sockets_that_another_user_made_is_refused(shared: Path, mode: int) -> None:
    def make() -> None:
        (shared / f"daxfault-{VICTIM}").mkdir()
        (shared / f"daxfault-{VICTIM}").chmod(mode)

    as_user(MALLORY, make)
    as_user(VICTIM, refused)


def test_directory_of_sockets_that_others_may_write_to_is_refused(shared: Path) -> None:
    as_user(VICTIM, lambda: (shared / f"daxfault-{VICTIM}").mkdir())
    (shared / f"daxfault-{VICTIM}").chmod(0o777)
    as_user(VICTIM, refused)


def test_directory_of_sockets_that_is_a_link_is_refused(shared: Path) -> None:
    (shared / "elsewhere").mkdir()
    os.chown(shared / "elsewhere", VICTIM, VICTIM)
    as_user(MALLORY, lambda: (shared / f"daxfault-{VICTIM}").symlink_to(shared / "elsewhere"))
    as_user(VICTIM, refused)


def test_answer_of_another_user_is_not_believed(shared: Path) -> None:
    as_user(VICTIM, sockets.make_directory)
    device = os.stat("/").st_dev
    path = shared / f"daxfault-{VICTIM}" / f"{os.major(device)}:{os.minor(device)}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
        path.chmod(0o666)
        as_user(MALLORY, listener.listen)  # SO_PEERCRED is of who listens (unix(7))

        def ask() -> None:
            with pytest.raises(UsageError, match=f"belongs to user {MALLORY}"):
                control.ask("/", "status")

        as_user(VICTIM, ask)


def test_long_runtime_directory_gives_a_short_path(monkeypatch: pytest.MonkeyPatch) -> None:
    require_root()
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/" + 200 * "x")

    def check() -> None:
        assert str(sockets.programs(1)) == f"/tmp/daxfault-{VICTIM}/0:1.programs"

    as_user(VICTIM, check)


def test_run_with_a_long_temporary_directory_is_served(place: Place) -> None:
    place.top = place.top / ("x" * 100)
    place.top.mkdir()
    (place.source / "f").write_bytes(b"f" * 4096)
    script = "import mmap; f = open('f', 'r+b'); print(mmap.mmap(f.fileno(), 0)[0])"
    assert place.python(script).out == "102\n"


# ---- run --user, for root


@contextlib.contextmanager
def mounted_elsewhere(top: Path) -> Iterator[Path]:
    """A mount of root's that is none of the run's."""
    path = top / "elsewhere"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", path], check=True)
    try:
        yield path
    finally:
        assert subprocess.run(["umount", path], check=False).returncode == 0


@pytest.mark.parametrize("mode", [0o1777, 0o777], ids=["sticky", "not sticky"])
def test_user_of_a_run_cannot_choose_what_root_unmounts(mode: int) -> None:
    require_root()
    require_programs()
    with tempfile.TemporaryDirectory() as made, mounted_elsewhere(Path(made)) as elsewhere:
        top = Path(made)
        top.chmod(0o755)
        source, temporary = top / "source", top / "tmp"
        source.mkdir()
        temporary.mkdir()
        temporary.chmod(mode)
        script = f"t=$(dirname $PWD); cd /; mv $t $t.x && mkdir $t && ln -s {elsewhere} $t/mnt; echo $?"
        run = [sys.executable, "-m", "daxfault", "run", "--source", source, "--user", "nobody"]
        done = subprocess.run(
            [*run, "--", "sh", "-c", script],
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
            cwd="/",
            env=environment(temporary),
        )
        assert done.returncode == 0, done.stderr
        assert (done.stdout == "0\n") == (mode == 0o777), done.stderr
        assert elsewhere.is_mount()
        assert f" {temporary}" not in Path("/proc/self/mountinfo").read_text()
