# SPDX-License-Identifier: Apache-2.0
"""The life of tokens against a model: whatever the order, every task ends, and none before its READY.

The host is honest about pages and about nothing else: it tells early, twice, unknown tokens, and never.
Which task a "not present" hits is the guest's to say; what must follow from it is the model's.
"""

import errno
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from patience import until
from raw_host import ALL, EFAULT, PAGE, RawHost, content

from daxfault import native

TASKS = st.integers(0, 5)
TOKENS = st.integers(1, 8).map(lambda n: n << 12)  # few, so that they come again


class TokenLifecycle(RuleBasedStateMachine):
    """One vCPU.  No page is touched twice, so that every access faults."""

    def __init__(self) -> None:
        super().__init__()
        self.host = RawHost(native.standin()).__enter__()
        self.pages: dict[int, int] = {}  # task -> page, while it has an access
        self.installed: set[int] = set()
        self.parked: dict[int, int] = {}  # task -> token
        self.early: dict[int, bool] = {}  # token -> whether it is an error
        self.declined: set[int] = set()  # tokens whose READY nobody waits for
        self.failed: set[int] = set()  # tasks that were woken with an error
        self.loose = 0  # errors that were early: taken by whoever ran
        self.killed: set[int] = set()
        self.known: set[int] = set()
        self.enabled = True
        self.counts = dict.fromkeys(("not_present", "declined", "done", "early", "wake_all"), 0)
        self.next_page = 0

    def teardown(self) -> None:
        try:
            self.everything_ends()
        finally:
            self.host.__exit__()

    # ---- the guest

    @rule(task=TASKS)
    def begin(self, task: int) -> None:
        if task in self.pages or task in self.killed or self.next_page == 512:
            return
        self.pages[task], self.next_page = self.next_page, self.next_page + 1
        self.known.add(task)
        self.host.say_line(f"vcpu 0.{task} touch {self.pages[task] * PAGE}")
        until(lambda: self.host.slot().tid, "powered on")

    @rule(task=TASKS)
    def kill(self, task: int) -> None:
        if task in self.known:
            self.killed.add(task)
            self.host.say_line(f"kill 0 {task}")

    @precondition(lambda self: self.known)
    @rule(on=st.booleans())
    def write_msr(self, on: bool) -> None:
        self.enabled = on
        self.host.say_line(f"async {'on' if on else 'off'}")
        if not on:
            self.forget()
        until(lambda: self.asleep(self.stat()) == self.parked, "woken")

    # ---- the host

    @precondition(lambda self: self.known)
    @rule(token=TOKENS)
    def tell(self, token: int) -> None:
        before = self.counts["declined"]
        self.counts["not_present"] += 1
        error = token not in self.parked.values() and self.early.get(token, False)
        self.loose += error
        self.host.not_present(token)
        until(lambda: self.stat()["not_present"] == self.counts["not_present"], "taken")
        stat = self.stat()
        self.counts["declined"] = stat["declined"]
        refused = stat["declined"] - before
        slept = {t: at for t, at in self.asleep(stat).items() if t not in self.parked}
        if token in self.parked.values():
            assert (refused, slept) == (1, {})
        elif token in self.early:
            del self.early[token]
            self.loose -= error and bool(refused)
            assert not slept
        elif refused:
            self.declined.add(token)
            assert not slept
        elif token in self.declined and not slept:
            raise AssertionError("neither slept nor declined")
        else:
            assert self.enabled
            assert list(slept.values()) == [token]
            assert slept.keys() <= self.pages.keys()
            self.parked |= slept
            self.declined.discard(token)

    @precondition(lambda self: self.known)
    @rule(token=TOKENS, error=st.booleans())
    def ready(self, token: int, error: bool) -> None:
        self.counts["done"] += 1
        sleeper = next((t for t, at in self.parked.items() if at == token), None)
        if sleeper is not None:
            del self.parked[sleeper]
            self.failed |= {sleeper} if error else set()
        elif token in self.declined:
            self.declined.remove(token)
        elif token not in self.early:
            self.early[token] = error
            self.counts["early"] += 1
        gva = self.host.window + self.pages.get(sleeper or 0, 0) * PAGE
        self.host.ready(token, error=EFAULT if error else 0, gva=gva)

    @precondition(lambda self: self.known)
    @rule()
    def wake_all(self) -> None:
        self.counts["wake_all"] += 1
        self.forget()
        self.host.ready(ALL)

    @rule(task=TASKS)
    def install(self, task: int) -> None:
        page = self.pages.get(task)
        if page is not None:
            self.installed.add(page)
            self.host.install(page)

    # ---- what must be true

    @invariant()
    def sleepers_are_those_of_the_model(self) -> None:
        if not self.known:
            return
        stat = self.stat()
        assert self.asleep(stat) == self.parked
        assert stat["ready"] + stat["errors"] == self.counts["done"]
        assert stat["acks"] == self.counts["done"] + self.counts["wake_all"]
        for name in ("not_present", "declined", "early", "wake_all"):
            assert stat[name] == self.counts[name], name

    def everything_ends(self) -> None:
        for page in self.pages.values():
            self.installed.add(page)
            self.host.install(page)
        for token in list(self.parked.values()):
            self.ready(token, False)
        while self.pages:
            self.ended(self.host.event("done"))
        if self.known:
            expected = {task: "dead" if task in self.killed else "ready" for task in self.known}
            # who was killed dies when it would next run in user mode, which is a little later
            until(lambda: {t["task"]: t["state"] for t in self.stat()["tasks"]} == expected, f"{expected}")

    # ---- the guest, seen

    def stat(self) -> dict[str, Any]:
        stat = self.host.stat()
        for event in [e for e in self.host.events if e["event"] == "done"]:
            self.host.events.remove(event)
            self.ended(event)
        return stat

    def asleep(self, stat: dict[str, Any]) -> dict[int, int]:
        return {t["task"]: t["token"] for t in stat["tasks"] if t["state"] == "parked"}

    def forget(self) -> None:
        """The host has: no token is outstanding."""
        self.parked.clear()
        self.early.clear()
        self.declined.clear()

    def ended(self, event: dict[str, Any]) -> None:
        task = event["task"]
        page = self.pages.pop(task)
        assert task not in self.parked
        if event["outcome"] == "killed" or event["error"] == errno.ESRCH:
            assert task in self.killed
        elif event["outcome"] == "sigbus":
            if task not in self.failed:
                self.loose -= 1
            assert self.loose >= 0
        else:
            assert (event["outcome"], event["value"]) == ("ok", content(page)[0])
            assert page in self.installed
        self.failed.discard(task)


TokenLifecycle.TestCase.settings = settings(
    max_examples=150,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
test_tokens_follow_the_model = TokenLifecycle.TestCase
