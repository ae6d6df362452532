# SPDX-License-Identifier: Apache-2.0
"""The common parts of the stories of both guests: their file, and the form of the results.

Must not run anything, nor print.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from daxfault.native import PAGE_SIZE
from daxfault.vmm.errors import Unsupported, UsageError

VIAS = ("mount", "behind")
SMALLEST = 8 * PAGE_SIZE
DEFAULT_SIZE = 16 * PAGE_SIZE
TAIL = 100  # bytes of the last page that survive the truncation
NOTICE_SECONDS = 5.0  # for the host to notice a change

Progress = Callable[[str], None]


class Observed(Protocol):
    """One access of the guest, and its result."""

    @property
    def ok(self) -> bool: ...

    def as_json(self) -> dict[str, Any]: ...


A = TypeVar("A", bound=Observed)


@dataclasses.dataclass(frozen=True)
class Story(Generic[A]):
    """One way to truncate, under one design, or None for the kernel's behaviour.  Sizes in bytes."""

    design: str | None
    via: str
    size: int
    cut: int
    noticed_ms: float
    accesses: tuple[A, ...]

    @property
    def ok(self) -> bool:
        return all(access.ok for access in self.accesses)

    def as_json(self) -> dict[str, Any]:
        return {
            "design": self.design,
            "via": self.via,
            "size": self.size,
            "cut": self.cut,
            "noticed_ms": self.noticed_ms,
            "accesses": [access.as_json() for access in self.accesses],
            "ok": self.ok,
        }


@dataclasses.dataclass(frozen=True)
class Outcome(Generic[A]):
    """All stories of one run; `file` None: it was generated."""

    guest: str
    file: Path | None
    stories: tuple[Story[A], ...]
    kernel: str = dataclasses.field(default_factory=platform.release)

    @property
    def ok(self) -> bool:
        return all(story.ok for story in self.stories)

    def as_json(self) -> dict[str, Any]:
        """`version` counts changes of this form.  Sizes are in bytes, guest addresses in hexadecimal."""
        return {
            "version": 1,
            "guest": self.guest,
            "kernel": self.kernel,
            "file": self.file_name,
            "ok": self.ok,
            "stories": [story.as_json() for story in self.stories],
        }

    @property
    def file_name(self) -> str:
        return str(self.file) if self.file else "generated"


def with_hexadecimal(fields: dict[str, Any], *names: str) -> dict[str, Any]:
    """`fields` with the addresses in `names` as hexadecimal text."""
    return fields | {name: None if fields[name] is None else hex(fields[name]) for name in names}


def through(via: str) -> str:
    return "through the mount" if via == "mount" else "behind the mount"


def check_file(file: Path | None) -> None:
    """Raise UsageError when `file` cannot be the story's file."""
    if file is None:
        return
    if not file.is_file():
        raise UsageError(f"{file}: not a regular file")
    if file.stat().st_size < SMALLEST:
        raise UsageError(f"{file}: has {file.stat().st_size} bytes; at least {SMALLEST} are needed")


def make_file(path: Path, source: Path | None) -> int:
    """Make a copy of `source`, or random bytes, at `path`; -> its size."""
    try:
        if source is not None:
            shutil.copyfile(source, path)
        else:
            path.write_bytes(os.urandom(DEFAULT_SIZE))
    except OSError as e:
        if source is not None and e.filename == os.fspath(source):
            raise UsageError(f"{source}: {e.strerror}") from e
        raise Unsupported(f"{path}: {e.strerror}; TMPDIR names another place for it") from e
    return path.stat().st_size


def cut_of(size: int) -> int:
    """Where the story truncates a file of `size` bytes: in the middle, within a page."""
    return size // 2 // PAGE_SIZE * PAGE_SIZE + TAIL
