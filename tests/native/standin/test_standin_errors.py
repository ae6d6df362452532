# SPDX-License-Identifier: Apache-2.0
"""Errors told to tasks of the stand-in, by every ABI, and where they cannot sleep."""

import pytest
from patience import until
from raw_host import ABIS, ALL, EFAULT, IN_KERNEL, PAGE, Start

from daxfault.native import lib

WITH_TOKEN_ERRORS = ["rfc-v1", "june-2020", "gone", "report"]
BUS_ADRERR, SI_KERNEL = 2, 128


# ---- not allowed to sleep


@pytest.mark.parametrize(
    ("abi", "access"),
    [("report", "irqoff touch 0"), ("report", "irqoff kcopy 0 8")]
    + [(abi, "kcopy 0 8") for abi in ABIS if abi not in IN_KERNEL],
)
def test_guest_that_cannot_sleep_declines_and_drops_the_ready(start: Start, abi: str, access: str) -> None:
    host = start(abi=abi)
    host.say_line(f"vcpu 0 {access}")
    host.faulting(0)
    host.not_present(0x1000)
    host.faulting(0)
    host.install(0)
    assert host.event("done")["outcome"] == "ok"
    host.ready(0x1000)
    stat = host.stat()
    assert (stat["declined"], stat["early"], stat["ready"]) == (1, 0, 1)


@pytest.mark.parametrize("abi", IN_KERNEL)
def test_guest_kernel_of_an_abi_that_is_always_told_sleeps(start: Start, abi: str) -> None:
    host = start(abi=abi)
    host.park(f"kcopy {PAGE - 8} 16", 0, 0x1000)
    host.install(0)
    host.install(1)
    host.ready(0x1000)
    got = host.event("done")
    assert (got["outcome"], got["done"], got["parks"]) == ("ok", 16, 1)


@pytest.mark.parametrize(
    ("access", "again"), [("irqoff touch 0", True), ("sys_write 0 8", False), ("irqoff kcopy 0 8", True)]
)
def test_interrupt_waits_until_it_is_enabled(start: Start, access: str, again: bool) -> None:
    host = start()
    host.park(f"touch {PAGE}", 1, 0x1000, task=1)
    host.say_line(f"vcpu 0 {access}")
    host.faulting(0)
    assert not host.raise_interrupt(0x1000)
    assert host.states() == {0: "running", 1: "parked"}
    host.install(0)
    assert host.event("done")["task"] == 0
    host.faulting(1)
    assert host.slot().irr == 0
    host.install(1)
    assert host.event("done")["task"] == 1
    assert host.stat()["deferred"] == 1


# ---- errors


@pytest.mark.parametrize("abi", WITH_TOKEN_ERRORS)
def test_error_for_a_token_is_the_users_sigbus(start: Start, abi: str) -> None:
    host = start(abi=abi)
    host.park(f"read {PAGE - 4} 8", 0, 0x1000)
    host.ready(0x1000, error=5, gva=host.window + PAGE - 4, reason=2, attempts=3)
    got = host.event("done")
    expected = hex(host.window + PAGE - 4) if abi in ("rfc-v1", "report") else "0x0"
    code = SI_KERNEL if abi in ("june-2020", "gone") else BUS_ADRERR
    assert (got["outcome"], got["address"], got["si_code"]) == ("sigbus", expected, code)
    assert (got["events"], got["parks"]) == (1, 1)
    if abi == "report":
        assert (got["error"], got["reason"], got["attempts"]) == (5, 2, 3)
    assert host.stat()["errors"] == 1


@pytest.mark.parametrize("abi", ["mainline", "retry"])
def test_ready_of_an_abi_without_errors_is_just_that(start: Start, abi: str) -> None:
    host = start(abi=abi)
    host.park("touch 0", 0, 0x1000)
    host.slot().apf.june_2020.ready_flags = 1  # where others have it
    host.ready(0x1000)
    host.faulting(0)
    host.install(0)
    assert host.event("done")["outcome"] == "ok"


