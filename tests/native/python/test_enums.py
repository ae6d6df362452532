# SPDX-License-Identifier: Apache-2.0
"""Python's enumerations against those of the C headers: no member is missing, and none is invented."""

import enum
import os

import pytest

from daxfault import native
from daxfault.native import kvm, uffd
from daxfault.native._daxfault import ffi

PAIRS: list[tuple[type[enum.IntEnum | enum.IntFlag], str, set[str]]] = [
    (native.Abi, "df_abi", {"COUNT"}),
    (native.Answer, "df_answer", set()),
    (native.Cpuid, "df_cpuid", set()),
    (native.CpuState, "df_cpu_state", set()),
    (native.Delivery, "df_delivery", set()),
    (native.GuestFlag, "df_guest_flag", set()),
    (native.Mode, "df_uffd_mode", set()),
    (native.Posted, "df_posted", set()),
    (native.Reason, "df_reason", set()),
    (native.TraceKind, "df_trace_kind", set()),
    (native.Wait, "df_wait", set()),
    (uffd.EventKind, "df_uffd_event_kind", set()),
    (kvm.ExitKind, "df_kvm_exit_kind", set()),
]


@pytest.mark.parametrize(("python", "name", "uncounted"), PAIRS, ids=[name for _, name, _ in PAIRS])
def test_enum_of_python_has_the_members_of_the_header(
    python: type[enum.IntEnum | enum.IntFlag], name: str, uncounted: set[str]
) -> None:
    declared = ffi.typeof(f"enum {name}").relements
    found = {member: int(value) for member, value in python.__members__.items()}
    prefix = os.path.commonprefix(list(declared))  # noqa: RUF071 - of names, not of paths
    assert {full.removeprefix(prefix): value for full, value in declared.items()} == (
        found | {member: declared[prefix + member] for member in uncounted}
    )
