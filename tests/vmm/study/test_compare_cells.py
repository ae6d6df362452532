# SPDX-License-Identifier: Apache-2.0
"""Every cell of the comparison against docs/designs/: each design, each access, run once for all tests."""

import functools

import pytest
import trio
from needs import require, require_fuse

from daxfault import native
from daxfault.vmm.designs import DESIGNS, POSTED, as_posted
from daxfault.vmm.study import compare
from daxfault.vmm.study.compare import COLUMNS, Cell, Comparison, Outcome
from daxfault.vmm.study.compare.behaviour import BEHAVIOUR

SECONDS = 0.1

# what a cell may be: an outcome, whether it is right, and words that its text has
RIGHT = {
    "sigbus": (Outcome.SIGBUS, True, "exact address"),
    "sigbus-": (Outcome.SIGBUS, None, "no address"),
    "efault": (Outcome.EFAULT, True, "EFAULT"),
    "panic": (Outcome.PANIC, True, "panics"),
    "told": (Outcome.LOOP, False, "told"),
    "halted": (Outcome.LOOP, False, "halted"),
    "loop": (Outcome.LOOP, False, "LOOP"),
    "stop": (Outcome.STOPPED, False, "VM stopped"),
    "bytes": (Outcome.BYTES, True, "bytes"),
    "killed": (Outcome.KILLED, True, "killed"),
}

# docs/designs/*.md, "What happens"; columns in the order of COLUMNS
CELLS = {
    "user-read":         "told   sigbus sigbus- stop   sigbus- sigbus sigbus sigbus",
    "user-write":        "told   sigbus sigbus- stop   sigbus- sigbus sigbus sigbus",
    "kernel-entry":      "halted efault halted  stop   efault  efault efault efault",
    "kernel-bare":       "halted panic  halted  stop   panic   panic  panic  panic",
    "system-call":       "halted halted halted  stop   halted  stop   efault efault",
    "interrupts-off":    "stop   stop   stop    stop   stop    efault efault efault",
    "async-off":         "halted halted halted  stop   halted  sigbus sigbus sigbus",
    "two-tasks":         "loop   sigbus sigbus- stop   sigbus- sigbus sigbus sigbus",
    "queue-full":        "stop   stop   stop    stop   stop    sigbus sigbus sigbus",
    "grown":             "bytes  bytes  bytes   stop   bytes   bytes  bytes  bytes",
    "io-error":          "told   sigbus sigbus- stop   sigbus- sigbus sigbus sigbus",
    "no-space":          "told   sigbus sigbus- stop   sigbus- sigbus sigbus sigbus",
    "killed":            "killed killed killed  killed killed  killed killed killed",
    "slow-page":         "bytes  bytes  bytes   bytes  bytes   bytes  bytes  bytes",
    "wake-all":          "bytes  bytes  bytes   bytes  bytes   bytes  bytes  bytes",
    "kernel-after-user": "told   efault halted  stop   efault  efault efault efault",
}  # fmt: skip

# a defect, and the only cells in which it shows: what the plain RFC gets there, and what it gets
DEFECTS: dict[str, dict[str, tuple[Outcome, str]]] = {
    "success-is-error": {
        "slow-page": (Outcome.SIGBUS, "SIGBUS"),
    },
    "foll-write": {
        "slow-page": (Outcome.SIGBUS, "SIGBUS"),
    },
    "no-entry-loops": {
        "kernel-bare": (Outcome.LOOP, "told"),
    },
    "gla-or": {
        "kernel-after-user": (Outcome.WRONG, "address of another access"),
    },
    "stale-gva": {
        "kernel-after-user": (Outcome.WRONG, "address of another access"),
    },
    "no-gva-flag": {
        "kernel-entry": (Outcome.WRONG, "address 0"),
        "kernel-after-user": (Outcome.WRONG, "address 0"),
    },
    "wake-all-uninit": {
        "wake-all": (Outcome.SIGBUS, "SIGBUS"),
    },
}
# whether the access is told again after the wake-all, or its vCPU halted, is the order of two threads
EITHER = {("success-is-error", "wake-all")}


