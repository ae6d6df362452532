# SPDX-License-Identifier: Apache-2.0
"""Tasks of the stand-in that are killed, and hosts that turn async faults off, lie or die."""

import random

import pytest
from needs import require
from patience import until
from raw_host import ABIS, ALL, EFAULT, PAGE, WORK, Start, tokens

from daxfault import native
from daxfault.native import lib

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
    until(lambda: host.states() == {7: "dead"}, "dead")
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
    until(lambda: host.slot().msr_en & lib.DF_MSR_ENABLED, "enabled")
    host.not_present(0x4000)
    until(lambda: host.states()[0] == "parked", "parked")
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
    until(lambda: host.states().get(0) == "running", "running")
    slot = host.slot()
    for _ in range(2000):
        native.ffi.buffer(slot.apf.bytes)[:] = rng.randbytes(72)
        slot.cr2, slot.irr, slot.state = rng.getrandbits(64), rng.getrandbits(32), rng.getrandbits(32)
        host.signal(rng.choice([lib.DF_APF_EXCEPTION, lib.DF_APF_INTERRUPT]))
    native.ffi.buffer(slot.apf.bytes)[:] = bytes(72)
    host.say_line("kill 0 0")

    def dead() -> bool:
        """Parked by garbage, perhaps: as nobody knows its token, all are woken; and again, because a
        handler that took garbage may still free the slot over what is in it now."""
        if slot.apf.mainline.token == 0 and slot.apf.mainline.flags == 0:
            host.ready(ALL)
        return host.states().get(0) == "dead"

    until(dead, "killed")
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
    until(lambda: host.states().get(0) == "running", "running")
    host.socket.close()
    host.event("host_lost")
    host.not_present(0x1000)
    until(lambda: host.stat()["declined"] == 1, "declined")
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
