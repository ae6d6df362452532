# SPDX-License-Identifier: Apache-2.0
"""What becomes of a Linux guest whose window has lost its file, and of each attempt to help it.

Owns what is looked for, and the verdict.  Must not boot anything, nor print.  A chapter: the file of a guest
is truncated, the loop is measured, then one rescue is tried.

    grow    the file is as long again: nothing is done to anybody's memory
    forbid  PROT_NONE over the tail, in QEMU, by daxfault-rescue
    unmap   the tail is unmapped
    poison  poisoned memory in place of the tail
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

from linux_level1 import FILL, WINDOW_BYTES, Ended, Faults, Level1

RESCUES = ("grow", "forbid", "poison", "unmap")
# More than vmm/kvm/detector.py's suspicion.  On level 1's one CPU, QEMU and the kernel's thread that answers
# the faults take turns: thousands a second or a dozen.
ROUNDS = 20
WATCH = 2.0
# a guest under two emulations is slow to say what became of it, on a busy machine slower still
SETTLE = 30.0


@dataclasses.dataclass(frozen=True, slots=True)
class Loop:
    """The loop while it was watched, for `seconds`.  `told` is level 2's own count of page ready, or None."""

    seconds: float
    faults: int
    fixed: int
    not_present: int
    told: int | None
    loads: int

    @property
    def per_second(self) -> float:
        return self.faults / self.seconds

    @property
    def seen(self) -> bool:
        """Faults that nobody fixes, and a process that does not get on."""
        counts = [self.faults - self.fixed]
        if self.told is not None:
            counts += [self.not_present, self.told]
        return min(counts) >= ROUNDS and self.loads == 0


@dataclasses.dataclass(frozen=True, slots=True)
class Chapter:
    """One rescue.  `end` is "healed", "signal", "panic", "stopped", "died", "refused" or "loop"; `why`
    has the words of whoever ended it."""

    async_pf: bool
    rescue: str
    gva: int
    loop: Loop
    end: str
    why: str
    value: int | None

    @property
    def as_expected(self) -> bool:
        """The loop was there; it heals with the file, and never outlasts another rescue."""
        if self.rescue == "grow":
            right = self.end == "healed" and self.value == 0
        elif self.end == "refused":
            right = self.rescue == "poison" and "Invalid argument" in self.why  # before Linux 6.6
        else:
            right = self.end in ("signal", "panic", "stopped", "died")
        return self.loop.seen and right


def progress(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in events if "touches" in event]


def until(level1: Level1, condition: Callable[[], bool], seconds: float) -> bool:
    """Whether it came true within so many seconds; it is looked at whenever something was said."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        level1.wait(0.25)
    return True


def boot(level1: Level1, async_pf: bool) -> None:
    """Boot a guest and let it load bytes of its window."""
    level1.boot_level2(async_pf)

    def loads() -> bool:
        seen = progress(level1.events)
        return bool(seen) and seen[-1]["touches"] >= 3

    while not loads():
        level1.wait()
        wrong = [event["error"] for event in level1.events if "error" in event]
        if wrong:
            raise Ended(f"level 2: {wrong[0]}")
        if not level1.events and not level1.alive():
            raise Ended(f"level 2 does not boot: {' | '.join(level1.said()[-3:])}")
    if progress(level1.events)[-1]["value"] != ord(FILL):
        raise Ended("level 2 does not see the file in its window")


def between(first: Faults, last: Faults, seen: list[dict[str, Any]], async_pf: bool) -> Loop:
    """The loop between two looks at KVM, with what level 2 said meanwhile."""
    ends = (seen[0], seen[-1]) if seen else ({"touches": 0, "told": 0}, {"touches": 0, "told": 0})
    return Loop(
        seconds=last.at - first.at,
        faults=last.taken - first.taken,
        fixed=last.fixed - first.fixed,
        not_present=last.not_present - first.not_present,
        told=ends[1]["told"] - ends[0]["told"] if async_pf else None,
        loads=ends[1]["touches"] - ends[0]["touches"],
    )


def truncate(level1: Level1, async_pf: bool) -> Loop:
    """Cut the window's file to half, and watch what its last page does to the guest."""
    level1.must(f"truncate -s {WINDOW_BYTES // 2} /tmp/window")
    # the child may have been between two loads, and level 2 has a line on its way
    first = level1.faults()
    until(level1, lambda: level1.faults().taken > first.taken, SETTLE)
    heard = len(level1.events)
    until(level1, lambda: len(level1.events) > heard, SETTLE)
    first, heard = level1.faults(), len(level1.events)

    def watched() -> Loop:
        return between(first, level1.faults(), progress(level1.events[heard:]), async_pf)

    def enough() -> bool:
        loop = watched()
        return loop.seen and loop.seconds >= WATCH

    until(level1, enough, SETTLE)
    return watched()


def panic(console: list[str]) -> str | None:
    """How a kernel ended itself, with the machine check that made it, or None."""
    told = [line for line in console if "mce: [Hardware Error]" in line or "Kernel panic" in line]
    words = [line.partition("] ")[2].strip() for line in told if "PROCESSOR" not in line]
    if not any("panic" in line for line in words):
        return None
    return "; ".join(line.removeprefix("mce: [Hardware Error]: ") for line in words)


def outcome(level1: Level1, touches: int) -> tuple[str, str] | None:
    """The end that the guest has come to, and its words; None: none yet."""
    signals = [event for event in level1.events if "sigbus" in event]
    if signals:
        return "signal", f"SIGBUS, si_code {signals[0]['sigbus']}, si_addr {signals[0]['gva']:#x}"
    if words := panic(level1.console):
        return "panic", words
    seen = progress(level1.events)
    if seen[-1]["touches"] >= touches + 3:
        return "healed", f"{seen[-1]['touches'] - touches} loads more"
    said = level1.said()
    if not level1.alive():
        return "died", said[-1] if said else "QEMU has ended without a word"
    failed = [line for line in said if "kvm run failed" in line]
    return ("stopped", failed[0]) if failed else None


def rescue(level1: Level1, how: str) -> tuple[str, str]:
    """Try it; the end, and the words for it."""
    touches = progress(level1.events)[-1]["touches"]
    if how == "grow":
        level1.must(f"truncate -s {WINDOW_BYTES} /tmp/window")
    else:
        status, said = level1.run(f"daxfault-rescue $QEMU /tmp/window {how}")
        if status:
            return "refused", " | ".join(said)
    end = time.monotonic() + SETTLE
    found = None
    while found is None and time.monotonic() < end:
        level1.wait(0.25)
        found = outcome(level1, touches)
    return found or ("loop", f"it goes on, {SETTLE:g} s after")


def run_chapter(level1: Level1, async_pf: bool, how: str, healed: Chapter | None) -> Chapter:
    """A loop and a rescue.  A guest that was `healed`, in the chapter before, serves again."""
    if healed is None or healed.async_pf != async_pf:
        boot(level1, async_pf)
    gva = int(progress(level1.events)[-1]["gva"])
    loop = truncate(level1, async_pf)
    end, why = rescue(level1, how)
    value = progress(level1.events)[-1]["value"] if end == "healed" else None
    return Chapter(async_pf, how, gva, loop, end, why, value)
