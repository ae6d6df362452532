# SPDX-License-Identifier: Apache-2.0
"""Every design's decisions, as docs/designs/ has them: what is answered, and what when it cannot be told."""

import dataclasses

import pytest

from daxfault.native import Abi, Answer, Cpuid, CpuState, Failure, GuestFlag, Posted, Reason, Wait
from daxfault.vmm.designs import DESIGNS, POSTED, Verdict, as_posted

FAILURE = Failure(
    id=1,
    guest=1,
    file=1,
    address=0x7F0000001005,
    offset=0x1000,
    generation=2,
    time_ns=1,
    wait_ns=1,
    tid=1,
    error=14,
    reason=Reason.EOF,
    attempts=1,
    write=False,
    token=0,
    wait=Wait.SYNC,
    vcpu=0,
    state=CpuState.IF,
)

WAKE, STOP, POISON = Verdict(Answer.WAKE), Verdict(Answer.STOP), Verdict(Answer.POISON)
TELL_OR_READY = Verdict(Answer.REPORT, otherwise=Answer.WAKE)

DECISIONS = {
    # design: (TOLD, HALTED, SYNC)
    "mainline": (WAKE, WAKE, STOP),
    "rfc-v1": (TELL_OR_READY, WAKE, STOP),
    "june-2020": (TELL_OR_READY, WAKE, STOP),
    "exit-to-user": (WAKE, WAKE, STOP),
    "gone-in-wakeup": (TELL_OR_READY, WAKE, STOP),
    "inject-on-retry": (WAKE, WAKE, Verdict(Answer.REPORT, otherwise=Answer.STOP)),
    "poison": (POISON, POISON, POISON),
    "report": (Verdict(Answer.REPORT),) * 3,
}
ABIS = {
    "mainline": Abi.MAINLINE,
    "rfc-v1": Abi.RFC_V1,
    "june-2020": Abi.JUNE_2020,
    "exit-to-user": Abi.MAINLINE,
    "gone-in-wakeup": Abi.GONE,
    "inject-on-retry": Abi.RETRY,
    "poison": Abi.MAINLINE,
    "report": Abi.REPORT,
}


def test_designs_are_those_that_have_a_page() -> None:
    assert list(DESIGNS) == list(DECISIONS)


@pytest.mark.parametrize("reason", list(Reason)[1:], ids=lambda reason: reason.name)
@pytest.mark.parametrize("wait", Wait, ids=lambda wait: wait.name)
@pytest.mark.parametrize("name", DECISIONS)
def test_design_for_each_way_to_wait_answers_as_its_page_says(name: str, wait: Wait, reason: Reason) -> None:
    told, halted, sync = DECISIONS[name]
    failure = dataclasses.replace(FAILURE, wait=wait, reason=reason, token=0x1000 if wait is Wait.TOLD else 0)
    wanted = {Wait.TOLD: told, Wait.HALTED: halted, Wait.SYNC: sync}[wait]
    assert DESIGNS[name].decide(failure) == wanted


@pytest.mark.parametrize("name", DECISIONS)
def test_design_offers_its_own_abi_and_error_bit(name: str) -> None:
    design = DESIGNS[name]
    assert design.abi == ABIS[name]
    error = {
        Abi.RFC_V1: Cpuid.ERROR_RFC_V1,
        Abi.JUNE_2020: Cpuid.ERROR_JUNE_2020,
        Abi.MAINLINE: Cpuid(0),
    }.get(design.abi, Cpuid.ERROR)
    interrupts = Cpuid(0) if design.abi == Abi.RFC_V1 else Cpuid.ASYNC_PF_INT
    assert design.cpuid == Cpuid.ASYNC_PF | interrupts | error


@pytest.mark.parametrize("name", DECISIONS)
def test_design_models_kvm_unless_it_is_ours(name: str) -> None:
    wanted = GuestFlag(0) if name == "report" else GuestFlag.TELL_FAILURES
    if name in ("exit-to-user", "inject-on-retry"):
        wanted |= GuestFlag.ERROR_GFNS
    assert DESIGNS[name].flags == wanted
    assert DESIGNS[name].posted == Posted(0)


def test_rfc_v1_as_posted_has_the_defects_it_was_asked_for_and_no_other() -> None:
    assert set(POSTED) == {
        "success-is-error",
        "gla-or",
        "foll-write",
        "no-entry-loops",
        "no-gva-flag",
        "wake-all-uninit",
        "stale-gva",
    }
    for name, bit in POSTED.items():
        assert as_posted([name]).posted == bit
        assert name in as_posted([name]).name
    assert as_posted(POSTED).posted == sum(Posted)
    assert as_posted([]).name == "rfc-v1"
    assert DESIGNS["rfc-v1"].posted == Posted(0)


def test_rfc_v1_as_posted_with_an_unknown_defect_is_refused() -> None:
    with pytest.raises(KeyError, match="typo"):
        as_posted(["typo"])
