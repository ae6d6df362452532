# SPDX-License-Identifier: Apache-2.0
"""Zeros that stand in for a page, out of reach of threads that are not guarded (pkeys(7)).

The test itself is C (tests/programs/guard_private.c): here on this machine, where its CPU has
such keys.
"""

import subprocess
from pathlib import Path

import pytest
from checkout import NATIVE, PROGRAMS
from patience import PATIENCE

SKIP = 77


def test_guard_with_protection_keys_keeps_unguarded_threads_out(tmp_path: Path) -> None:
    if not NATIVE.is_dir():
        pytest.skip("the C sources are not beside the tests")
    sources = [PROGRAMS / "guard_private.c", NATIVE / "base/maps.c"]
    sources += [NATIVE / f"guard/{name}.c" for name in ("guards", "sigbus", "aside")]
    flags = ["-std=gnu11", "-D_GNU_SOURCE", "-O1", "-g", "-Wall", "-Wextra", "-Werror"]
    flags += ["-Wno-unused-parameter", f"-I{NATIVE}"]
    program = tmp_path / "guard_private"
    subprocess.run(["cc", *flags, *sources, "-o", program, "-lpthread"], check=True)
    done = subprocess.run([program], capture_output=True, text=True, timeout=PATIENCE, check=False)
    if done.returncode == SKIP:
        pytest.skip("missing: protection keys (pku, in /proc/cpuinfo)")
    assert (done.returncode, done.stderr) == (0, "")
