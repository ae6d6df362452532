# SPDX-License-Identifier: Apache-2.0
"""Tasks of the stand-in and their tokens, with a host that does everything by hand: in every order."""

import random
from collections.abc import Callable, Iterator

import pytest
from needs import require
from raw_host import ALL, IF, KERNEL, PAGE, SYSCALL, RawHost, content, tokens
from standin_peer import Peer

import native
from native import lib

ABIS = ["mainline", "rfc-v1", "june-2020", "gone", "retry", "report"]
WITH_TOKEN_ERRORS = ["rfc-v1", "june-2020", "gone", "report"]
IN_KERNEL = ["rfc-v1", "gone", "report"]  # who sets SEND_ALWAYS
BUS_ADRERR, SI_KERNEL = 2, 128
EFAULT = 14
WORK = "work 60000"  # for ever, as far as a test is concerned: it is killed

Start = Callable[..., RawHost]


@pytest.fixture
def start() -> Iterator[Start]:
    hosts: list[RawHost] = []

    def begin(*arguments: str, abi: str = "report") -> RawHost:
        host = RawHost(native.standin(), *arguments, abi=abi)
        hosts.append(host)
        host.__enter__()
        return host

    yield begin
    for host in hosts:
        host.__exit__()


# ---- what a guest sets up


@pytest.mark.parametrize(
    ("abi", "cpuid", "msr"),
    [
        ("mainline", 0x4010, 0b01001),
        ("rfc-v1", 0x4010, 0b01011),
        ("june-2020", 0xC010, 0b11001),
        ("gone", 0x44010, 0b11011),
        ("retry", 0x44010, 0b11001),
        ("report", 0x44010, 0b11011),
    ],
)
def test_guest_of_each_abi_asks_for_its_bits_and_enables_them(
    start: Start, abi: str, cpuid: int, msr: int
) -> None:
    host = start(abi=abi)
    assert host.cpuid == cpuid
    host.say_line("vcpu 3 work 0")
    host.event("done")
    slot = host.slot(3)
    assert slot.msr_en == 3 * 128 | msr
    assert slot.tid == host.stat(3)["tid"]


@pytest.mark.parametrize(
    ("option", "cpuid", "msr"), [("--no-async", 0x44010, 0b10000), ("--no-errors", 0x4010, 0b01011)]
)
def test_guest_leaves_out_what_an_option_says(start: Start, option: str, cpuid: int, msr: int) -> None:
    host = start(option)
    host.say_line("vcpu 0 work 0")
    host.event("done")
    assert (host.cpuid, host.slot().msr_en) == (cpuid, msr)


@pytest.mark.parametrize(
    "arguments", [["--abi", "mainlin"], ["--abi", ""], ["--as-posted", "x"], ["--as-posted", "gla-or,x"]]
)
def test_names_that_nobody_has_are_usage_errors(arguments: list[str]) -> None:
    peer = Peer(native.standin(), *arguments)
    try:
        code, _, stderr = peer.run(b"")
        assert code == 2
        assert arguments[0] in stderr
    finally:
        peer.close()


@pytest.mark.parametrize(
    ("access", "state"),
    [
        ("touch 0", IF),
        ("irqoff touch 0", 0),
        ("kcopy 0 8", IF | KERNEL),
        ("irqoff kcopy 0 8", KERNEL),
        ("sys_write 0 8", IF | SYSCALL),
    ],
)
def test_state_word_says_what_runs(start: Start, access: str, state: int) -> None:
    host = start()
    host.say_line(f"vcpu 0 {access}")
    host.faulting(0)
    assert host.slot().state == state
    host.install(0)
    assert host.event("done")["outcome"] == "ok"
    host.until(lambda: host.slot().state == IF | KERNEL, "idle")


# ---- one token


