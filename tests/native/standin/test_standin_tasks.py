# SPDX-License-Identifier: Apache-2.0
"""Tasks of the stand-in and their tokens, with a host that does everything by hand: in every order."""

import random

import pytest
from patience import until
from raw_host import ABIS, ALL, EFAULT, IF, KERNEL, PAGE, SYSCALL, WORK, Peer, Start, content, tokens

from daxfault import native

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
    until(lambda: host.slot().state == IF | KERNEL, "idle")


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
    until(lambda: host.stat()["ready"] == 3, "three readies")
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


def test_not_present_of_a_task_that_was_preempted_parks_no_other(start: Start) -> None:
    """The signal may come when a timer has had another task run: the host says whose access it is about."""
    host = start()
    host.say_line("vcpu 0 touch 5")
    host.faulting(0)
    host.slot().fault = host.window + 7 * PAGE  # an access of some other task
    host.not_present(0x1000)
    host.faulting(0)  # not asleep: it repeats its own access
    host.slot().fault = host.window + 5
    host.not_present(0x2000)
    until(lambda: host.states()[0] == "parked", "parked on its own token")
    host.ready(0x1000, error=EFAULT, gva=host.window + 5)  # the other's error: nobody takes it
    host.install(0)
    host.ready(0x2000)
    done = host.event("done")
    assert (done["outcome"], done["parks"], done["events"]) == ("ok", 1, 0)
    assert host.stat()["declined"] == 1


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
    until(lambda: host.states()[0] == "parked", "parked again")
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
    until(lambda: set(host.states().values()) == {"parked"}, "all parked")
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
    until(lambda: host.states()[1] == "running", "computing")
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
    until(lambda: host.states().get(0) == "running", "running")
    for token in range(1, 3001):
        host.ready(token)
    host.say_line("kill 0 0")
    host.event("done")
    host.say_line("trace dump")
    lost = host.event("traced")["lost"]
    kept = sum(len(e["events"]) for e in host.events if e["event"] == "trace")
    assert 8192 <= kept < 8192 + 100  # it goes on being traced
    assert lost > 3000 * 4 - 8192
