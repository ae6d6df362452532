# SPDX-License-Identifier: Apache-2.0
"""`daxfault compare`, as a person runs it: told, refused, interrupted; nothing is left behind."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import interrupted, told, wait_for_guest
from kvm_guest import require_kvm
from needs import require_root
from private_mounts import without

from daxfault.vmm.cli.compare import ColumnName, InjectionName, RescueName
from daxfault.vmm.designs import DESIGNS, POSTED
from daxfault.vmm.kvm.inject import Injection
from daxfault.vmm.kvm.window import Rescue
from daxfault.vmm.names import Defect, DesignName
from daxfault.vmm.study.compare import COLUMNS

COMPARE = [sys.executable, "-m", "daxfault", "compare", "--seconds", "0.05"]


def compare(top: Path, *options: str, before: tuple[str, ...] = ()) -> "subprocess.CompletedProcess[str]":
    return told(top, *before, *COMPARE, *options)


ONE_CELL = ("--design", "report", "--column", "user-read")


def test_compare_knows_every_design_column_and_defect() -> None:
    assert [name.value for name in DesignName] == list(DESIGNS)
    assert [name.value for name in ColumnName] == [*COLUMNS, "nested"]
    assert [name.value for name in RescueName] == list(Rescue)
    assert [name.value for name in InjectionName] == list(Injection)
    assert [name.value for name in Defect] == [*POSTED, "all"]


def test_compare_as_json_has_a_cell_a_design_and_column(top: Path) -> None:
    columns = ("user-read", "interrupts-off")
    done = compare(
        top, "--json", "--design", "mainline", "--design", "report", *(f"--column={name}" for name in columns)
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["version"] == 1
    assert found["kept"]
    assert [column["name"] for column in found["columns"]] == list(columns)
    cells = {row["design"]: row["cells"] for row in found["rows"]}
    assert {design: [cell["outcome"] for cell in row.values()] for design, row in cells.items()} == {
        "mainline": ["loop", "stopped"],
        "report": ["sigbus", "efault"],
    }
    assert cells["mainline"]["user-read"]["rate"] > 0
    assert cells["report"]["user-read"]["address_exact"]


def test_compare_for_a_terminal_shows_marks_and_a_verdict(top: Path) -> None:
    done = compare(top, "--design", "mainline", *ONE_CELL)
    assert done.returncode == 0, done.stderr
    for words in ("✗ LOOP", "/s, told", "✓ SIGBUS, exact address", "Nothing hung"):
        assert words in done.stdout


def test_compare_as_markdown_prints_a_table(top: Path) -> None:
    done = compare(top, "--markdown", *ONE_CELL)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("# ")
    assert "| user read | ✓ SIGBUS, exact address |" in done.stdout


def test_compare_as_posted_adds_a_row_a_defect(top: Path) -> None:
    options = ("--as-posted", "foll-write", "--as-posted", "no-entry-loops")
    expected = [
        ("rfc-v1", "bytes", True),
        ("rfc-v1 as posted: foll-write", "sigbus", False),
        ("rfc-v1 as posted: no-entry-loops", "bytes", True),
    ]
    # a task whose time slice ended just then is not told "not present", and waits for its bytes
    for _ in range(3):
        done = compare(top, "--json", "--design", "rfc-v1", "--column", "slow-page", *options)
        assert done.returncode == 0, done.stderr
        rows = {row["design"]: row["cells"]["slow-page"] for row in json.loads(done.stdout)["rows"]}
        found = [(name, cell["outcome"], cell["ok"]) for name, cell in rows.items()]
        if found == expected:
            break
    assert found == expected


def test_compare_to_a_page_writes_it(top: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = compare(top, "--html", str(page), *ONE_CELL)
    assert done.returncode == 0, done.stderr
    assert "<html" in page.read_text()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--design", "hope"], "hope"),
        (["--column", "weather"], "weather"),
        (["--as-posted", "typo"], "typo"),
        (["--seconds", "0"], "seconds"),
        (["--json", "--markdown"], "--markdown"),
        (["--html", "/nonexistent/page.html"], "/nonexistent/page.html"),
        (["--guest", "hope"], "hope"),
        (["--rescue", "unmap"], "--rescue"),
        (["--injection", "pf"], "--injection"),
        (["--guest", "kvm", "--as-posted", "all"], "--as-posted"),
        (["--guest", "kvm", "--column", "queue-full"], "queue-full"),
        (["--column", "no-irqchip"], "no-irqchip"),
    ],
)
def test_compare_asked_for_nonsense_exits_2_and_names_it(top: Path, options: list[str], words: str) -> None:
    done = compare(top, *options)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_compare_without_fuse_exits_3_and_names_doctor(top: Path) -> None:
    require_root()
    done = compare(top, *ONE_CELL, before=without("fuse"))
    assert done.returncode == 3
    assert "daxfault doctor" in done.stderr
    assert "Traceback" not in done.stderr


def test_compare_on_kvm_without_it_exits_3_and_names_it(top: Path) -> None:
    require_root()
    done = compare(top, "--guest", "both", before=without("kvm"))
    assert done.returncode == 3
    assert "/dev/kvm" in done.stderr
    assert "Traceback" not in done.stderr
    # the other guest does not mind
    assert compare(top, *ONE_CELL, before=without("kvm")).returncode == 0


def test_compare_on_kvm_takes_the_rows_that_were_asked_for(top: Path) -> None:
    require_kvm()
    asked = {
        ("--design", "mainline", "--design", "report"): ["kernel", "engine+event"],
        ("--rescue", "shrink", "--injection", "pf", "--injection", "mc"): ["shrink+pf", "shrink+mc"],
    }
    for options, rows in asked.items():
        done = compare(top, "--guest", "kvm", "--json", "--column", "user-read", *options)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert [row["design"] for row in found["rows"]] == rows
        assert {row["guest"] for row in found["rows"]} == {"kvm"}
        assert found["differences"] == []


def test_compare_both_guests_shows_them_side_by_side_and_why_they_differ(top: Path, tmp_path: Path) -> None:
    require_kvm()
    page = tmp_path / "page.html"
    designs = ("--design", "rfc-v1", "--design", "june-2020")
    done = compare(top, "--guest", "both", "--column", "async-off", "--html", str(page), *designs)
    assert done.returncode == 0, done.stderr
    for words in (" rfc-v1 ", " unmap+area ", "✗ LOOP", "✓ SIGBUS, exact address"):
        assert words in done.stdout
    assert "not here: ready-flag: KVM itself writes" in done.stdout
    assert "Model and reality" in done.stdout
    assert "the host injects at the access" in page.read_text()
    done = compare(top, "--guest", "both", "--column", "async-off", "--markdown", *designs)
    assert "| async faults off | rfc-v1: LOOP" in done.stdout


def test_compare_interrupted_in_a_loop_exits_130_and_leaves_nothing(top: Path) -> None:
    command = [*COMPARE[:-1], "60", "--design", "mainline", "--column", "user-read"]
    with interrupted(top, *command) as child:
        guest = wait_for_guest(child)
    assert not Path(f"/proc/{guest}").exists()


def test_compare_help_teaches_the_marks_and_the_exit_codes(top: Path) -> None:
    done = compare(top, "--help")
    assert done.returncode == 0
    for words in ("LOOP", "✓ yes", "docs/compare.md", "--as-posted all", "daxfault doctor"):
        assert words in done.stdout
