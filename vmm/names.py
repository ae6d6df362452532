# SPDX-License-Identifier: Apache-2.0
"""The names of designs and defects, for the command line and the documentation.

Owns each name.  Must not import other modules of daxfault: `daxfault --help` must be quick.
"""

from __future__ import annotations

import enum


class DesignName(enum.StrEnum):
    """How a fault that the host cannot resolve is answered."""

    MAINLINE = "mainline"
    RFC_V1 = "rfc-v1"
    JUNE_2020 = "june-2020"
    EXIT_TO_USER = "exit-to-user"
    GONE_IN_WAKEUP = "gone-in-wakeup"
    INJECT_ON_RETRY = "inject-on-retry"
    POISON = "poison"
    REPORT = "report"


class Defect(enum.StrEnum):
    """A defect of RFC v1 as it was posted (native.Posted has the bits), or all of them."""

    SUCCESS_IS_ERROR = "success-is-error"
    GLA_OR = "gla-or"
    FOLL_WRITE = "foll-write"
    NO_ENTRY_LOOPS = "no-entry-loops"
    NO_GVA_FLAG = "no-gva-flag"
    WAKE_ALL_UNINIT = "wake-all-uninit"
    STALE_GVA = "stale-gva"
    ALL = "all"
