# SPDX-License-Identifier: Apache-2.0
"""What hits the mount and the programs of a round of the campaign.

Owns the table of events: which of them let an access fail, and which let stores get lost that nobody
acknowledged.  No event waits for the mount: it may never answer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import resource
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from campaign_round import BEHIND, OWNERS, PAGE, PAGES, Round

from daxfault.vmm.errors import DaxfaultError
from daxfault.vmm.programs import control

_LASTS = 0.3  # seconds that a process is stopped


@dataclasses.dataclass(frozen=True)
class Event:
    act: Callable[[Round], None]
    fails: bool = False  # accesses and calls of programs may fail
    loses: bool = False  # what was stored and not acknowledged may be lost
    kills: bool = False  # the host ends
    crashes: bool = False  # the host may end, with a traceback
    small: bool = False  # needs a small file system behind
    chained: bool = False  # needs a server behind that can be stopped
    wrapped: bool = False  # needs a program that `daxfault run` has started


def _signalled(number: int, *pids: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _stop(r: Round, *pids: int) -> None:
    r.restore.append(lambda: _signalled(signal.SIGCONT, *pids))
    _signalled(signal.SIGSTOP, *pids)
    time.sleep(_LASTS)
    _signalled(signal.SIGCONT, *pids)


def _program(r: Round) -> int:
    return r.rng.choice(r.workers[1:]).pid


def _ask(r: Round, do: str, **arguments: object) -> None:
    def ask() -> None:
        with contextlib.suppress(DaxfaultError, OSError):
            control.ask(r.mount, do, **arguments)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(2)


def _inject(effect: str) -> Callable[[Round], None]:
    def act(r: Round) -> None:
        r.restore.append(lambda: _ask(r, "remove"))
        _ask(r, "inject", rule=f"{effect},file=file,seed={r.rng.randrange(1000)}")

    return act


def _never(r: Round) -> None:
    _inject("never,probability=0.2")(r)
    time.sleep(0.5)
    _ask(r, "remove")


def _truncate(r: Round) -> None:
    for _ in range(5):
        r.start("truncate", "-s", r.rng.randrange(PAGES + 1) * PAGE, r.mount / "wild")
        time.sleep(0.02)


def _truncate_behind(r: Round) -> None:
    for _ in range(20):
        with contextlib.suppress(OSError):  # a full file system
            os.truncate(r.origin / "wild", r.rng.randrange(PAGES * PAGE))
        time.sleep(0.005)


def _write_behind(r: Round) -> None:
    with (r.origin / "file").open("r+b") as file:
        for _ in range(20):
            page = r.rng.randrange(BEHIND, PAGES, OWNERS)
            r.write_behind(file.fileno(), page, r.log.page(page)[0] + 1)
            time.sleep(0.005)


def _fill(r: Round) -> None:
    ballast = r.origin / "ballast"
    r.restore.append(lambda: ballast.unlink(missing_ok=True))
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(bytes(PAGE)):
            pass


def _limit(what: int, field: Callable[[int], int]) -> Callable[[Round], None]:
    def act(r: Round) -> None:
        if what == resource.RLIMIT_AS and os.environ.get("DAXFAULT_SANITIZED"):
            return  # a sanitizer's runtime gives up without memory
        pid = r.host.pid
        with contextlib.suppress(OSError):
            before = resource.prlimit(pid, what)
            r.restore.append(lambda: resource.prlimit(pid, what, before))
            resource.prlimit(pid, what, (field(pid), before[1]))

    return act


def _descriptors(pid: int) -> int:
    return max(map(int, os.listdir(f"/proc/{pid}/fd")), default=0) + 2  # none: it is dying


def _address_space(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * PAGE + (1 << 20)


EVENTS = {
    "kill the host": Event(lambda r: r.host.kill(), fails=True, loses=True, kills=True),
    "stop the host": Event(lambda r: _stop(r, r.host.pid)),
    "kill the keeper": Event(lambda r: _signalled(signal.SIGKILL, *r.keepers())),
    "stop the keeper": Event(lambda r: _stop(r, *r.keepers())),
    "kill a program": Event(lambda r: _signalled(signal.SIGKILL, _program(r))),
    "stop a program": Event(lambda r: _stop(r, _program(r))),
    "kill the wrapper": Event(lambda r: r.workers[0].kill(), wrapped=True),
    "truncate": Event(_truncate),
    "truncate behind": Event(_truncate_behind),
    "write behind": Event(_write_behind),
    "EIO": Event(_inject("EIO,probability=0.3"), fails=True),
    "delay": Event(_inject("delay=0.02,probability=0.3")),
    "never": Event(_never),
    "full": Event(_fill, fails=True, small=True),
    "few descriptors": Event(_limit(resource.RLIMIT_NOFILE, _descriptors), fails=True),
    "little memory": Event(
        # libfuse's session ends when it has no memory for a request
        _limit(resource.RLIMIT_AS, _address_space),
        fails=True,
        loses=True,
        crashes=True,
    ),
    "abort": Event(lambda r: r.call("umount", "-f", r.mount) and None, fails=True, loses=True, kills=True),
    "detach": Event(lambda r: r.call("umount", "-l", r.mount) and None, fails=True, loses=True, kills=True),
    "stop the backing server": Event(lambda r: r.backing and _stop(r, r.backing.pid), chained=True),
}
