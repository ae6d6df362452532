# SPDX-License-Identifier: Apache-2.0
"""Error reporting of this package.

Turns an OSError into the errno of a FUSE reply, and owns the exception for a failed mount.  Must not
react to a failure: it only translates.
"""

from __future__ import annotations

import errno
import functools
import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

import pyfuse3

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class MountError(Exception):
    """A mount was refused or failed.

    The message has the path, the problem and a remedy; the user sees it unchanged.
    """


def reply_errno(exc: OSError) -> int:
    """The positive errno of a FUSE reply for `exc`.

    Never ENOSYS: for most requests the kernel would not send that request again while this is mounted
    (fc->no_open, fc->no_fsync, ... in fs/fuse/), but a backing file system means only this call.  An
    OSError without an errno is EIO.
    """
    if exc.errno == errno.ENOSYS:
        return errno.EOPNOTSUPP
    return exc.errno or errno.EIO


def operation(handler: Callable[P, Awaitable[T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Wrap a FUSE request handler so that every failure is an errno.

    A handler of pyfuse3 may raise only FUSEError; any other exception ends its main loop, and so the
    mount.  An OSError becomes its errno, MemoryError becomes ENOMEM, and any other exception is a bug: it
    is logged with its traceback and answered with EIO.  Cancellation passes.

    A request on an inode first waits until its backing file system answers (locality.py).
    """
    parameters = list(inspect.signature(handler).parameters)
    of_inode = "inode" in parameters[1]
    named = len(parameters) > 2 and "name" in parameters[2]

    @functools.wraps(handler)
    async def answered(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            if of_inode:
                fs: Any = args[0]
                await fs.locality.ready(args[1], args[2] if named else None)
            return await handler(*args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except OSError as exc:
            raise pyfuse3.FUSEError(reply_errno(exc)) from exc
        except MemoryError as exc:
            raise pyfuse3.FUSEError(errno.ENOMEM) from exc
        except Exception as exc:
            log.exception("%s failed, answered with EIO", handler.__name__)
            raise pyfuse3.FUSEError(errno.EIO) from exc

    return answered
