# SPDX-License-Identifier: Apache-2.0
"""Every cell of the comparison on KVM: each way, each access, run once for all tests; what cannot be had here
says why, and where model and reality differ there is a reason."""

import dataclasses
import functools

import pytest
import trio
from checkout import DOCS
from kvm_guest import require_kvm
from needs import require, require_fuse

from daxfault.native.kvm import probe
from daxfault.vmm.designs import DESIGNS
from daxfault.vmm.kvm.inject import Injection
from daxfault.vmm.study import compare
from daxfault.vmm.study.compare import Cell, Comparison, Outcome, Row
from daxfault.vmm.study.compare.kvm.behaviour import KVM_BEHAVIOUR, run_cell
from daxfault.vmm.study.compare.kvm.differ import WHY, differences
from daxfault.vmm.study.compare.kvm.mechanisms import MECHANISMS, Mechanism, Under, of_designs
from daxfault.vmm.study.compare.kvm.trial import KvmTestbed
from daxfault.vmm.study.compare.table import beside

SECONDS = 0.1
PAGE = DOCS / "compare.md"

# what a cell may be: outcomes, whether it is right, and words that its text has
ENDS: dict[str, tuple[tuple[Outcome, ...], bool, str]] = {
    "told": ((Outcome.LOOP,), False, "told"),
    "halted": ((Outcome.LOOP,), False, "halted"),
    "stop": ((Outcome.STOPPED,), False, "VM stopped"),
    # in ring 0: PVM emulates it, the others loop
    "either": ((Outcome.LOOP, Outcome.STOPPED), False, ""),
    "sigbus": ((Outcome.SIGBUS,), True, "exact address"),
    "efault16": ((Outcome.EFAULT,), True, "EFAULT after 16 bytes"),
    "efault": ((Outcome.EFAULT,), True, "EFAULT"),
    "panic": ((Outcome.PANIC,), True, "panics"),
    "bytes": ((Outcome.BYTES,), True, "bytes"),
}
# docs/compare.md; of the mechanisms: kernel, unmap+stop, those with a rescue and an injection, the engine's
CELLS = {
    "user-read":         "told   stop  sigbus   sigbus",
    "user-write":        "told   stop  sigbus   sigbus",
    "kernel-entry":      "either stop  efault16 efault16",
    "kernel-bare":       "either stop  panic    panic",
    "interrupts-off":    "stop   stop  efault16 efault16",
    "user-masked":       "stop   stop  sigbus   sigbus",
    "async-off":         "halted stop  sigbus   sigbus",
    "no-irqchip":        "stop   stop  sigbus   sigbus",
    "two-vcpus":         "told   stop  sigbus   sigbus",
    "grown":             "bytes  stop  bytes    bytes",
    "io-error":          "stop   stop  sigbus   sigbus",
    "no-space":          "told   told  told     sigbus",
    "slow-page":         "bytes  bytes bytes    bytes",
    "kernel-after-user": "told   stop  efault   efault",
}  # fmt: skip
# how the guest is told when its interrupts are off, or not KVM's
MASKED = ("interrupts-off", "user-masked", "no-irqchip")
IMPOSSIBLE = [name for name, mechanism in MECHANISMS.items() if mechanism.impossible]
POSSIBLE = [name for name, mechanism in MECHANISMS.items() if not mechanism.impossible]


def kind(mechanism: Mechanism) -> int:
    """Which of the columns of CELLS."""
    if mechanism.under is Under.ENGINE:
        return 3
    return 2 if mechanism.injection else 1 if mechanism.rescue else 0


def run(**asked: object) -> Comparison:
    require_fuse()
    require_kvm()

    return trio.run(functools.partial(compare.run, seconds=SECONDS, **asked))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def found() -> Comparison:
    """Every mechanism, every question about behaviour."""
    return run(designs=[], mechanisms=list(MECHANISMS.values()), columns=list(KVM_BEHAVIOUR))


def cell(found: Comparison, mechanism: str, column: str) -> Cell:
    return next(row for row in found.rows if row.name == mechanism).cells[column]


def tried(found: Comparison, mechanism: str, column: str) -> Cell:
    """The cell; a machine that cannot have it says why, and the test asks for no more."""
    got = cell(found, mechanism, column)
    require(got.outcome is not Outcome.UNTRIED, got.detail)
    return got


def test_cells_of_the_table_are_those_of_the_comparison() -> None:
    assert set(CELLS) == set(KVM_BEHAVIOUR)
    assert {mechanism.models for mechanism in MECHANISMS.values() if mechanism.models} == set(DESIGNS)
    assert len(of_designs(list(DESIGNS))) == len(DESIGNS)


@pytest.mark.parametrize("column", CELLS)
@pytest.mark.parametrize("mechanism", POSSIBLE)
def test_cell_of_a_way_is_as_documented(found: Comparison, mechanism: str, column: str) -> None:
    outcomes, ok, words = ENDS[CELLS[column].split()[kind(MECHANISMS[mechanism])]]
    got = tried(found, mechanism, column)
    assert got.outcome in outcomes, got
    assert got.ok == ok, got
    assert words in got.text
    assert (got.rate is not None) == (got.outcome is Outcome.LOOP)


@pytest.mark.parametrize("column", CELLS)
@pytest.mark.parametrize("mechanism", [name for name in POSSIBLE if MECHANISMS[name].injection])
def test_cell_with_an_error_was_told_in_the_way_of_its_name(
    found: Comparison, mechanism: str, column: str
) -> None:
    got = tried(found, mechanism, column)
    if got.outcome not in (Outcome.SIGBUS, Outcome.EFAULT):
        return
    injection = MECHANISMS[mechanism].injection
    if injection is Injection.EVENT and column in MASKED:
        assert ", by area; told by area, since" in got.detail
    else:
        assert got.detail.endswith(f", by {injection}")
    assert got.address_exact


