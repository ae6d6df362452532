# SPDX-License-Identifier: Apache-2.0
"""The layout of a cell's events as a sequence diagram.

Owns the choice of lifelines, the folding of repetitions, and all positions; the template draws them.
Units are CSS pixels at natural size.  Must not know designs or outcomes.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import re
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from daxfault.vmm.study.page.numbers import count, duration, rate

GUTTER = 50  # for the times
LANE = 90
HEAD = 34
LINE = 14  # of text
GAP = 14  # between steps
CHARACTER, BOLD = 6.1, 7.0  # generous means at the labels' size; text is not measured before it is drawn
WRAP = 30  # characters of a label's line
LONGEST_PERIOD = 12
FOLDED_FROM = 3  # repetitions
SLACK_FROM = 5  # turns with at least so many events may differ a little
MOST = 60  # steps that are drawn
LEFT_OUT = "..."  # an event that stands for others, which were left out

_RANKS = {"guest kernel": 1, "KVM": 2, "host": 3, "file": 4}
_ERRORS = re.compile(
    r"error|sigbus|sigsegv|efault|panic|poison|\bstop|kill|fail|\bhang|no page", re.IGNORECASE
)
_READY = re.compile(r"ready|wake|bytes|install|zeros", re.IGNORECASE)
_FAULTS = re.compile(r"fault|touch|access|retry", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, slots=True)
class Lane:
    """A lifeline and its owner."""

    x: float
    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One event.  An arrow from `x` to `to` at height `y`; a note on one lifeline where they are equal.

    `texts` are its lines, the first its name; centred at `at`, the first baseline at `top`.
    """

    x: float
    to: float
    y: float
    at: float
    top: float
    width: float
    texts: list[str]
    kind: str
    time: str
    words: str


@dataclasses.dataclass(frozen=True, slots=True)
class Frame:
    """Repeated steps: drawn once, with their number."""

    top: float
    bottom: float
    label: str


@dataclasses.dataclass(frozen=True, slots=True)
class Sequence:
    """The diagram."""

    lanes: list[Lane]
    steps: list[Step]
    frames: list[Frame]
    width: float
    height: float
    left_out: int = 0

    @property
    def texts(self) -> list[str]:
        """The diagram as text, for screen readers: a line per step, and the repetitions."""
        lines = []
        begins = {id(_first(frame, self.steps)): frame.label for frame in self.frames}
        for step in self.steps:
            label = begins.get(id(step))
            lines += [step.words] if label is None else [f"{label}:", step.words]
        return lines


def _first(frame: Frame, steps: list[Step]) -> Step | None:
    return next((step for step in steps if frame.top < step.top <= frame.bottom), None)


Event = Mapping[str, Any]


def laid_out(events: Iterable[Event], cycles: int = 0, per_second: float = 0.0) -> Sequence:
    """The diagram of `events`.

    A repeated run of events is drawn once.  `cycles` is the actual number of repetitions of the longest
    one, if more than the events show; `per_second` its rate.
    """
    listed = list(events)
    names = _lifelines(listed)
    lanes = [Lane(GUTTER + LANE / 2 + n * LANE, name) for n, name in enumerate(names)]
    width = GUTTER + LANE * max(len(lanes), 3) + 6
    at = {lane.name: lane.x for lane in lanes}
    runs = _through_gaps(folded(listed))
    most = max((times for _, times in runs), default=1)
    first = min((event["ns"] for event in listed), default=0)
    steps: list[Step] = []
    frames: list[Frame] = []
    y = float(HEAD)
    left_out = 0
    for run, times in runs:
        if len(steps) >= MOST:
            left_out += len(run) * times
            continue
        repeated = times >= FOLDED_FROM
        top = y + 4
        y += 26 if repeated else 0
        for event in run:
            step = _step(event, at, width, y, first)
            steps.append(step)
            y = max(step.y, step.top + LINE * (len(step.texts) - 1)) + GAP
        if repeated:
            often, speed = times, ""
            if times == most:
                often = max(times, cycles)
                speed = f", {rate(per_second)}" if per_second else ""
            frames.append(Frame(top, y, f"… × {count(often)}{speed}"))  # noqa: RUF001
            y += 10
    return Sequence(lanes, steps, frames, width, y + 8, left_out)


