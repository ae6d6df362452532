# SPDX-License-Identifier: Apache-2.0
"""A campaign of faults against the whole product; see docs/reliability.md.

Each round is drawn from its seed: programs that stamp pages, and one to three events at random instants.
Owns the loop and the report.  Runs in a mount namespace of its own, which takes what a round mounts.

    python campaign.py [--rounds N] [--seed N] [--json FILE] [--keep DIR]

exit status: 0, 1 when a verdict failed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from campaign_events import EVENTS
from campaign_round import Result, Round
from checkout import PROGRAMS
from private_mounts import private_mounts

INSIDE = "DAXFAULT_CAMPAIGN_MOUNTS"


def built(top: Path) -> dict[str, Path]:
    """The program, linked dynamically and statically."""
    programs = {kind: top / f"campaign-{kind}" for kind in ("dynamic", "static")}
    flags = ["-std=gnu11", "-D_GNU_SOURCE", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-sign-compare"]
    for kind, path in programs.items():
        link = ["-static"] if kind == "static" else []
        subprocess.run(["cc", *flags, PROGRAMS / "campaign.c", "-o", path, *link], check=True)
    return programs


def played(seed: int, top: Path, programs: dict[str, Path]) -> Result:
    """Play one round in the empty directory `top`."""
    began = time.monotonic()
    r = Round(seed, top, programs)
    names = r.rng.sample(list(EVENTS), r.rng.randint(1, 3))
    events = [EVENTS[name] for name in names]
    r.log["may_fail"] = any(event.fails for event in events)
    killed = any(event.kills for event in events)
    try:
        r.begin(
            small=any(event.small for event in events) or r.rng.random() < 0.3,
            chained=any(event.chained for event in events),
            wrapped=any(event.wrapped for event in events),
        )
        for event in events:
            time.sleep(r.rng.uniform(0.02, 0.3))
            event.act(r)
        time.sleep(r.rng.uniform(0.05, 0.3))
        r.judge(
            may_lose=any(event.loses for event in events) or "full" in names,
            killed=killed,
            crashes=any(event.crashes for event in events),
        )
    except (RuntimeError, OSError, subprocess.SubprocessError) as e:
        r.wrong.append(f"{type(e).__name__}: {e}")
    finally:
        r.clean()
    counts = {name: r.log[name] for name in ("loads", "stores", "acks", "errors", "buses")}
    return Result(seed, names, r.wrong[:12], counts, round(time.monotonic() - began, 1))


def campaign(seeds: list[int], keep: Path | None) -> list[Result]:
    results = []
    with tempfile.TemporaryDirectory(prefix="campaign-") as directory:
        programs = built(Path(directory))
        for k, seed in enumerate(seeds, 1):
            top = Path(directory, str(seed))
            top.mkdir()
            result = played(seed, top, programs)
            results.append(result)
            print(
                f"{k} of {len(seeds)}: seed {seed}: {', '.join(result.events)}: {result.wrong or 'held'}",
                flush=True,
            )
            if keep and result.wrong:
                shutil.copytree(
                    top, keep / str(seed), ignore=shutil.ignore_patterns("mount", "between", "tmp")
                )
            shutil.rmtree(top, ignore_errors=True)
    return results


def summary(results: list[Result]) -> dict[str, object]:
    counts: Counter[str] = Counter()
    events: Counter[str] = Counter()
    for result in results:
        counts.update(result.counts)
        events.update(result.events)
    return {
        "rounds": len(results),
        "failed": [dataclasses.asdict(result) for result in results if result.wrong],
        "counts": dict(counts),
        "events": dict(events),
    }


def main() -> int:
    if os.environ.get(INSIDE) is None:
        # sockets of other hosts are not this campaign's
        prepare = (
            'mkdir -p -m 700 /run/daxfault-0 && mount -t tmpfs -o mode=700 none /run/daxfault-0 && exec "$@"'
        )
        os.environ[INSIDE] = "1"
        command = [*private_mounts(prepare), sys.executable, *sys.argv]
        os.execvp(command[0], command)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=1, help="how many; the seeds follow each other")
    parser.add_argument("--seed", type=int, action="append", help="the first round's; repeated: these rounds")
    parser.add_argument("--json", type=Path, help="write the report to this file")
    parser.add_argument("--keep", type=Path, help="copy what a failed round has left to this directory")
    told = parser.parse_args()
    seeds = told.seed or [random.SystemRandom().randrange(1 << 31)]
    if len(seeds) == 1:
        seeds = list(range(seeds[0], seeds[0] + told.rounds))
    results = campaign(seeds, told.keep)
    report = summary(results)
    print(json.dumps({name: report[name] for name in ("rounds", "counts", "events")}))
    for result in results:
        if result.wrong:
            print(f"failed: scripts/campaign --seed {result.seed}   # {', '.join(result.events)}")
    if told.json:
        told.json.write_text(json.dumps(report, indent=2) + "\n")
    return any(result.wrong for result in results)


if __name__ == "__main__":
    sys.exit(main())
