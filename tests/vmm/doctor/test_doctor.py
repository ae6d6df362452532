# SPDX-License-Identifier: Apache-2.0
"""`daxfault doctor`: what is found, and what is concluded from it."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkout import ROOT
from needs import require, require_fuse

from daxfault import native
from daxfault.vmm.doctor import devices
from daxfault.vmm.doctor import report as doctor
from daxfault.vmm.doctor.report import Machine, Report, Userfaultfd
from daxfault.vmm.host.uffd_features import FEATURES, has, needed_but_missing

ALL = (1 << len(FEATURES)) - 1


@pytest.fixture(scope="module")
def found() -> Report:
    return doctor.probe()


@pytest.fixture
def capable(found: Report) -> Machine:
    """A machine that lacks nothing, run by an ordinary user."""
    opened = tuple(
        dataclasses.replace(
            device, present=True, openable=True, owner="root:root 0666", problem=None, mend=None
        )
        for device in found.machine.devices
    )
    enough = tuple(dataclasses.replace(s, enough=True, mend=None) for s in found.machine.settings)
    return dataclasses.replace(
        found.machine,
        machine="x86_64",
        uid=1000,
        native=None,
        userfaultfd=Userfaultfd(ALL, True, None),
        devices=opened,
        settings=enough,
    )


def without_device(machine: Machine, path: str) -> Machine:
    refused = (
        dataclasses.replace(device, openable=False, problem="Permission denied", mend=f"mend {path}")
        if device.path == path
        else device
        for device in machine.devices
    )
    return dataclasses.replace(machine, devices=tuple(refused))


def without_setting(machine: Machine, name: str) -> Machine:
    lacking = (
        dataclasses.replace(setting, enough=False, mend=f"mend {name}") if setting.name == name else setting
        for setting in machine.settings
    )
    return dataclasses.replace(machine, settings=tuple(lacking))


def without_feature(machine: Machine, name: str) -> Machine:
    bits = machine.userfaultfd.bits or 0
    bit = next(feature.bit for feature in FEATURES if feature.name == name)
    return dataclasses.replace(machine, userfaultfd=Userfaultfd(bits & ~(1 << bit), True, None))


def works(machine: Machine) -> dict[str, bool]:
    return {ability.name: ability.works for ability in doctor.conclude(machine)}


def test_features_are_numbered_as_in_the_kernel_header() -> None:
    assert [feature.bit for feature in FEATURES] == list(range(17))
    known = {feature.name: feature.bit for feature in FEATURES}
    headers = Path("/usr/include/linux/userfaultfd.h"), ROOT / "native/abi/compat.h"
    text = "".join(header.read_text() for header in headers)
    defined = re.findall(r"#define UFFD_FEATURE_(\w+)\s+\(1\s*<<\s*(\d+)\)", text)
    assert {"POISON", "EVENT_FORK"} <= {name for name, _ in defined}
    assert [(name, int(bit)) for name, bit in defined if known.get(name) != int(bit)] == []


def test_features_missing_from_an_old_kernel_are_named() -> None:
    linux_5_10 = (1 << 9) - 1
    assert [feature.name for feature in needed_but_missing(linux_5_10)] == ["MINOR_SHMEM", "EXACT_ADDRESS"]


def test_features_unknown_name_is_an_error() -> None:
    with pytest.raises(KeyError):
        has(ALL, "MIND_READING")


def test_conclude_capable_machine_can_do_all_but_fork(capable: Machine) -> None:
    assert works(capable) == {
        "repro": True,
        "mount": True,
        "report": True,
        "poison": True,
        "fork": False,  # CAP_SYS_PTRACE
        "behind": True,
    }


def test_conclude_root_can_follow_forks(capable: Machine) -> None:
    assert works(dataclasses.replace(capable, uid=0))["fork"]


@pytest.mark.parametrize(
    ("lack", "lost", "told"),
    [
        (
            lambda m: without_device(m, "/dev/fuse"),
            {"repro", "mount", "report", "poison", "behind"},
            "mend /dev",
        ),
        (
            lambda m: without_setting(m, "fusermount3"),
            {"repro", "mount", "report", "poison", "behind"},
            "mend fusermount3",
        ),
        (lambda m: without_device(m, "/dev/kvm"), set(), ""),
        (lambda m: without_setting(m, "user_allow_other"), set(), ""),
        (lambda m: without_setting(m, "fs.inotify.max_user_watches"), {"behind"}, "mend fs.inotify"),
        (lambda m: without_feature(m, "POISON"), {"poison"}, "Linux 6.6"),
        (lambda m: without_feature(m, "EXACT_ADDRESS"), {"repro", "report", "poison"}, "Linux 5.18"),
        (lambda m: without_feature(m, "WP_ASYNC"), set(), ""),
        (lambda m: dataclasses.replace(m, machine="aarch64"), {"repro", "report", "poison"}, "aarch64"),
        (lambda m: dataclasses.replace(m, native="no such symbol"), {"repro", "report", "poison"}, "symbol"),
    ],
    ids=[
        "no-fuse",
        "no-fusermount3",
        "no-kvm",
        "no-allow-other",
        "few-watches",
        "no-poison",
        "no-exact-address",
        "no-wp-async",
        "other-architecture",
        "not-built",
    ],
)
def test_conclude_machine_that_lacks_something_says_why(
    capable: Machine, lack: Callable[[Machine], Machine], lost: set[str], told: str
) -> None:
    before = works(capable)
    for ability in doctor.conclude(lack(capable)):
        assert ability.works == (before[ability.name] and ability.name not in lost)
        if ability.name in lost:
            assert told in ability.reason


def test_conclude_user_mode_only_userfaultfd_is_not_enough(capable: Machine) -> None:
    """Faults inside system calls would end in EFAULT, without an event."""
    limited = dataclasses.replace(
        without_device(capable, "/dev/userfaultfd"),
        userfaultfd=Userfaultfd(ALL, False, "userfaultfd: Operation not permitted"),
    )
    repro = next(ability for ability in doctor.conclude(limited) if ability.name == "repro")
    assert not repro.works
    assert "mend /dev/userfaultfd" in repro.reason


def test_probe_bits_are_the_kernels(found: Report) -> None:
    require(found.machine.userfaultfd.kernel_faults, "userfaultfd with kernel-mode faults")
    assert found.machine.userfaultfd.bits == native.uffd_probe()


def test_probe_poison_raises_one_of_two_codes() -> None:
    require(has(native.uffd_probe(user_mode_only=True), "POISON"), "UFFD_FEATURE_POISON (Linux 6.6)")
    assert native.poison_code() in (2, 4)  # BUS_ADRERR, BUS_MCEERR_AR


def test_probe_here_can_reproduce(found: Report) -> None:
    require_fuse()
    require(found.repro, found.ability("repro").reason)


def test_devices_missing_file_is_mended_by_loading_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(path: str) -> None:
        raise FileNotFoundError(2, "No such file or directory", path)

    monkeypatch.setattr(os, "stat", absent)
    device = devices.fuse()
    assert (device.present, device.openable, device.mend) == (False, False, "modprobe fuse")


def test_devices_refused_to_a_user_is_mended_by_its_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    require_fuse()

    def refuse(path: str, flags: int) -> int:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    device = devices.fuse()
    assert (device.present, device.problem, device.mend) == (
        True,
        "Permission denied",
        "chmod 0666 /dev/fuse",
    )


def test_devices_refused_to_root_has_no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    require_fuse()

    def refuse(path: str, flags: int) -> int:
        raise PermissionError(1, "Operation not permitted", path)

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert devices.fuse().mend is None


def run_doctor(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "daxfault", "doctor", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )


def test_command_json_has_the_documented_keys(found: Report) -> None:
    done = run_doctor("--json")
    answer: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (0 if found.repro else 3)
    assert answer["repro"] == found.repro
    assert answer["schema"] == 1
    assert doctor.__doc__
    for key in answer:
        assert f"\n    {key} " in doctor.__doc__
    assert answer["features"][11] | {"here": None} == {
        "bit": 11,
        "name": "EXACT_ADDRESS",
        "since": "5.18",
        "use": "report the byte that was touched, not its page",
        "needed": True,
        "here": None,
    }


def test_command_tables_name_every_feature_and_device() -> None:
    done = run_doctor()
    for feature in FEATURES:
        assert feature.name in done.stdout
    for path in ("/dev/fuse", "/dev/userfaultfd", "/dev/kvm"):
        assert path in done.stdout