def _lifelines(events: list[Event]) -> list[str]:
    names = {str(name) for event in events for name in (event["who"], event.get("to")) if name}
    first = {name: n for n, name in reversed(list(enumerate(_order(events))))}

    def place(name: str) -> tuple[int, list[int], int]:
        if name.startswith("task"):
            return (0, [int(n) for n in re.findall(r"\d+", name)], 0)
        return (_RANKS.get(name, 5), [], first[name])

    return sorted(names, key=place)


def _order(events: list[Event]) -> list[str]:
    return [str(name) for event in events for name in (event["who"], event.get("to")) if name]


def folded(events: list[Event]) -> list[tuple[list[Event], int]]:
    """`events` as runs, each with its number of consecutive repetitions.

    Times, tokens and notes may differ.  Host and guest take their own time stamps, so the order within a
    long turn may also differ, and one event may be in the adjacent turn.
    """
    keys = [_key(event) for event in events]
    runs: list[tuple[list[Event], int]] = []
    begin = 0
    while begin < len(events):
        turns = _turns(keys, begin)
        if len(turns) < FOLDED_FROM:
            turns = [begin + 1]
        runs.append((events[begin : turns[0]], len(turns)))
        begin = turns[-1]
    return runs


def _turns(keys: list[tuple[Any, ...]], begin: int) -> list[int]:
    """The end of each turn from `begin` on that resembles the first one."""
    starts = [n for n in range(begin, len(keys)) if keys[n] == keys[begin]]
    if len(starts) < FOLDED_FROM or starts[1] - begin > LONGEST_PERIOD:
        return [begin + 1]
    first = collections.Counter(keys[begin : starts[1]])
    size = starts[1] - begin
    turns = []
    for start, after in itertools.zip_longest(starts, starts[1:], fillvalue=0):
        end = after or min(start + size, len(keys))
        turn = collections.Counter(keys[start:end])
        if _distance(first, turn) > (2 if size >= SLACK_FROM else 0):
            break
        turns.append(end)
    return turns or [begin + 1]


def _distance(one: collections.Counter[Any], other: collections.Counter[Any]) -> int:
    return ((one - other) + (other - one)).total()


def _through_gaps(runs: list[tuple[list[Event], int]]) -> list[tuple[list[Event], int]]:
    """`runs` without the start of a further repetition that is followed by a gap."""
    kept: list[tuple[list[Event], int]] = []
    for run, times in runs:
        kept.append((run, times))
        if run[0]["what"] != LEFT_OUT:
            continue
        folds = [n for n, (_, often) in enumerate(kept) if often >= FOLDED_FROM]
        after = [event for one, _ in kept[folds[-1] + 1 : -1] for event in one] if folds else []
        pattern = collections.Counter(_key(event) for event in kept[folds[-1]][0]) if folds else None
        if pattern is not None and (collections.Counter(map(_key, after)) - pattern).total() <= 1:
            del kept[folds[-1] + 1 :]
    return kept


def _key(event: Event) -> tuple[Any, ...]:
    return (event["who"], event.get("to"), event["what"])


def _step(event: Event, at: Mapping[str, float], width: float, y: float, first: int) -> Step:
    who, to = str(event["who"]), str(event.get("to") or event["who"])
    name = str(event["what"])
    if event.get("token"):
        token = event["token"]
        name += f", token {token:#x}" if isinstance(token, int) else f", token {token}"
    note = str(event.get("note") or "")
    names, notes = textwrap.wrap(name, WRAP) or ["?"], textwrap.wrap(note, WRAP + 4)
    texts = names + notes
    wide = 12 + max([len(text) * BOLD for text in names[:1]] + [len(text) * CHARACTER for text in texts[1:]])
    middle = (at[who] + at[to]) / 2
    centre = min(max(middle, GUTTER + wide / 2), width - 2 - wide / 2)
    top = y + LINE
    bottom = top + LINE * (len(texts) - 1)
    after = duration(event["ns"] - first)
    words = f"+{after} {who}{f' to {to}' if to != who else ''}: {name}{f' ({note})' if note else ''}"
    return Step(
        x=at[who],
        to=at[to],
        y=bottom + (8 if to != who else 6),
        at=centre,
        top=top,
        width=wide,
        texts=texts,
        kind=_kind(str(event["what"])),
        time=f"+{after}" if event["ns"] != first else "0",
        words=words,
    )


def _kind(what: str) -> str:
    for kind, words in (("error", _ERRORS), ("ready", _READY), ("fault", _FAULTS)):
        if words.search(what):
            return kind
    return "plain"
