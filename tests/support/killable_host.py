# SPDX-License-Identifier: Apache-2.0
"""A host in a process of its own, which a test can kill, and stand-ins driven without a trio loop.

Owns their processes; what they serve is under the test's own directory.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import trio
from needs import require, require_fuse, require_root
from patience import within

from daxfault import fsd, native
from daxfault.vmm.designs import DESIGNS
from daxfault.vmm.host.host import hosting


class Lines:
    """A stand-in driven without a loop: commands in, JSON lines out."""

    def __init__(self, path: Path) -> None:
        self.process = subprocess.Popen(
            [native.standin(), "--socket", path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.window = int(self.read("ready")["window"], 16)

    def read(self, event: str) -> dict[str, Any]:
        assert self.process.stdout is not None
        with within(what=event):
            for line in self.process.stdout:
                found: dict[str, Any] = json.loads(line)
                assert found["event"] in (event, "host_lost")
                if found["event"] == event:
                    return found
        raise AssertionError(f"the stand-in ended before {event}")

    def do(self, command: str, event: str = "done") -> dict[str, Any]:
        self.send(command)
        return self.read(event)

    def send(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def killable_host(top: Path) -> Iterator["subprocess.Popen[str]"]:
    """A host process over `top`; what it leaves mounted is unmounted."""
    require_fuse()
    require_root()  # umount(8) of a mount that its server has left
    try:
        native.uffd_probe()
    except OSError as e:
        require(False, f"userfaultfd: {e}")
    for name in ("backing", "mount"):
        (top / name).mkdir()
    process = subprocess.Popen([sys.executable, __file__, top], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        with within(what="the host"):
            assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()
        subprocess.run(["umount", "-l", top / "mount"], check=False, stderr=subprocess.DEVNULL)


# ---- the child


async def serve(top: Path) -> None:
    """Serve top/backing at top/mount and adopt guests at top/socket; print "ready" when both are there."""
    fs = fsd.Filesystem(top / "backing")
    async with fsd.mounted(fs, top / "mount"), hosting(fs) as (host, nursery):
        await nursery.start(host.listen, os.fspath(top / "socket"), DESIGNS["report"])
        print("ready", flush=True)
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(serve, Path(sys.argv[1]))