@pytest.mark.parametrize("abi", IN_KERNEL)
def test_error_for_a_token_in_guest_kernel_is_fixed_up_or_deadly(start: Start, abi: str) -> None:
    host = start(abi=abi)
    gva = host.window + PAGE
    host.install(0)
    host.park(f"kcopy {PAGE - 8} 16", 1, 0x1000)
    host.ready(0x1000, error=EFAULT, gva=gva)
    got = host.event("done")
    assert (got["outcome"], got["done"]) == ("efault", 8)
    host.park(f"touch {2 * PAGE}", 2, 0x3000, task=1)
    host.park(f"kcopy_bare {PAGE - 8} 16", 1, 0x2000)
    host.say_line(f"vcpu 0.1 touch {3 * PAGE}")
    host.ready(0x2000, error=EFAULT, gva=gva)
    ends = [host.event("done") for _ in range(3)]
    assert (ends[0]["outcome"], ends[0]["done"]) == ("panic", 8)
    assert [(e["task"], e["outcome"], e["error"]) for e in ends[1:]] == [(1, "error", 3)] * 2
    assert host.stat()["state"] == "dead"


@pytest.mark.parametrize("abi", ["retry", "report"])
def test_error_at_the_faulting_instruction_needs_no_token(start: Start, abi: str) -> None:
    host = start(abi=abi)
    host.park("touch 5", 0, 0x1000, task=1)
    for access, outcome in [
        ("touch 4099", "sigbus"),
        ("irqoff touch 4099", "sigbus"),
        ("kcopy 4099 8", "efault"),
    ]:
        host.say_line(f"vcpu 0 {access}")
        host.faulting(1)
        slot = host.slot()
        slot.cr2 = slot.apf.report.gva = host.window + 4099
        slot.apf.report.error = 5
        if abi == "retry":
            slot.apf.retry.error = 5
        slot.apf.report.flags = lib.DF_APF_PAGE_ERROR
        host.signal(lib.DF_APF_EXCEPTION)
        got = host.event("done")
        assert (got["outcome"], got["address"], got["error"]) == (outcome, hex(host.window + 4099), 5)
    assert host.states()[1] == "parked"


@pytest.mark.parametrize(("posted", "code"), [(False, SI_KERNEL), (True, BUS_ADRERR)])
def test_rfc_v1_takes_an_unknown_address_for_one_as_posted_only(
    start: Start, posted: bool, code: int
) -> None:
    host = start(*(["--as-posted", "no-gva-flag"] if posted else []), abi="rfc-v1")
    host.park("touch 5", 0, 0x1000)
    host.ready(0x1000, error=EFAULT, gva=0)
    got = host.event("done")
    assert (got["outcome"], got["address"], got["si_code"]) == ("sigbus", "0x0", code)


def test_rfc_v1_as_posted_repeats_guest_kernel_access_that_has_no_entry(start: Start) -> None:
    host = start("--as-posted", "gla-or,no-entry-loops", abi="rfc-v1")
    host.park("kcopy_bare 0 8", 0, 0x1000)
    for token in range(0x2000, 0x7000, 0x1000):
        host.ready(token - 0x1000, error=EFAULT, gva=host.window)
        host.faulting(0)
        host.not_present(token)
        until(lambda: host.states()[0] == "parked", "parked again")
    host.install(0)
    host.ready(0x6000)
    got = host.event("done")
    assert (got["outcome"], got["parks"]) == ("ok", 6)


@pytest.mark.parametrize(("posted", "outcome"), [(False, "ok"), (True, "sigbus")])
def test_wake_all_is_an_error_as_posted_only(start: Start, posted: bool, outcome: str) -> None:
    host = start(*(["--as-posted", "wake-all-uninit"] if posted else []), abi="rfc-v1")
    host.park("touch 5", 0, 0x1000)
    host.install(0)
    host.ready(ALL)
    assert host.event("done")["outcome"] == outcome


@pytest.mark.parametrize("disposition", ["block", "ignore"])
def test_june_2020_does_not_force_its_sigbus(start: Start, disposition: str) -> None:
    host = start(abi="june-2020")
    host.say_line(f"vcpu 0 sigbus {disposition}")
    host.event("done")
    host.park("touch 5", 0, 0x1000)
    host.ready(0x1000, error=EFAULT)
    host.faulting(0)
    host.install(0)
    assert host.event("done")["outcome"] == "ok"
