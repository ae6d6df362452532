# SPDX-License-Identifier: Apache-2.0
"""How failures of this package are reported.

Owns the one place where an OSError becomes the errno of a FUSE reply, and the
exception for a mount that could not be made.  Must not decide what to do about
a failure: it only translates.
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

    The message names the path, what is wrong with it and what to do about it;
    it is meant to be shown to a person as it stands.
    """


def reply_errno(exc: OSError) -> int:
    """The positive errno to answer a FUSE request with, for `exc`.

    ENOSYS never passes: for most requests the kernel takes it to mean "do not
    ask again while this is mounted" (fc->no_open, fc->no_fsync, ... in
    fs/fuse/), which is not what a backing file system meant by it.  An OSError
    without an errno is EIO.
    """
    if exc.errno == errno.ENOSYS:
        return errno.EOPNOTSUPP
    return exc.errno or errno.EIO


def operation(handler: Callable[P, Awaitable[T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Wrap a FUSE request handler so that every failure is an errno.

    pyfuse3 lets only FUSEError out of a handler; anything else ends its main
    loop and with it the mount.  An OSError becomes its errno, MemoryError
    becomes ENOMEM, and any other exception is a bug: logged with its traceback
    and answered with EIO.  Cancellation passes.

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