@pytest.mark.parametrize("abi", ABIS)
def test_parked_task_sleeps_until_ready_and_others_run_meanwhile(start: Start, abi: str) -> None:
    host = start(abi=abi)
    host.park("read 5 8", 0, 0x1000)
    host.say_line(f"vcpu 0.1 read {PAGE} 4")
    host.faulting(1)
    host.install(1)
    other = host.event("done")
    assert (other["task"], bytes.fromhex(other["value"])) == (1, content(1)[:4])
    assert host.states() == {0: "parked", 1: "ready"}
    host.install(0)  # nobody is blocked there
    host.ready(0x1000)
    got = host.event("done")
    assert (got["task"], got["parks"], bytes.fromhex(got["value"])) == (0, 1, content(0)[5:13])
    stat = host.stat()
    assert (stat["not_present"], stat["ready"], stat["errors"], stat["declined"]) == (1, 1, 0, 0)
    assert stat["acks"] == host.slot().acks == (0 if abi == "rfc-v1" else 1)


@pytest.mark.parametrize("abi", ABIS)
def test_ready_that_comes_before_not_present_is_kept_for_it(start: Start, abi: str) -> None:
    host = start(abi=abi)
    host.say_line("vcpu 0 touch 7")
    host.faulting(0)
    host.ready(0x1000)
    host.faulting(0)  # the interrupt ended the first
    host.not_present(0x1000)
    host.faulting(0)  # it has not slept
    host.install(0)
    got = host.event("done")
    assert (got["outcome"], got["value"], got["parks"]) == ("ok", content(0)[7], 0)
    assert [host.stat()[name] for name in ("early", "ready", "not_present", "declined")] == [1, 1, 1, 0]


@pytest.mark.parametrize("abi", ["rfc-v1", "report"])
def test_error_that_comes_before_not_present_is_kept_for_it(start: Start, abi: str) -> None:
    host = start(abi=abi)
    host.say_line("vcpu 0 touch 7")
    host.faulting(0)
    host.ready(0x1000, error=EFAULT, gva=host.window + 7)
    host.faulting(0)
    host.not_present(0x1000)
    got = host.event("done")
    assert (got["outcome"], got["address"], got["parks"]) == ("sigbus", hex(host.window + 7), 0)


def test_ready_told_twice_wakes_once_and_leaves_nothing_that_harms(start: Start) -> None:
    host = start()
    host.park("touch 0", 0, 0x1000)
    host.ready(0x1000)
    host.faulting(0)
    for _ in range(2):
        host.ready(0x1000)
    host.until(lambda: host.stat()["ready"] == 3, "three readies")
    host.install(0)
    assert host.event("done")["outcome"] == "ok"
    # and the next token is slept on
    host.park(f"touch {PAGE}", 1, 0x2000)
    host.ready(0x2000)
    host.install(1)
    assert host.event("done")["parks"] == 1


def test_tokens_nobody_knows_are_bounded_and_harm_no_sleeper(start: Start) -> None:
    host = start()
    host.park("touch 0", 0, 0x1000)
    for token in range(5, 1005):
        host.ready(token)
    assert host.states() == {0: "parked"}
    host.install(0)
    host.ready(0x1000)
    assert host.event("done")["parks"] == 1
    assert host.stat()["early"] == 1000


@pytest.mark.parametrize("token", [0, ALL])
def test_not_present_with_a_token_that_cannot_be_is_declined(start: Start, token: int) -> None:
    host = start()
    host.say_line("vcpu 0 touch 0")
    host.faulting(0)
    host.not_present(token)
    host.faulting(0)
    host.install(0)
    assert host.event("done")["parks"] == 0
    assert host.stat()["declined"] == 1


def test_tokens_that_have_wrapped_are_tokens(start: Start) -> None:
    host = start()
    for page, token in enumerate([0xFFFFF000, 0x1000, 0xFFFFFFFE, 1]):
        host.park(f"touch {page * PAGE}", page, token)
        host.install(page)
        host.ready(token)
        assert host.event("done")["parks"] == 1


def test_token_that_another_task_sleeps_on_is_declined(start: Start) -> None:
    host = start()
    host.park("touch 0", 0, 0x1000)
    host.say_line(f"vcpu 0.1 touch {PAGE}")
    host.faulting(1)
    host.not_present(0x1000)
    host.faulting(1)
    host.install(1)
    assert host.event("done")["task"] == 1
    host.install(0)
    host.ready(0x1000)
    assert host.event("done")["task"] == 0


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


# ---- many


