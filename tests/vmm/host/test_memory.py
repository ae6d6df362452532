# SPDX-License-Identifier: Apache-2.0
"""What page caches may have when nobody says."""

from pathlib import Path

import pytest

from daxfault.vmm.host import memory

MIB = 1 << 20


def limit(folder: Path, name: str, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text + "\n")


@pytest.mark.parametrize("name", ["memory.max", "memory.high"])
def test_least_limit_of_the_cgroups_above_counts(tmp_path: Path, name: str) -> None:
    (tmp_path / "self").write_text("0::/a/b\n")
    limit(tmp_path / "a/b", "memory.max", "max")
    limit(tmp_path / "a", name, str(64 * MIB))
    limit(tmp_path, "memory.max", str(512 * MIB))
    assert memory.cgroup_limit(tmp_path / "self", tmp_path) == 64 * MIB


def test_limit_of_a_version_1_hierarchy_counts(tmp_path: Path) -> None:
    (tmp_path / "self").write_text("4:memory:/a\n1:cpu:/\n0::/\n")
    limit(tmp_path / "memory/a", "memory.limit_in_bytes", str(32 * MIB))
    assert memory.cgroup_limit(tmp_path / "self", tmp_path) == 32 * MIB


def test_no_limit_is_none(tmp_path: Path) -> None:
    (tmp_path / "self").write_text("0::/\n")
    assert memory.cgroup_limit(tmp_path / "self", tmp_path) is None


def test_default_is_a_share_of_the_memory_there_is() -> None:
    assert memory.LEAST <= memory.default_limit() <= memory.total() // memory.SHARE


@pytest.mark.parametrize(("left", "expected"), [(200, 500), (50, 300 - 12), (0, 300 - 62)])
def test_limit_eases_by_what_the_machine_is_short_of(left: int, expected: int) -> None:
    assert memory.eased(500 * MIB, 300 * MIB, left * MIB, 62 * 16 * MIB) == expected * MIB
