# SPDX-License-Identifier: Apache-2.0
"""A short campaign of faults (tests/support/campaign.py): seeds that have every event, and one that is new.

What fails is played again by scripts/campaign --seed.  DAXFAULT_STRESS_SEED is the new one's seed.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from campaign_events import EVENTS
from checkout import SUPPORT
from needs import require_root
from run_host import require_programs

SEEDS = (5, 10, 24, 34, 35, 471, 1168)  # together they have every event
NEW = int(os.environ.get("DAXFAULT_STRESS_SEED", "0")) or random.SystemRandom().randrange(1 << 31)


def campaign(directory: Path, *options: object, seconds: float) -> dict[str, object]:
    require_programs()
    require_root()  # it mounts
    report = directory / "report.json"
    command = [sys.executable, SUPPORT / "campaign.py", "--json", report, *options]
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, timeout=seconds
    )
    print(done.stdout)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    found: dict[str, object] = json.loads(report.read_text())
    return found


def test_campaign_of_every_event_and_a_new_seed_holds_what_is_promised(tmp_path: Path) -> None:
    seeds = [option for seed in (*SEEDS, NEW) for option in ("--seed", seed)]
    report = campaign(tmp_path, *seeds, seconds=280)
    assert report["failed"] == []
    events = report["events"]
    assert isinstance(events, dict)
    assert set(events) == set(EVENTS)


@pytest.mark.slow
def test_campaign_of_many_rounds_holds_what_is_promised(tmp_path: Path) -> None:
    assert campaign(tmp_path, "--rounds", 500, "--seed", NEW, seconds=3600)["failed"] == []