def test_wake_all_wakes_every_sleeper_of_one_vcpu(start: Start) -> None:
    host = start()
    for task, token in enumerate(tokens(5)):
        host.park(f"touch {task * PAGE}", task, token, task)
    host.park(f"touch {9 * PAGE}", 9, 0x1001, vcpu=1)
    for page in range(5):
        host.install(page)
    host.ready(ALL)
    assert set(host.done(5)) == set(range(5))
    assert host.states(1) == {0: "parked"}
    host.install(9)
    host.ready(0x1001, 1)
    assert host.event("done")["vcpu"] == 1


@pytest.mark.parametrize("abi", ["rfc-v1", "report"])
def test_sleepers_woken_too_early_ask_again(start: Start, abi: str) -> None:
    host = start(abi=abi)
    host.park("touch 0", 0, 0x1000)
    host.ready(ALL)
    host.faulting(0)
    host.not_present(0x2000)
    host.until(lambda: host.states()[0] == "parked", "parked again")
    host.install(0)
    host.ready(0x2000)
    assert host.event("done")["parks"] == 2


def test_second_task_on_the_page_is_halted_and_both_end(start: Start) -> None:
    host = start()
    host.park("touch 0", 0, 0x1000)
    host.say_line("vcpu 0.1 touch 1")
    host.faulting(0)  # and nobody tells it
    host.install(0)
    host.ready(0x1000)
    got = host.done(2)
    assert [got[task]["parks"] for task in (0, 1)] == [1, 0]


def test_as_many_sleepers_as_there_are_tasks_wake_in_any_order(start: Start) -> None:
    host = start()
    rng = random.Random(64)
    work = list(enumerate(tokens(96)))
    for task, token in work:
        host.say_line(f"vcpu 0.{task} read {task * PAGE} 16")
        host.faulting(task)
        host.not_present(token)
    host.until(lambda: set(host.states().values()) == {"parked"}, "all parked")
    rng.shuffle(work)
    for task, token in work:
        host.install(task)
        host.ready(token)
        got = host.event("done")
        assert (got["task"], bytes.fromhex(got["value"])) == (task, content(task)[:16])
    assert host.stat()["switches"] >= 2 * len(work)


def test_woken_task_preempts_one_that_computes(start: Start) -> None:
    host = start()
    host.park("touch 0", 0, 0x1000)
    host.say_line(f"vcpu 0.1 {WORK}")
    host.until(lambda: host.states()[1] == "running", "computing")
    host.install(0)
    host.ready(0x1000)
    assert host.event("done")["task"] == 0
    host.say_line("vcpu 0.2 work 0")  # as does one that is given something to do
    assert host.event("done")["task"] == 2
    host.say_line("kill 0 1")
    got = host.event("done")
    assert (got["task"], got["outcome"]) == (1, "killed")


def test_tasks_that_compute_take_turns(start: Start) -> None:
    host = start()
    for task in (0, 1):
        host.say_line(f"vcpu 0.{task} {WORK}")
    host.say_line("vcpu 0.2 work 20")
    host.say_line("vcpu 0.3 work 1")
    assert set(host.done(2)) == {2, 3}
    for task in (0, 1):
        host.say_line(f"kill 0 {task}")
    assert [got["outcome"] for got in host.done(2).values()] == ["killed"] * 2


def test_accesses_of_a_task_are_in_order_and_numbered_by_vcpu(start: Start) -> None:
    host = start()
    for task in (0, 1, 0, 1):
        host.say_line(f"vcpu 0.{task} work 0")
    got = [host.event("done") for _ in range(4)]
    assert sorted(g["seq"] for g in got) == [1, 2, 3, 4]
    for task in (0, 1):
        assert [g["seq"] for g in got if g["task"] == task] == [1 + task, 3 + task]
    host.say_line("wait")
    host.event("idle")


# ---- errors


@pytest.mark.parametrize("abi", WITH_TOKEN_ERRORS)
def test_error_for_a_token_is_the_users_sigbus(start: Start, abi: str) -> None:
    host = start(abi=abi)
    host.park(f"read {PAGE - 4} 8", 0, 0x1000)
    host.ready(0x1000, error=5, gva=host.window + PAGE - 4, reason=2, attempts=3)
    got = host.event("done")
    expected = hex(host.window + PAGE - 4) if abi in ("rfc-v1", "report") else "0x0"
    code = SI_KERNEL if abi == "june-2020" else BUS_ADRERR
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
        host.until(lambda: host.states()[0] == "parked", "parked again")
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


