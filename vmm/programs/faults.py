# SPDX-License-Identifier: Apache-2.0
"""Fault injection: rules that make accesses to files fail.

Owns the syntax of a rule (`EIO,file=*.db,nth=3`), and applies rules to the files that programs map,
by native.File.inject().
"""

from __future__ import annotations

import dataclasses
import errno
import fnmatch
import logging
import math
import os
import re
from collections.abc import Callable, Iterable
from pathlib import PurePath
from typing import Any

import trio

from daxfault.native import PAGE_SIZE, File
from daxfault.vmm.errors import logged

log = logging.getLogger(__name__)

NEVER = 3600.0  # seconds; the engine's own deadline for a page source is far shorter
EVERYTHING = 1 << 62
LOOK_SECONDS = 0.02  # between two checks of the trigger files

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class BadRule(ValueError):
    """An invalid rule; `str()` has the reason."""


@dataclasses.dataclass(frozen=True, slots=True)
class Rule:
    """At least one of error, delay (seconds) and truncate (bytes); [start, end) in bytes of the file.

    `file` is a pattern (fnmatch) for its path on the mount, or for the last component.  The first
    `nth` - 1 accesses pass, then `count` fail (0: all), each with `probability`.  `when`: only while
    this file exists.
    """

    file: str = "*"
    error: int = 0
    delay: float = 0.0
    truncate: int | None = None
    start: int = 0
    end: int = EVERYTHING
    nth: int = 1
    count: int = 0
    probability: float = 1.0
    seed: int = 0
    stores: bool = False
    when: str | None = None

    def matches(self, path: str) -> bool:
        """Whether the rule applies to the file at `path`, relative to the mount."""
        return fnmatch.fnmatchcase(path, self.file) or fnmatch.fnmatchcase(PurePath(path).name, self.file)

    def apply(self, file: File, tag: int) -> None:
        """Apply the rule until File.inject_remove(tag).  OSError as File.inject()."""
        start = self.start // PAGE_SIZE * PAGE_SIZE
        end = -(-self.end // PAGE_SIZE) * PAGE_SIZE
        file.inject(
            start,
            end - start,
            error=self.error,
            delay=self.delay,
            truncate=self.truncate,
            after=self.nth - 1,
            count=self.count,
            probability=self.probability,
            seed=self.seed,
            stores=self.stores,
            evict=True,
            tag=tag,
        )

    def __str__(self) -> str:
        """The text from which parse() makes this rule."""
        words = []
        if self.error:
            words.append(errno.errorcode[self.error])
        if self.delay >= NEVER:
            words.append("never")
        elif self.delay:
            words.append(f"delay={self.delay!r}")
        if self.truncate is not None:
            words.append(f"truncate={self.truncate}")
        if (self.start, self.end) != (0, EVERYTHING):
            words.append(f"offset={self.start}-{'' if self.end == EVERYTHING else self.end}")
        for name, otherwise in (("file", "*"), ("nth", 1), ("count", 0), ("seed", 0), ("when", None)):
            if (value := getattr(self, name)) != otherwise:
                words.append(f"{name}={value}")
        if self.probability < 1.0:
            words.append(f"probability={self.probability!r}")
        if self.stores:
            words.append("stores")
        return ",".join(words)


def parse(text: str) -> Rule:
    """`EIO,file=*.db,offset=0-64K,nth=3,count=1,probability=0.1,seed=7,stores,delay=0.5,truncate=4K,
    when=/tmp/go` -> a rule.  `EIO`: any errno's name; `never`: the page never arrives.  Raises BadRule."""
    fields: dict[str, Any] = {}
    for word in filter(None, (part.strip() for part in text.split(","))):
        name, value = _field(word)
        if name in fields:
            raise BadRule(f"{word}: {name} is given twice")
        fields |= value
    rule = Rule(**fields)
    if not rule.error and not rule.delay and rule.truncate is None:
        raise BadRule(f"{text!r} has no effect: give an errno (EIO), delay=SECONDS, never, or truncate=SIZE")
    return rule


def _field(word: str) -> tuple[str, dict[str, Any]]:
    name, given, value = word.partition("=")
    if not given and name in errno.errorcode.values():
        return "error", {"error": getattr(errno, name)}
    if word == "never":
        return "delay", {"delay": NEVER}
    if word == "stores":
        return "stores", {"stores": True}
    if name not in _FIELDS or not value:
        known = ", ".join(f"{known}=..." for known in _FIELDS)
        raise BadRule(f"{word}: an errno's name, never, stores, {known}")
    try:
        return name, _FIELDS[name](value)
    except (ValueError, OverflowError):
        raise BadRule(f"{word}: {_MEANING[name]} is needed") from None


def size(text: str) -> int:
    """`64K` -> 65536; ValueError when it is not a size, or more than 2**62."""
    match = re.fullmatch(r"(\d{1,19})([KMGT]?)", text)
    if match is None or (size := int(match[1]) * _UNITS[match[2]]) > EVERYTHING:
        raise ValueError(text)
    return size


def _span(text: str) -> dict[str, Any]:
    first, _, last = text.partition("-")
    start = size(first)
    end = size(last) if last else EVERYTHING if "-" in text else start + 1
    if end <= start:
        raise ValueError(text)
    return {"start": start, "end": end}


def _whole(name: str, least: int) -> Callable[[str], dict[str, Any]]:
    def read(text: str) -> dict[str, Any]:
        value = int(text)
        if not least <= value < 1 << 32:
            raise ValueError(text)
        return {name: value}

    return read


def _delay(text: str) -> dict[str, Any]:
    value = float(text)
    if not 0 < value <= NEVER:
        raise ValueError(text)
    return {"delay": value}


def _probability(text: str) -> dict[str, Any]:
    value = float(text)
    if not 0 < value <= 1 or math.isnan(value):
        raise ValueError(text)
    return {"probability": value}


_FIELDS: dict[str, Callable[[str], dict[str, Any]]] = {
    "file": lambda text: {"file": text},
    "offset": _span,
    "nth": _whole("nth", 1),
    "count": _whole("count", 1),
    "probability": _probability,
    "seed": _whole("seed", 0),
    "delay": _delay,
    "truncate": lambda text: {"truncate": size(text)},
    "when": lambda text: {"when": os.path.abspath(text)},
}
_MEANING = {
    "offset": "START-END, in bytes, with K, M, G or T",
    "nth": "a number from 1",
    "count": "a number from 1",
    "probability": "a number above 0, up to 1",
    "seed": "a number from 0",
    "delay": "seconds, up to 3600",
    "truncate": "a size in bytes, with K, M, G or T",
}


def _exist(paths: list[str]) -> list[bool]:
    return [os.path.exists(path) for path in paths]


@dataclasses.dataclass(slots=True)
class _Entry:
    id: int
    rule: Rule
    on: bool


class Rules:
    """The rules of a host.  `files` returns the files that programs map, with their paths on the mount."""

    def __init__(self, files: Callable[[], Iterable[tuple[str, File]]]) -> None:
        self._files = files
        self._entries: list[_Entry] = []
        self._next = 1
        self._triggers = trio.Event()

    def __iter__(self) -> Any:
        """(id, rule, whether it is active) of each."""
        return ((entry.id, entry.rule, entry.on) for entry in tuple(self._entries))

    def add(self, rule: Rule) -> int:
        """Add a rule; -> its id."""
        entry = _Entry(self._next, rule, rule.when is None)
        self._next += 1
        self._entries.append(entry)
        if rule.when is not None:
            self._triggers.set()
        if entry.on:
            self._begin(entry)
        return entry.id

    def remove(self, id: int | None) -> int:
        """Remove the rule `id`, None: all; -> the number of rules removed."""
        removed = [entry for entry in self._entries if id is None or entry.id == id]
        self._entries = [entry for entry in self._entries if entry not in removed]
        for entry in removed:
            if entry.on:
                self._end(entry)
        return len(removed)

    def opened(self, path: str, file: File) -> None:
        """Apply the rules to a file that a program is about to map and no other maps."""
        for entry in self._entries:
            if entry.on and entry.rule.matches(path):
                entry.rule.apply(file, entry.id)

    async def watch(self) -> None:
        """Watch the trigger files until cancelled."""
        while True:
            await self._triggers.wait()
            waiting = [entry for entry in self._entries if entry.rule.when is not None]
            if not waiting:
                self._triggers = trio.Event()
                continue
            # in a thread: the file may be on our own mount
            there = await trio.to_thread.run_sync(_exist, [entry.rule.when or "" for entry in waiting])
            for entry, exists in zip(waiting, there, strict=True):
                if entry.on == exists or entry not in self._entries:
                    continue
                entry.on = exists
                with logged(log, "rule %s", entry.rule):
                    if exists:
                        self._begin(entry)
                    else:
                        self._end(entry)
            await trio.sleep(LOOK_SECONDS)

    def _begin(self, entry: _Entry) -> None:
        for path, file in self._files():
            if entry.rule.matches(path):
                entry.rule.apply(file, entry.id)

    def _end(self, entry: _Entry) -> None:
        for _, file in self._files():
            file.inject_remove(entry.id)
            file.heal()
