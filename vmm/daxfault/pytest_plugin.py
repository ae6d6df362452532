# SPDX-License-Identifier: Apache-2.0
"""A pytest plugin: files that are truncated, failed or delayed while the code under test has
them mapped.

    def test_reader_survives_a_truncated_file(daxfault_mount):
        daxfault_mount.write("data", bytes(1 << 20))
        reader = daxfault_mount.start(["my-reader", "data"])
        daxfault_mount.truncate("data", 0)
        assert reader.wait(10) == EXPECTED

Owns the fixtures, and one host per test session.  Must not import slow modules: every pytest of this
environment loads it.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap as constants
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 60.0  # seconds, limit for the host to start and to end
LACKING = 3  # exit code of a host when this machine lacks something


class DaxfaultHost:
    """A host, and the mount whose files it serves.  One per session."""

    def __init__(self, source: Path, mount: Path) -> None:
        self.source = source
        self.mount = mount
        self._loaded: Any = None
        self._named = pytest.MonkeyPatch()
        command = [sys.executable, "-m", "daxfault", "mount", "--programs", str(source), str(mount)]
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            _, why = self._process.communicate(timeout=PATIENCE)
            if self._process.returncode == LACKING:
                pytest.skip(why.strip())
            raise RuntimeError(why)
        from daxfault.vmm.programs import environment

        self.environment = environment.of_mount(mount)

    def ask(self, do: str, **arguments: Any) -> Any:
        """Send a request of daxfault.vmm.programs.control to the host."""
        from daxfault.vmm.programs import control

        return control.ask(self.mount, do, **arguments)

    def library(self) -> Any:
        """The library that programs preload, loaded into this process."""
        if self._loaded is None:
            from daxfault.native import preload

            wanted = {name: value for name, value in self.environment.items() if name != "LD_PRELOAD"}
            with pytest.MonkeyPatch.context() as patch:  # it reads the environment only when it is loaded
                for name, value in wanted.items():
                    patch.setenv(name, value)
                self._loaded = ctypes.CDLL(os.fspath(preload()), use_errno=True)
            # for daxfault.guard() to name the file
            self._named.setenv("DAXFAULT_MOUNT", wanted["DAXFAULT_MOUNT"])
            self._loaded.mmap.restype = ctypes.c_void_p
            self._loaded.mmap.argtypes = [
                ctypes.c_void_p,
                ctypes.c_size_t,
                ctypes.c_int,
                ctypes.c_int,
                ctypes.c_int,
                ctypes.c_long,
            ]
        return self._loaded

    def close(self) -> None:
        self._named.undo()
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.communicate(timeout=PATIENCE)
        finally:
            self._process.kill()


class DaxfaultMount:
    """A directory of the mount, for one test.

    `path` is the directory on the mount, for the code under test; `source` is the same directory in the
    backing.  Names are relative to it.
    """

    def __init__(self, host: DaxfaultHost, name: str) -> None:
        self._host = host
        self._name = name
        self._rules: list[int] = []
        self._started: list[subprocess.Popen[Any]] = []
        self._mapped: list[tuple[int, int]] = []
        self.source = host.source / name
        self.path = host.mount / name
        self.source.mkdir()

    # ---- the code under test

    @property
    def environment(self) -> dict[str, str]:
        """os.environ with the variables that a program needs to be served."""
        return os.environ | self._host.environment

    def start(self, command: Sequence[str | os.PathLike[str]], **options: Any) -> subprocess.Popen[Any]:
        """subprocess.Popen of a program whose mappings are served, in `path`; killed when the test ends."""
        wanted: dict[str, Any] = {"env": self.environment, "cwd": self.path, **options}
        process = subprocess.Popen(command, **wanted)
        self._started.append(process)
        return process

    def run(
        self, command: Sequence[str | os.PathLike[str]], *, timeout: float = PATIENCE, **options: Any
    ) -> subprocess.CompletedProcess[Any]:
        """start(), and wait for its end; subprocess.TimeoutExpired after `timeout` seconds."""
        process = self.start(command, **options)
        output, errors = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(command, process.returncode, output, errors)

    def map(self, name: str, *, write: bool = False, offset: int = 0, length: int = 0) -> memoryview:
        """mmap(2), MAP_SHARED, of a file in this process, served like a program's, until the test ends.

        A failing page raises SIGBUS, which kills this process unless daxfault.guard(), or another
        handler, catches it.  OSError as mmap(2).
        """
        protection = constants.PROT_READ | (constants.PROT_WRITE if write else 0)
        with open(self.path / name, "r+b" if write else "rb") as file:
            length = length or os.fstat(file.fileno()).st_size - offset
            at = self._host.library().mmap(
                None, length, protection, constants.MAP_SHARED, file.fileno(), offset
            )
        if at == ctypes.c_void_p(-1).value:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), name)
        self._mapped.append((at, length))
        view = memoryview((ctypes.c_char * length).from_address(at)).cast("B")
        return view if write else view.toreadonly()

    # ---- its files

    def write(self, name: str, data: bytes) -> Path:
        """Make a file; -> its path on the mount."""
        (self.source / name).write_bytes(data)
        return self.path / name

    def truncate(self, name: str, size: int) -> None:
        """truncate(2) through the mount: when it returns, no page past the new end is mapped."""
        os.truncate(self.path / name, size)

    def truncate_behind(self, name: str, size: int) -> None:
        """truncate(2) of the backing file: the host must notice it."""
        os.truncate(self.source / name, size)

    def inject(self, rule: str) -> int:
        """Add a rule of `daxfault inject`, for files of this test unless it has file=; -> its id."""
        if "file=" not in rule:
            rule += f",file={self._name}/*"
        id: int = self._host.ask("inject", rule=rule)
        self._rules.append(id)
        return id

    def fail(self, name: str, error: str = "EIO", **when: Any) -> int:
        """Make reads of the file's pages fail; `nth`, `count`, `probability`, `seed`, `offset="0-4K"` are
        those of a rule; -> its id."""
        return self.inject(self._rule(error, name, when))

    def delay(self, name: str, seconds: float, **when: Any) -> int:
        """Delay reads of the file's pages; otherwise as fail()."""
        return self.inject(self._rule(f"delay={seconds}", name, when))

    def _rule(self, what: str, name: str, when: dict[str, Any]) -> str:
        return ",".join([what, f"file={self._name}/{name}", *(f"{k}={v}" for k, v in when.items())])

    def clear(self) -> None:
        """Remove all rules of this test; the pages heal."""
        while self._rules:
            self._host.ask("remove", id=self._rules.pop())

    def records(self) -> list[dict[str, Any]]:
        """Failed faults on files of this test, oldest first (docs/abi.md, records)."""
        records: list[dict[str, Any]] = self._host.ask("records")
        return [record for record in records if Path(record["file"]).is_relative_to(self.path)]

    def close(self) -> None:
        self.clear()
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.wait(PATIENCE)
        libc = ctypes.CDLL(None)
        for at, length in self._mapped:
            libc.munmap(ctypes.c_void_p(at), ctypes.c_size_t(length))


@pytest.fixture(scope="session")
def daxfault_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaxfaultHost]:
    """The host of this test session; tests use `daxfault_mount`."""
    top = tmp_path_factory.mktemp("daxfault")
    source, mount = top / "source", top / "mount"
    source.mkdir()
    mount.mkdir()
    with contextlib.closing(DaxfaultHost(source, mount)) as host:
        yield host


@pytest.fixture
def daxfault_mount(
    daxfault_host: DaxfaultHost, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[DaxfaultMount]:
    """A new directory on a mount whose files can be truncated, failed or delayed while the code under
    test has them mapped (DaxfaultMount).  Skips if this machine cannot do it."""
    with contextlib.closing(DaxfaultMount(daxfault_host, tmp_path.name)) as mount:
        yield mount
