# SPDX-License-Identifier: Apache-2.0
"""A host in a process of its own, for tests that end it without a word.

Serves argv[1]/backing at argv[1]/mount, adopts guests at argv[1]/socket, and prints
"ready" when both are there.
"""

import os
import sys
from pathlib import Path

import trio

from daxfault import fsd
from daxfault.vmm.designs import DESIGNS
from daxfault.vmm.host.host import hosting


async def serve(top: Path) -> None:
    fs = fsd.Filesystem(top / "backing")
    async with fsd.mounted(fs, top / "mount"), hosting(fs) as (host, nursery):
        await nursery.start(host.listen, os.fspath(top / "socket"), DESIGNS["report"])
        print("ready", flush=True)
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(serve, Path(sys.argv[1]))