# ---- killed


def test_killed_sleeper_ends_at_its_ready(start: Start) -> None:
    host = start()
    host.park("touch 0", 0, 0x1000)
    host.say_line(f"vcpu 0.0 touch {PAGE}")
    host.say_line("kill 0 0")
    assert host.states() == {0: "parked"}
    host.ready(0x1000)
    ends = [host.event("done") for _ in range(2)]
    assert [(e["outcome"], e["error"]) for e in ends] == [("killed", 0), ("error", 3)]
    assert host.states() == {0: "dead"}
    host.say_line("vcpu 0.0 touch 0")
    assert host.event("done")["error"] == 3
    host.say_line("vcpu 0.1 work 0")
    assert host.event("done")["outcome"] == "ok"


def test_killed_sleeper_with_an_error_is_killed_and_not_told(start: Start) -> None:
    host = start()
    host.park("touch 0", 0, 0x1000)
    host.say_line("kill 0 0")
    host.states()
    host.ready(0x1000, error=EFAULT, gva=host.window)
    got = host.event("done")
    assert (got["outcome"], got["events"]) == ("killed", 0)


def test_task_killed_in_guest_kernel_ends_behind_it(start: Start) -> None:
    host = start()
    host.park("kcopy 0 8", 0, 0x1000)
    host.say_line("kill 0 0")
    host.states()
    host.ready(0x1000)
    host.faulting(0)
    host.install(0)
    got = host.event("done")
    assert (got["outcome"], got["done"]) == ("killed", 8)


def test_task_killed_while_idle_is_dead_at_once(start: Start) -> None:
    host = start()
    host.say_line("vcpu 0.7 work 0")
    host.event("done")
    host.say_line("kill 0 7")
    host.until(lambda: host.states() == {7: "dead"}, "dead")
    for line in ("kill 0 8", "kill 1 0", "kill 0 96", "kill 63 0"):
        host.say_line(line)
        assert host.event("error")["message"].startswith("no such")


# ---- MSR_EN


def test_async_off_wakes_the_sleepers_and_declines_the_late(start: Start) -> None:
    host = start()
    host.park("touch 0", 0, 0x1000)
    host.park(f"touch {PAGE}", 1, 0x2000, task=1)
    host.say_line("async off")
    host.install(0)
    host.install(1)
    assert set(host.done(2)) == {0, 1}
    assert host.slot().msr_en & lib.DF_MSR_ENABLED == 0
    host.say_line(f"vcpu 0 touch {2 * PAGE}")
    host.faulting(2)
    host.not_present(0x3000)
    host.faulting(2)
    host.say_line("async on")
    host.until(lambda: host.slot().msr_en & lib.DF_MSR_ENABLED, "enabled")
    host.not_present(0x4000)
    host.until(lambda: host.states()[0] == "parked", "parked")
    host.install(2)
    host.ready(ALL)
    assert host.event("done")["parks"] == 1


def test_vcpu_that_is_enabled_rings(start: Start) -> None:
    host = start()
    assert host.doorbell is not None
    host.say_line("vcpu 0 work 0")
    assert host.doorbell.recv(1)
    host.event("done")
    host.say_line("async off")
    assert host.doorbell.recv(1)


# ---- hosts that are not honest, or no more


@pytest.mark.parametrize("abi", ABIS)
def test_garbage_in_the_slot_ends_no_guest(start: Start, abi: str) -> None:
    host = start(abi=abi)
    rng = random.Random(5)
    host.say_line(f"vcpu 0.0 {WORK}")
    host.until(lambda: host.states().get(0) == "running", "running")
    slot = host.slot()
    for _ in range(2000):
        native.ffi.buffer(slot.apf.bytes)[:] = rng.randbytes(72)
        slot.cr2, slot.irr, slot.state = rng.getrandbits(64), rng.getrandbits(32), rng.getrandbits(32)
        host.signal(rng.choice([lib.DF_APF_EXCEPTION, lib.DF_APF_INTERRUPT]))
    native.ffi.buffer(slot.apf.bytes)[:] = bytes(72)
    host.say_line("kill 0 0")
    # parked by garbage, perhaps: as nobody knows its token, all are woken
    host.until(lambda: slot.apf.mainline.token == 0 and slot.apf.mainline.flags == 0, "all taken")
    host.ready(ALL)
    assert host.event("done")["outcome"] == "killed"
    host.say_line("vcpu 0.1 read 0 8")
    host.fault()
    host.install(0)
    assert host.event("done")["outcome"] == "ok"


