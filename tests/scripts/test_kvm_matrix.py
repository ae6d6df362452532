# SPDX-License-Identifier: Apache-2.0
"""scripts/kernels/kvm_matrix: kernels found and packed, and one of them asked where there is a QEMU.

QEMU is installed by the set-up of the tests, the kernel is fetched by the test itself.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from needs import require
from scripts_here import run_script, script_module, unpacked

from daxfault.native.kvm import probe_program


@pytest.fixture(scope="module")
def kernels() -> Any:
    return script_module("kvm_kernels")


def run_matrix(*arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    return run_script("kvm_matrix", *arguments, path=path)


@pytest.fixture
def with_qemu(tmp_path: Path) -> str:
    """A PATH with something by that name, which is not to be run."""
    (tmp_path / "qemu-system-x86_64").write_text("#!/bin/false\n")
    (tmp_path / "qemu-system-x86_64").chmod(0o755)
    return f"{tmp_path}:{os.environ['PATH']}"


def module(*names: str) -> bytes:
    return b"\x7fELF...license=GPL\0depends=" + ",".join(names).encode() + b"\0name=x\0"


def test_newest_takes_the_last_of_each_series(kernels: Any) -> None:
    names = [
        "linux-image-6.12.9+deb12-cloud-amd64",
        "linux-image-6.12.117+deb12-cloud-amd64",
        "linux-image-6.12-cloud-amd64",
        "linux-image-6.1.0-9-cloud-amd64",
        "linux-image-6.1.0-56-cloud-amd64",
        "linux-image-6.1.0-57-cloud-amd64-unsigned",
        "linux-image-6.1.0-57-amd64",
    ]
    assert kernels.newest(names) == [
        "linux-image-6.1.0-56-cloud-amd64",
        "linux-image-6.12.117+deb12-cloud-amd64",
    ]


def test_modules_are_loaded_after_what_they_depend_on(kernels: Any) -> None:
    modules = {
        "kvm_intel": module("kvm"),
        "kvm_amd": module("kvm", "ccp"),
        "kvm": module("irqbypass"),
        "irqbypass": module(),
        "ccp": module("built-in"),
    }
    assert list(kernels.in_order(modules)) == ["irqbypass", "kvm", "ccp", "kvm_amd"]


def test_initramfs_holds_init_and_modules(kernels: Any) -> None:
    kernel = kernels.Kernel("x", b"", {"kvm": module(), "kvm_amd": module("kvm")})
    found = unpacked(kernels.initramfs(kernel, b"the probe", b"the shell"))
    assert found["bin/probe"] == (0o100755, b"the probe")
    assert found["lib/kvm_amd.ko"] == (0o100644, module("kvm"))
    assert found["dev"][0] == 0o040755
    assert found["modules"] == (0o100644, b"kvm\nkvm_amd\n")
    assert found["init"][0] == 0o100755


def test_probe_program_needs_no_libraries(kernels: Any) -> None:
    assert kernels.is_static(probe_program().read_bytes())
    assert not kernels.is_static(Path(sys.executable).resolve().read_bytes())


def test_matrix_unknown_kernel_is_a_usage_error(with_qemu: str) -> None:
    done = run_matrix("./absent/bzImage", path=with_qemu)
    assert (done.returncode, done.stdout) == (2, "")
    assert "./absent/bzImage: neither a file nor a package" in done.stderr


def test_matrix_without_qemu_says_what_to_install(tmp_path: Path) -> None:
    done = run_matrix("linux-image-1", path=str(tmp_path))
    assert (done.returncode, done.stdout) == (3, "")
    assert "apt-get install qemu-system-x86" in done.stderr


def test_matrix_kernel_that_does_not_answer_fails(with_qemu: str, tmp_path: Path) -> None:
    image = tmp_path / "bzImage"
    image.write_bytes(b"no kernel")
    done = run_matrix("--json", str(image), path=with_qemu)
    (asked,) = json.loads(done.stdout)["kernels"]
    assert (done.returncode, asked["name"], asked["answers"]) == (1, str(image), None)
    assert asked["error"]


def test_matrix_newest_debian_kernel_loops_and_can_be_helped() -> None:
    """Some ten seconds; the first time it downloads 34 MB."""
    require(shutil.which("qemu-system-x86_64"), "qemu-system-x86_64")
    done = run_matrix("--json", "--newest")
    require(done.returncode != 3, done.stderr.strip())
    (asked,) = json.loads(done.stdout)["kernels"]
    error = asked["error"] or ""
    require(not error.startswith("apt-get download"), error)
    assert (done.returncode, asked["error"]) == (0, None)
    answers = asked["answers"]
    assert answers["kernel"]["release"] in asked["name"]
    assert (answers["cpu"]["hypervisor"], answers["kvm"]["backend"]) == ("TCGTCGTCGTCG", "svm")
    outcomes = {name: case["exit"] or case["outcome"] for name, case in answers["cases"].items()}
    assert outcomes == {
        "async_pf": "loop",
        "irqs_on": "loop",
        "irqs_off": "EFAULT",
        "no_irqchip": "EFAULT",
        "kernel": "loop",
    }
    rescues = answers["rescues"]
    assert (rescues["unmap"]["exit"], rescues["forbid"]["exit"]) == ("EFAULT", "EFAULT")
    assert rescues["shrink"]["works"]
    assert all(told["works"] for told in answers["injections"].values())
