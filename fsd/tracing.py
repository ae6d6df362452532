# SPDX-License-Identifier: Apache-2.0
"""Records the begin and end of each request of a mount.

Owns the recording.  Replaces only the handlers of the traced object, so that an untraced file system has
no cost.
"""

from __future__ import annotations

import dataclasses
import inspect
import time
from collections.abc import Callable
from typing import Any

import pyfuse3

from daxfault.fsd.filesystem import Filesystem

# parameters of handlers that say what a request was about
_RECORDED = ("inode", "parent_inode", "fh", "off", "start_id", "size", "flags", "name")


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """One request.  Times are CLOCK_MONOTONIC in ns; `error` is the errno of the answer, or 0; `about` has
    some of the arguments, by name."""

    name: str
    begin_ns: int
    end_ns: int
    error: int
    about: dict[str, int | str]


def trace(fs: Filesystem, note: Callable[[Request], None]) -> None:
    """Call `note` after each request of `fs`, in the mount's thread.  Must be called before the mount."""
    for name in dir(pyfuse3.Operations):
        handler = getattr(fs, name)
        if not name.startswith("_") and inspect.iscoroutinefunction(handler):
            setattr(fs, name, _noted(name, handler, note))


def _noted(name: str, handler: Callable[..., Any], note: Callable[[Request], None]) -> Callable[..., Any]:
    parameters = list(inspect.signature(handler).parameters)

    async def noted(*args: Any) -> Any:
        begin = time.monotonic_ns()
        error = 0
        try:
            return await handler(*args)
        except pyfuse3.FUSEError as exc:
            error = exc.errno
            raise
        finally:
            about = _about(dict(zip(parameters, args, strict=False)))
            note(Request(name, begin, time.monotonic_ns(), error, about))

    return noted


def _about(named: dict[str, Any]) -> dict[str, int | str]:
    about: dict[str, int | str] = {}
    for name in _RECORDED:
        value = named.get(name)
        if isinstance(value, bytes):
            about[name] = value.decode(errors="replace")
        elif isinstance(value, int):
            about[name] = int(value)
    if isinstance(buf := named.get("buf"), bytes):
        about["size"] = len(buf)
    return about
