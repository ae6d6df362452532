# SPDX-License-Identifier: Apache-2.0
"""The same random operations on a mount and on an ordinary file system: the same outcomes.

tests/programs/mapfsx.c writes down what every call and every access came to: bytes, errors, signals
and their addresses.  DAXFAULT_STRESS_SEED is the first sequence's number.
"""

import itertools
import os
import subprocess
from pathlib import Path

import pytest
from run_host import Place, require_programs
from run_watched import SEED, built, watched

STEPS = 40


def sequences(log: Path) -> dict[str, list[str]]:
    """The lines of each."""
    found: dict[str, list[str]] = {}
    for part in log.read_text().split("== sequence ")[1:]:
        number, *lines = part.splitlines()
        found[number] = lines
    return found


def differences(one: dict[str, list[str]], other: dict[str, list[str]]) -> list[str]:
    """Where each sequence first differs: what comes after depends on it."""
    found = []
    for number, lines in one.items():
        for a, b in itertools.zip_longest(lines, other.get(number, [])):
            if a != b:
                found.append(f"sequence {number}:\n  {a}\n  {b}")
                break
    return found


def compare(tmp_path: Path, first: int, count: int, *options: str, seconds: float) -> None:
    require_programs()
    mapfsx = built(tmp_path, "mapfsx")
    logs = {name: tmp_path / name for name in ("native", "ours")}
    plain, place = tmp_path / "plain", Place(tmp_path)
    plain.mkdir()
    arguments = [str(first), str(count), str(STEPS)]
    subprocess.run([mapfsx, plain, logs["native"], *arguments], check=True, timeout=seconds)
    watched(place, mapfsx, ".", logs["ours"], *arguments, options=options, seconds=seconds)
    native, ours = sequences(logs["native"]), sequences(logs["ours"])
    assert len(native) == count
    found = differences(native, ours)
    print(f"{count} sequences of {STEPS} steps from {first} on, {len(found)} differ")
    assert not found, "\n".join(found[:10])
    assert os.listdir(place.source) == []


def test_operations_on_mapped_files_give_the_bytes_errors_and_addresses_of_an_ordinary_file(
    tmp_path: Path,
) -> None:
    compare(tmp_path, SEED, 100, seconds=120)


def test_operations_give_the_same_while_the_page_cache_is_too_small(tmp_path: Path) -> None:
    compare(tmp_path, SEED + 1000000, 50, "--cache", "16K", seconds=120)


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--cache", "16K")])
def test_many_operations_give_the_same(tmp_path: Path, options: tuple[str, ...]) -> None:
    compare(tmp_path, SEED + 2000000, 5000, *options, seconds=1800)