def test_sleepers_of_a_host_that_died_get_errors(start: Start) -> None:
    host = start()
    for task, token in enumerate(tokens(8)):
        host.park(f"touch {task * PAGE}", task, token, task)
    host.park("sum 40K 4", 10, 0x1001, vcpu=1)
    host.say_line(f"vcpu 0.9 touch {9 * PAGE}")
    host.faulting(9)
    host.say_line(f"vcpu 0.8 {WORK}")
    host.socket.close()
    assert host.event("host_lost")
    ends = [host.event("done") for _ in range(10)]
    assert {e["outcome"] for e in ends} <= {"sigbus", "sigsegv"}
    host.say_line("vcpu 0.1 touch 48K")
    host.say_line("kill 0 8")
    assert {host.event("done")["task"] for _ in range(2)} == {1, 8}


def test_not_present_from_a_host_that_is_gone_is_not_slept_on(start: Start) -> None:
    host = start()
    host.say_line(f"vcpu 0 {WORK}")
    host.until(lambda: host.states().get(0) == "running", "running")
    host.socket.close()
    host.event("host_lost")
    host.not_present(0x1000)
    host.until(lambda: host.stat()["declined"] == 1, "declined")
    host.say_line("kill 0 0")
    assert host.event("done")["outcome"] == "killed"


def test_poison_in_one_task_leaves_the_sleepers_asleep(start: Start) -> None:
    host = start()
    host.park("touch 0", 0, 0x1000)
    host.say_line(f"vcpu 0.1 touch {PAGE}")
    host.faulting(1)
    try:
        host.uffd.poison(host.window + PAGE, PAGE)
    except OSError as e:
        require(False, f"UFFDIO_POISON: {e}")
    assert host.event("done")["outcome"] == "sigbus"
    host.install(0)
    host.ready(0x1000)
    assert host.event("done")["outcome"] == "ok"


# ---- trace


def test_trace_tells_the_life_of_a_token_in_order(start: Start) -> None:
    host = start()
    host.say_line("trace on")
    host.park(f"touch {PAGE + 3}", 1, 0x1000)
    host.ready(0x1000, error=EFAULT, gva=host.window + PAGE + 3)
    host.event("done")
    host.say_line("trace off")
    host.say_line("vcpu 0 work 0")
    host.event("done")
    host.say_line("trace dump")
    assert host.event("traced")["lost"] == 0
    events = host.event("trace")["events"]
    assert [e["ns"] for e in events] == sorted(e["ns"] for e in events)
    told = [
        (e["what"], e["task"]) for e in events if e["what"] not in ("idle", "wake_all", "irq", "deferred")
    ]
    assert told == [
        ("begin", 0), ("switch", 0), ("not_present", 0), ("park", 0), ("error", -1), ("wake", 0),
        ("ack", -1), ("switch", 0), ("sigbus", 0), ("end", 0),
    ]  # fmt: skip
    by_token = [e["what"] for e in events if e["token"] == 0x1000]
    assert by_token == ["not_present", "park", "irq", "error", "wake", "ack"]
    assert [e["gva"] for e in events if e["what"] in ("error", "sigbus")] == [hex(host.window + PAGE + 3)] * 2
    host.say_line("trace dump")  # it was taken
    host.event("traced")
    assert not [e for e in host.events if e["event"] == "trace"]


def test_trace_that_runs_over_says_how_much_it_lost(start: Start) -> None:
    host = start()
    host.say_line("trace on")
    host.say_line(f"vcpu 0 {WORK}")
    host.until(lambda: host.states().get(0) == "running", "running")
    for token in range(1, 3001):
        host.ready(token)
    host.say_line("kill 0 0")
    host.event("done")
    host.say_line("trace dump")
    lost = host.event("traced")["lost"]
    kept = sum(len(e["events"]) for e in host.events if e["event"] == "trace")
    assert 8192 <= kept < 8192 + 100  # it goes on being traced
    assert lost > 3000 * 4 - 8192
