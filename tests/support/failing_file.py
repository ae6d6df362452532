# SPDX-License-Identifier: Apache-2.0
"""A mapped file whose tail can be truncated, and programs that do so and get SIGBUS.

Owns the file.  Page i of it is full of the byte i + 1.
"""

import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from patience import PATIENCE

from daxfault import native

PAGE = native.PAGE_SIZE
PAGES = 16
KEPT = 4  # pages that cut() leaves


def content(pages: int = PAGES) -> bytes:
    return b"".join(bytes([i + 1]) * PAGE for i in range(pages))


class FailingFile:
    """`path`, and a shared writable mapping `map` of it."""

    def __init__(self, directory: Path, name: str = "file") -> None:
        self.path = directory / name
        self.path.write_bytes(content())
        self.map = self.mapped()

    def mapped(self, **options: int) -> mmap.mmap:
        with open(self.path, "r+b") as file:
            return mmap.mmap(file.fileno(), 0, **options)

    def cut(self, pages: int = KEPT) -> None:
        os.truncate(self.path, pages * PAGE)

    def heal(self) -> None:
        """As it was, but for the mapped pages before what was cut off: what they hold goes on."""
        kept = self.path.stat().st_size
        with open(self.path, "r+b") as file:
            file.seek(kept)
            file.write(content()[kept:])


def standing_in() -> list[str]:
    """The mappings of this process in which zeros stand in for a page, and the reserves for pages."""
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if _stands_in(line)]


def _stands_in(line: str) -> bool:
    span, _, offset, *_ = line.split()
    return line.endswith("/dev/zero") and int(span.split("-")[0], 16) == int(offset, 16)


def in_thread(function: Callable[[], None]) -> None:
    """Run it where nothing is raised in advance; raises what it raises."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as e:
            raised.append(e)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    for e in raised:
        raise e


# What every program below begins with: `array`, of which only the first page can be read.
PRELUDE = """
import ctypes, faulthandler, mmap, os, signal, sys, threading
import daxfault
PAGE = mmap.PAGESIZE
with open(sys.argv[1], "w+b") as file:
    file.write(b"x" * 4 * PAGE)
    file.flush()
    array = mmap.mmap(file.fileno(), 0)
    file.truncate(PAGE)
def in_thread(function):
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()
"""


def program(directory: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run PRELUDE and the script to its end."""
    return subprocess.run(
        [sys.executable, "-c", PRELUDE + script, os.fspath(directory / "data")],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
