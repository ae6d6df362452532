# SPDX-License-Identifier: Apache-2.0
"""The limit of descriptors, and the reserve for calls that must not fail (native/base/reserve.h).

Owns the limit.  Must not know what the descriptors are for.
"""

from __future__ import annotations

import os
import resource

from daxfault.native._daxfault import lib
from daxfault.native.errors import check

_soft_at_start, _ = resource.getrlimit(resource.RLIMIT_NOFILE)


def raise_limit() -> int:
    """Raise the soft RLIMIT_NOFILE to the hard one; -> the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        return 1 << 20  # the default of fs.nr_open, which bounds the limit
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def limit_at_start() -> int:
    """The soft limit at the start of this process; programs that it starts get it again."""
    return _soft_at_start


def for_file(fd: int) -> int:
    """Return `fd`, a file's descriptor.  If only the reserve is left: close it, OSError EMFILE."""
    return check(lib.df_reserve(fd, lib.DF_RESERVE_FILES), "descriptors")


def connections_of_one_process() -> int:
    """How many connections one process may have: with them it takes a third of what there is."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(4, soft // 16)


def room_for_guest() -> bool:
    """Whether another guest can be served."""
    try:
        fd = lib.df_reserve(os.open("/", os.O_PATH | os.O_CLOEXEC), lib.DF_RESERVE_GUESTS)
    except OSError:
        return False
    if fd >= 0:
        os.close(fd)
    return bool(fd >= 0)