@pytest.mark.parametrize("mechanism", POSSIBLE)
def test_cells_tell_what_was_seen_in_order_of_time(found: Comparison, mechanism: str) -> None:
    for column in CELLS:
        got = cell(found, mechanism, column)
        if got.outcome is Outcome.UNTRIED:
            continue
        times = [event["ns"] for event in got.events]
        assert times == sorted(times)
        told = [event["what"] for event in got.events]
        assert any(what.startswith("access") for what in told), column
        if got.outcome in (Outcome.SIGBUS, Outcome.EFAULT, Outcome.PANIC):
            assert any("error" in what or what == "#PF, bit 15" for what in told), (column, told)


@pytest.mark.parametrize("mechanism", IMPOSSIBLE)
def test_cells_of_a_way_that_takes_another_kernel_say_so(found: Comparison, mechanism: str) -> None:
    for column in CELLS:
        got = cell(found, mechanism, column)
        assert (got.outcome, got.ok, got.events) == (Outcome.UNTRIED, None, [])
        assert "another kernel" in got.detail


def test_promise_of_the_engines_memory_is_kept(found: Comparison) -> None:
    assert [row.name for row in found.rows if row.promises] == [f"engine+{how}" for how in Injection]
    assert found.kept
    broken = dataclasses.replace(
        found, rows=[Row("x", "", promises=True, cells={"grown": Cell(Outcome.LOOP, "")})]
    )
    assert not broken.kept


@pytest.mark.parametrize(
    ("mechanism", "lacks", "column", "why"),
    [
        ("kernel", "async_pf", "user-read", "no asynchronous page faults"),
        ("kernel", "stats", "async-off", "KVM's statistics"),
        ("unmap+mc", "mce", "user-read", "machine check"),
        ("unmap+event", "msi", "user-read", "KVM_SIGNAL_MSI"),
        ("engine+pf", "irqchip", "user-read", "irqchip"),
    ],
)
def test_cell_on_a_machine_that_lacks_something_is_untried_and_names_it(
    mechanism: str, lacks: str, column: str, why: str
) -> None:
    require_kvm()
    can = dataclasses.replace(probe(), **{lacks: False})

    # found out before anything is made
    got = trio.run(run_cell, KvmTestbed(None, can), MECHANISMS[mechanism], column)  # type: ignore[arg-type]
    assert got.outcome is Outcome.UNTRIED
    assert why in got.detail


# ---- model and reality


def test_rows_of_kvm_stand_beside_the_design_they_are_the_reality_of() -> None:
    of_model = [Row(name, "") for name in ("mainline", "report")]
    on_kvm = [
        Row(name, "", "kvm", MECHANISMS[name].models) for name in ("kernel", "unmap+mc", "engine+event")
    ]
    assert [row.name for row in beside(of_model, on_kvm)] == [
        "mainline",
        "kernel",
        "report",
        "engine+event",
        "unmap+mc",
    ]


def test_every_difference_between_model_and_kvm_has_a_reason() -> None:
    """On what differs, and on as much that does not."""
    columns = sorted({column for _, column in WHY} | {"user-read", "slow-page", "grown"})
    designs = ["mainline", "rfc-v1", "exit-to-user", "inject-on-retry", "poison", "report"]
    got = run(
        designs=[DESIGNS[name] for name in designs],
        mechanisms=of_designs(designs),
        columns=[name for name in columns if name in KVM_BEHAVIOUR],
    ).differences
    assert {one.design for one in got} >= {"mainline", "rfc-v1"}
    for one in got:
        assert one.why, one
        assert one.model != one.kvm


def test_every_reason_for_a_difference_is_documented() -> None:
    section = PAGE.read_text().split("## Model and reality")[1]
    for design, column in WHY:
        assert any(f"`{column}`" in line and f"`{design}`" in line for line in section.splitlines()), (
            design,
            column,
        )


def test_difference_nobody_has_foreseen_is_told_without_a_reason() -> None:
    model = {"user-read": Cell(Outcome.SIGBUS, "SIGBUS", ok=True), "cpu": Cell(Outcome.MEASURED, "1 ms")}
    real = {"user-read": Cell(Outcome.HANG, "HANG", ok=False), "cpu": Cell(Outcome.LOOP, "9 %")}
    (one,) = differences("report", model, "engine+event", real)
    assert (one.column, one.model, one.kvm, one.why) == ("user-read", "SIGBUS", "HANG", "")
    assert differences("report", model, "engine+event", {"user-read": Cell(Outcome.UNTRIED, "")}) == []


# ---- costs


def test_costs_on_kvm_of_a_loop_and_of_an_error() -> None:
    mechanisms = [MECHANISMS[name] for name in ("kernel", "ready-flag", "engine+event")]
    found = run(designs=[], mechanisms=mechanisms, columns=["latency", "cpu", "others"])
    assert [column.name for column in found.columns] == ["latency", "cpu"]
    for name in ("latency", "cpu"):
        assert cell(found, "kernel", name).outcome is Outcome.LOOP
        assert cell(found, "ready-flag", name).outcome is Outcome.UNTRIED
        assert tried(found, "engine+event", name).outcome is Outcome.MEASURED
    (latency,) = found.latency
    assert latency["design"] == "engine+event"
    assert 0 < latency["p50_us"] <= latency["p99_us"]
