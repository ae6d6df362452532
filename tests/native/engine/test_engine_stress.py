# SPDX-License-Identifier: Apache-2.0
"""The engine under everything at once, and against guests that misuse their own userfaultfd.

The stress is C (tests/programs): guests that fault, move, unmap and fork while their files
change, every word checked against a model.  It is built here, plain and for
ThreadSanitizer; DAXFAULT_STRESS_SECONDS makes it longer and adds AddressSanitizer,
DAXFAULT_STRESS_SEED begins elsewhere.
"""

import fcntl
import functools
import mmap
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from checkout import NATIVE, PROGRAMS
from needs import require

from daxfault import native
from daxfault.vmm.host.uffd_features import bits

SEED = os.environ.get("DAXFAULT_STRESS_SEED", "1")
SECONDS = float(os.environ.get("DAXFAULT_STRESS_SECONDS", "0"))
HOST = ["stress.c", "stress_files.c"]
GUEST = ["stress_guest.c", "stress_vcpu.c"]
# the rooms of the engine, without what the host does not link
ENGINE = ["abi", "base", "source", "cache", "space", "apf", "keeper", "engine"]
OTHERS = ["probe.c", "laps.c", "main.c"]
SKIP = 77
# ioctl_userfaultfd(2)
THREAD_ID, EXACT_ADDRESS = bits("THREAD_ID"), bits("EXACT_ADDRESS")
SHMEM = bits("MISSING_SHMEM", "MINOR_SHMEM")
MISSING, MINOR = 1, 4


def build(program: Path, sources: list[Path], *options: str) -> bool:
    """Compile with the build's own strictness; -> whether it could be linked."""
    flags = ["-std=gnu11", "-D_GNU_SOURCE", "-O1", "-g", "-Wall", "-Wextra", "-Werror"]
    flags += ["-Wno-unused-parameter", "-Wno-sign-compare", f"-I{NATIVE}", *options]
    command: list[str | Path] = ["cc", *flags, *sources, "-o", program, "-lpthread"]
    done = subprocess.run(command, capture_output=True, text=True)
    if "cannot find" in done.stderr:  # the sanitizer's library is not installed
        return False
    assert done.returncode == 0, done.stderr
    return True


@pytest.fixture(scope="module")
def stress(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """The host with a sanitizer, and the guest."""
    if not NATIVE.is_dir():
        pytest.skip("the C sources are not beside the tests")
    directory, tests = tmp_path_factory.mktemp("stress"), PROGRAMS
    engine = [path for room in ENGINE for path in (NATIVE / room).glob("*.c") if path.name not in OTHERS]
    guest = directory / "stress_guest"
    # never sanitized: the runtime's own mappings would be in the way of its windows
    assert build(guest, [*(tests / name for name in GUEST), NATIVE / "base/uffd.c"])

    @functools.cache
    def host(sanitizer: str) -> tuple[Path, Path]:
        host = directory / f"stress.{sanitizer}"
        options = [f"-fsanitize={sanitizer}"] if sanitizer else []
        built = build(host, engine + [tests / name for name in HOST], *options)
        require(built, f"gcc -fsanitize={sanitizer}")
        return host, guest

    return host


@pytest.mark.parametrize("guests", [[], ["programs"]], ids=["guests", "programs"])
@pytest.mark.parametrize("sanitizer", ["", "thread", *(["address,undefined"] if SECONDS else [])])
def test_stress(
    stress: Callable[[str], tuple[Path, Path]], tmp_path: Path, sanitizer: str, guests: list[str]
) -> None:
    host, guest = stress(sanitizer)
    run = subprocess.run(
        [host, guest, tmp_path, str(SECONDS or 1), SEED, *guests],
        capture_output=True,
        text=True,
        timeout=120 + 4 * SECONDS,
    )
    require(run.returncode != SKIP, run.stderr.strip())
    print(run.stdout)
    assert run.returncode == 0, run.stdout + run.stderr


def userfaultfd(features: int) -> int:
    fd = int(native.lib.df_uffd_open(0))
    require(fd >= 0, "userfaultfd")
    require(native.lib.df_uffd_api(fd, features) == 0, f"userfaultfd features {features:#x}")
    return fd


def test_guest_that_makes_its_userfaultfd_blocking_does_not_hold_up_its_end() -> None:
    engine = native.Engine()
    try:
        for _ in range(20):
            features = THREAD_ID | EXACT_ADDRESS | SHMEM
            fd = userfaultfd(features)
            guest = engine.guest(os.dup(fd), features, os.getpid())
            # the open file is shared with the guest, and so are its status flags
            fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_NONBLOCK)
            begun = time.monotonic()
            guest.close()
            assert time.monotonic() - begun < 5
            os.close(fd)
    finally:
        engine.close()


def test_truncating_a_file_of_exabytes_looks_only_at_what_is_cached(tmp_path: Path) -> None:
    """Nobody else gets the file's lock meanwhile."""
    features = THREAD_ID | EXACT_ADDRESS | SHMEM
    uffd = userfaultfd(features)
    directory = Path("/dev/shm") if Path("/dev/shm").is_dir() else tmp_path
    path = directory / f"daxfault.{os.getpid()}"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    path.unlink()
    try:
        os.ftruncate(fd, 1 << 61)
    except OSError as e:
        os.close(fd)
        os.close(uffd)
        require(False, f"a file of 2 EiB: {e.strerror}")
    file = native.File(fd, writable=True)
    engine = native.Engine()
    try:
        cache = file.cache_fd(writable=True)
        offset = (1 << 61) - native.RANGE_SIZE
        window = mmap.mmap(cache, native.RANGE_SIZE, offset=offset)
        os.close(cache)
        start = int(native.ffi.cast("uintptr_t", native.ffi.from_buffer(window)))
        ioctls = native.ffi.new("uint64_t *")
        assert native.lib.uffd_register(uffd, start, len(window), MISSING | MINOR, ioctls) == 0
        guest = engine.guest(uffd, features, os.getpid())
        guest.map(start, native.RANGE_SIZE, file, offset, writable=True)
        # a fault of our own, with the GIL held: one that resolves never enters Python
        assert window[5] == 0
        assert file.state().resident > 0
        begun = time.monotonic()
        file.truncate(0)
        assert time.monotonic() - begun < 2
        assert file.state().resident == 0
        guest.close()
    finally:
        engine.close()
        file.close()


def test_change_behind_the_host_just_before_a_truncation_is_noticed(tmp_path: Path) -> None:
    """The stamp of our own truncation must not pass for the stranger's change."""
    path = tmp_path / "file"
    path.write_bytes(b"old" * 10000)
    file = native.File(os.open(path, os.O_RDWR), writable=True)
    try:
        time.sleep(0.02)  # a tick of the coarse clock that mtime has before Linux 6.13
        with path.open("r+b") as other:
            other.write(b"new")
        file.truncate(30000)
        assert file.recheck() & native.CHANGED_CONTENT
    finally:
        file.close()
