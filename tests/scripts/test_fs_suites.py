# SPDX-License-Identifier: Apache-2.0
"""scripts/suites/fs_suites: some of CPython's tests on a mount by default, everything in the slow lane."""

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from checkout import SCRIPTS
from needs import require, require_fuse, require_root

SUITES = SCRIPTS / "suites"


@pytest.fixture(scope="module")
def suites() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SUITES)
        yield importlib.import_module("fs_suites")


@pytest.fixture(scope="module")
def result(suites: Any) -> Any:
    """Makes a Result, of whether it passed and why not."""
    return importlib.import_module("fs_case").result


def run_suites(*arguments: str) -> tuple[int, dict[str, Any], str]:
    require_fuse()
    require_root()
    command = [sys.executable, str(SUITES / "fs_suites.py"), "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, json.loads(done.stdout), done.stderr


def test_some_of_cpythons_tests_pass_on_a_mount() -> None:
    status, told, progress = run_suites("--quick", "--suite", "cpython", "--on", "daxfault")
    ran = told["suites"]["cpython"]["daxfault"]
    require(not ran["missing"], ran["missing"])
    assert told["failures"] == []
    assert (status, ran["failed"]) == (0, 0), progress
    assert ran["passed"] > 200


@pytest.mark.slow
def test_mount_fails_no_case_of_any_suite_that_passthrough_hp_passes() -> None:
    status, told, progress = run_suites()
    for suite, places in told["suites"].items():
        for place, ran in places.items():
            require(not ran["missing"], f"{suite} on {place}: {ran['missing']}")
    assert [failure for failure in told["failures"] if failure["judged"] == "worse"] == []
    assert status == 0, progress


def test_cases_are_judged_by_whether_passthrough_hp_fails_them_too(suites: Any, result: Any) -> None:
    def ran(**outcomes: bool) -> Any:
        return suites.Ran({case: result(ok, "why") for case, ok in outcomes.items()})

    lacking = next(iter(suites.LACKING))
    found = {
        "any": {
            "daxfault": ran(one=False, two=False, three=True, four=True),
            "passthrough_hp": ran(one=True, two=False, three=False, four=True),
            "backing": ran(one=True, two=True, three=True, four=True),
        },
        "posix": {"daxfault": ran(**{lacking: False}), "passthrough_hp": ran(**{lacking: True})},
    }
    judged = {failure.case: failure.judged for failure in suites.judge(found, list(suites.NAMES))}
    assert judged == {"one": "worse", "two": "same", "three": "better", lacking: "lacking"}


def test_case_that_fails_on_a_mount_is_held_against_the_backing_where_nothing_else_ran(
    suites: Any, result: Any
) -> None:
    failed, passed = result(False, "why"), result(True, "")
    places = ["daxfault", "backing"]
    for theirs, judged in ((passed, "worse"), (failed, "same")):
        found = {"any": {"daxfault": suites.Ran({"case": failed}), "backing": suites.Ran({"case": theirs})}}
        assert [failure.judged for failure in suites.judge(found, places)] == [judged]


@pytest.mark.parametrize("arguments", [["--suite", "none"], ["--on", "none"]])
def test_suite_or_place_that_does_not_exist_is_refused_with_those_that_do(arguments: list[str]) -> None:
    command = [sys.executable, str(SUITES / "fs_suites.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "not one of" in done.stderr