def run(*args: object, **kwargs: object) -> Comparison:
    require_fuse()
    try:
        native.uffd_probe()
    except OSError as exc:
        require(False, f"userfaultfd: {exc}")

    return trio.run(functools.partial(compare.run, *args, seconds=SECONDS, **kwargs))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def plain() -> Comparison:
    """Every design, every question about behaviour."""
    return run(columns=list(BEHAVIOUR))


@pytest.fixture(scope="module")
def posted() -> dict[str, dict[str, Cell]]:
    """RFC v1 with each defect, in the columns in which some defect shows."""
    columns = sorted({column for cells in DEFECTS.values() for column in cells})
    found = run(designs=[as_posted([name]) for name in POSTED], columns=columns)
    return {name: row.cells for name, row in zip(POSTED, found.rows, strict=True)}


def cell(found: Comparison, design: str, column: str) -> Cell:
    return next(row for row in found.rows if row.name == design).cells[column]


def test_cells_of_the_table_are_those_of_the_comparison() -> None:
    assert list(CELLS) == list(BEHAVIOUR)
    assert all(len(cells.split()) == len(DESIGNS) for cells in CELLS.values())
    assert set(DEFECTS) == set(POSTED)


@pytest.mark.parametrize("column", CELLS)
@pytest.mark.parametrize("design", DESIGNS)
def test_cell_of_a_design_is_as_its_page_says(plain: Comparison, design: str, column: str) -> None:
    wanted = CELLS[column].split()[list(DESIGNS).index(design)]
    outcome, ok, words = RIGHT[wanted]
    got = cell(plain, design, column)
    assert (got.outcome, got.ok) == (outcome, ok), got
    assert words in got.text


@pytest.mark.parametrize("design", DESIGNS)
def test_cells_of_loops_have_a_rate_and_others_have_none(plain: Comparison, design: str) -> None:
    for column in CELLS:
        got = cell(plain, design, column)
        assert (got.rate is not None) == (got.outcome is Outcome.LOOP)
        if got.rate is not None:
            assert got.rate > 0


@pytest.mark.parametrize("design", DESIGNS)
def test_cells_tell_every_message_in_order_of_time(plain: Comparison, design: str) -> None:
    for column in CELLS:
        events = cell(plain, design, column).events
        times = [event["ns"] for event in events]
        assert times == sorted(times)
        assert any(event["what"] == "fault" for event in events), column
        for event in events:
            assert set(event) == {"ns", "who", "to", "what", "token", "note"}


def test_promise_of_report_is_kept(plain: Comparison) -> None:
    assert plain.kept


@pytest.mark.parametrize("defect", POSTED)
def test_rfc_v1_as_posted_shows_its_defect_and_corrected_does_not(
    plain: Comparison, posted: dict[str, dict[str, Cell]], defect: str
) -> None:
    for column, got in posted[defect].items():
        corrected = cell(plain, "rfc-v1", column)
        assert corrected.ok
        if (defect, column) in EITHER:
            continue
        if column not in DEFECTS[defect]:
            assert (got.outcome, got.ok) == (corrected.outcome, corrected.ok), column
            continue
        outcome, words = DEFECTS[defect][column]
        assert got.outcome is outcome
        assert got.ok is False
        assert words in got.text


def test_costs_of_mainline_and_report_say_what_a_loop_costs() -> None:
    names = ["latency", "cpu", "others"]
    found = run(designs=[DESIGNS["mainline"], DESIGNS["report"]], columns=names)
    assert [column.name for column in found.columns] == names
    assert set(names) < set(COLUMNS)
    for name in ("latency", "cpu"):
        assert cell(found, "mainline", name).outcome is Outcome.LOOP
        assert cell(found, "report", name).outcome is Outcome.MEASURED
    assert [row["design"] for row in found.latency] == ["report"]
    assert 0 < found.latency[0]["p50_us"] <= found.latency[0]["p99_us"]
    on, off = found.series
    assert on["async"]
    assert not off["async"]
    assert off["ratio"] > 0  # which of the two is quicker is the machine's to say, not a test's
    for series in found.series:
        assert len(series["points"]) >= 4
