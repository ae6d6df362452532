# SPDX-License-Identifier: Apache-2.0
"""Programs that read, store, move, unmap and fork while their files are truncated and grow,
through the mount and behind it.

tests/programs/storm.c checks every word against a model: garbage, zeros that no truncation explains,
stores that were lost.  Afterwards the files themselves are held against it, without the mount.
DAXFAULT_STRESS_SECONDS is how long each takes, DAXFAULT_STRESS_SEED its seed.
"""

import re
import subprocess
from pathlib import Path

import pytest
from run_host import Place, require_programs
from run_watched import SECONDS, SEED, built, watched

FLAWED = "1"  # the file whose page source fails now and then
FAULTS = (
    *("--fault", f"EIO,file=storm.{FLAWED},probability=0.02,seed={SEED}"),
    *("--fault", f"delay=0.002,file=storm.0,probability=0.05,seed={SEED}"),
)


def storm(
    tmp_path: Path, seconds: float, *options: str, flawed: str = "", seed: int = SEED
) -> dict[str, int]:
    """-> how often everything was done."""
    require_programs()
    program, place, model = built(tmp_path, "storm"), Place(tmp_path), tmp_path / "model"
    arguments = [model, str(seconds), str(seed), *([flawed] if flawed else [])]
    said = watched(
        place,
        *(program, "run", ".", place.source, *arguments),
        options=options,
        seconds=60 + 2 * seconds,
    )
    subprocess.run([program, "verify", place.source, model], check=True)
    counts = {name: int(count) for name, count in re.findall(r"(\w+) (\d+)", said)}
    # whoever was stopped by nothing but waiting has tested nothing
    for what in [
        "reads",
        "stores",
        "sigbus",
        "private",
        "syncs",
        "forks",
        "moves",
        "unmaps",
        "cuts",
        "kills",
    ]:
        assert counts[what], said
    return counts


def test_stores_and_truncations_at_once_lose_nothing_and_show_no_garbage(tmp_path: Path) -> None:
    storm(tmp_path, SECONDS or 6)


def test_stores_and_truncations_at_once_while_pages_are_evicted_lose_nothing(tmp_path: Path) -> None:
    storm(tmp_path, SECONDS or 6, "--cache", "256K", seed=SEED + 1)


def test_stores_and_truncations_at_once_while_the_source_fails_lose_nothing(tmp_path: Path) -> None:
    counts = storm(tmp_path, SECONDS or 6, "--cache", "256K", *FAULTS, flawed=FLAWED, seed=SEED + 2)
    assert counts["sigbus"]


@pytest.mark.slow
@pytest.mark.parametrize("round", range(3))
def test_stores_and_truncations_go_on_for_minutes(tmp_path: Path, round: int) -> None:
    options = [(), ("--cache", "256K"), ("--cache", "256K", *FAULTS)][round]
    storm(tmp_path, SECONDS or 200, *options, flawed=FLAWED if round == 2 else "", seed=SEED + 10 + round)
