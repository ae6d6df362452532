# SPDX-License-Identifier: Apache-2.0
"""What this process sends to its keeper (native/keeper), of the whole process.

Owns nothing: the list of what is kept is C's.  Must not know how a keeper is started.
"""

from __future__ import annotations

from daxfault.native._daxfault import lib
from daxfault.native.errors import check


def keep_with(socket: int) -> None:
    """Send all that is to be kept to a new keeper behind `socket`, which stays the caller's, and from now on
    what comes; -1: there is none."""
    lib.df_keeper(socket)


def send() -> int:
    """Send what is waiting, as far as there is room; -> how many messages still wait, or a negative errno:
    this keeper is lost."""
    return int(lib.df_keeper_send())


def ping() -> None:
    """Send a message that asks for nothing."""
    lib.df_keeper_ping()


def end() -> None:
    """This process ends in good order."""
    lib.df_keeper_end()


def waiting_fd() -> int:
    """An eventfd(2), readable when send() is to be called."""
    return check(lib.df_keeper_fd(), "eventfd")


def live() -> bool:
    """Have the keeper notice the death of the calling thread, until left(); -> whether it can: only of the
    first of its process."""
    return not lib.df_keeper_live()


def left() -> None:
    lib.df_keeper_left()


def keep_socket(fd: int) -> None:
    """Register a socket: the keeper closes the connection when this process dies."""
    lib.df_keep_socket(fd)


def keep_no_socket(fd: int) -> None:
    """It is about to be closed."""
    lib.df_keep_no_socket(fd)
