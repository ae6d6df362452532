# SPDX-License-Identifier: Apache-2.0
"""native: the C part of daxfault, and its only interface to Python.

Owns userfaultfd, the fault engine's threads, the page cache of each file, and the guest's
side.  Must not know FUSE or policy, nor print.
"""

from __future__ import annotations

from daxfault.native._daxfault import ffi, lib
from daxfault.native.engine import Counters, Engine, Failure, Guest, process_files
from daxfault.native.enums import Abi, Answer, Cpuid, CpuState, Delivery, GuestFlag, Posted, Reason, Wait
from daxfault.native.errors import check
from daxfault.native.file import CHANGED_CONTENT, CHANGED_SIZE, File, FileState, SyncErrors
from daxfault.native.keeping import keep_no_socket, keep_socket
from daxfault.native.programs import keeper, preload, program, standin, tracer
from daxfault.native.trace import Trace, TraceKind
from daxfault.native.uffd import Event, EventKind, Mode, Uffd

__all__ = [
    "CHANGED_CONTENT",
    "CHANGED_SIZE",
    "PAGE_SIZE",
    "RANGE_SIZE",
    "Abi",
    "Answer",
    "Counters",
    "CpuState",
    "Cpuid",
    "Delivery",
    "Engine",
    "Event",
    "EventKind",
    "Failure",
    "File",
    "FileState",
    "Guest",
    "GuestFlag",
    "Mode",
    "Posted",
    "Reason",
    "SyncErrors",
    "Trace",
    "TraceKind",
    "Uffd",
    "Wait",
    "cache_full_fd",
    "cache_limit",
    "cache_used",
    "ffi",
    "keep_no_socket",
    "keep_socket",
    "keeper",
    "lib",
    "poison_code",
    "preload",
    "process_files",
    "program",
    "standin",
    "tracer",
    "uffd_probe",
    "verify_differences",
]

PAGE_SIZE: int = lib.DF_PAGE_SIZE
RANGE_SIZE: int = lib.DF_RANGE_SIZE


def uffd_probe(*, user_mode_only: bool = False) -> int:
    """The feature bits of this kernel (ioctl_userfaultfd(2), UFFDIO_API).

    OSError EPERM when neither /dev/userfaultfd nor the system call is permitted.
    """
    return check(lib.df_uffd_probe(user_mode_only), "userfaultfd")


def poison_code() -> int:
    """The si_code of the SIGBUS that a page poisoned with UFFDIO_POISON raises.

    4, BUS_MCEERR_AR, or 2, BUS_ADRERR, on a kernel built without CONFIG_MEMORY_FAILURE.
    A child process touches such a page; the kernel may log that.
    OSError EINVAL before Linux 6.6, EPERM when userfaultfd is not permitted.
    """
    return check(lib.df_probe_poison(), "UFFDIO_POISON")


def cache_limit(size: int) -> None:
    """Limit the page caches of this process to `size` bytes together; 0: no limit.

    Evicts clean pages only; cache_full_fd() signals that dirty pages must be written back.
    """
    check(lib.df_cache_limit(size), "limit of page caches")


def cache_full_fd() -> int:
    """An eventfd(2), readable when dirty pages keep the page caches over their limit."""
    return int(lib.df_cache_full_fd())


def verify_differences() -> int:
    """Pages whose bytes differed from the backing file's when their page cache was given up; looked at with
    DAXFAULT_VERIFY set only."""
    return int(lib.df_verify_differences())


def cache_used() -> int:
    """Bytes in the page caches of this process."""
    state = ffi.new("struct df_cache_state *")
    lib.df_cache_state(state)
    return int(state.resident)
