# SPDX-License-Identifier: Apache-2.0
"""The enums of the contract in Python.

Owns their names.  Their values come from the headers in native: none is written here.
"""

from __future__ import annotations

import enum

from daxfault.native._daxfault import lib


class Reason(enum.IntEnum):
    """Why a fault could not be resolved (enum df_reason)."""

    NONE = lib.DF_REASON_NONE
    EOF = lib.DF_REASON_EOF
    IO = lib.DF_REASON_IO
    NOREGION = lib.DF_REASON_NOREGION
    TIMEOUT = lib.DF_REASON_TIMEOUT
    INSTALL = lib.DF_REASON_INSTALL


class Answer(enum.IntEnum):
    """What to do with a failed fault (enum df_answer)."""

    WAKE = lib.DF_ANSWER_WAKE
    REPORT = lib.DF_ANSWER_REPORT
    POISON = lib.DF_ANSWER_POISON
    STOP = lib.DF_ANSWER_STOP


class Wait(enum.IntEnum):
    """How the vCPU of a failed fault waits for its answer (enum df_wait)."""

    SYNC = lib.DF_WAIT_SYNC
    HALTED = lib.DF_WAIT_HALTED
    TOLD = lib.DF_WAIT_TOLD


class Abi(enum.IntEnum):
    """The kvm_para.h that a guest was built with (enum df_abi, apf.h)."""

    MAINLINE = lib.DF_ABI_MAINLINE
    RFC_V1 = lib.DF_ABI_RFC_V1
    JUNE_2020 = lib.DF_ABI_JUNE_2020
    GONE = lib.DF_ABI_GONE
    RETRY = lib.DF_ABI_RETRY
    REPORT = lib.DF_ABI_REPORT


class Cpuid(enum.IntFlag):
    """Bits of CPUID 0x40000001 EAX (enum df_cpuid).  Bit 14 has another meaning in RFC_V1."""

    ASYNC_PF = lib.DF_CPUID_ASYNC_PF
    ERROR_RFC_V1 = lib.DF_CPUID_ERROR_RFC_V1
    ASYNC_PF_INT = lib.DF_CPUID_ASYNC_PF_INT
    ERROR_JUNE_2020 = lib.DF_CPUID_ERROR_JUNE_2020
    ERROR = lib.DF_CPUID_ERROR


class GuestFlag(enum.IntFlag):
    """How KVM's own behaviour is modelled for a guest (enum df_guest_flag)."""

    TELL_FAILURES = lib.DF_GUEST_TELL_FAILURES
    ERROR_GFNS = lib.DF_GUEST_ERROR_GFNS
    PROGRAM = lib.DF_GUEST_PROGRAM


class Posted(enum.IntFlag):
    """The defects of RFC v1 as it was posted (enum df_posted)."""

    SUCCESS_IS_ERROR = lib.DF_POSTED_SUCCESS_IS_ERROR
    GLA_OR = lib.DF_POSTED_GLA_OR
    FOLL_WRITE = lib.DF_POSTED_FOLL_WRITE
    NO_ENTRY_LOOPS = lib.DF_POSTED_NO_ENTRY_LOOPS
    NO_GVA_FLAG = lib.DF_POSTED_NO_GVA_FLAG
    WAKE_ALL_UNINIT = lib.DF_POSTED_WAKE_ALL_UNINIT
    STALE_GVA = lib.DF_POSTED_STALE_GVA


class CpuState(enum.IntFlag):
    """The state of a vCPU at its fault (enum df_cpu_state)."""

    IF = lib.DF_CPU_IF
    KERNEL = lib.DF_CPU_KERNEL
    SYSCALL = lib.DF_CPU_SYSCALL


class Delivery(enum.IntEnum):
    """How an answer reached the guest (enum df_delivery)."""

    NONE = lib.DF_DELIVERED_NONE
    WAKE = lib.DF_DELIVERED_WAKE
    EVENT = lib.DF_DELIVERED_EVENT
    POISON = lib.DF_DELIVERED_POISON
    HEALED = lib.DF_DELIVERED_HEALED
    KILL = lib.DF_DELIVERED_KILL
    READY = lib.DF_DELIVERED_READY
    ERROR = lib.DF_DELIVERED_ERROR
    STOP = lib.DF_DELIVERED_STOP
