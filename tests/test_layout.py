# SPDX-License-Identifier: Apache-2.0
"""The house rules that a program can check: what every file starts with, and its length."""

import ast
import re
from pathlib import Path

import pytest
from checkout import ROOT

ROOMS = ("native", "fsd", "vmm", "tests", "scripts")
MOST_LINES = 420
# not written out, or this file would be found
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|root|home|Users)/\w")


def files(*suffixes: str) -> list[Path]:
    """Every source file of the rooms with one of `suffixes`, relative to ROOT."""
    return sorted(
        path.relative_to(ROOT)
        for room in ROOMS
        for path in (ROOT / room).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix in suffixes
    )


PYTHON = files(".py")
C = files(".c", ".h", ".S")
SCRIPTS = [path for path in files("") if (ROOT / path).read_bytes().startswith(b"#!")]


def named(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=str)


@named(PYTHON)
def test_python_file_has_a_docstring(path: Path) -> None:
    assert ast.get_docstring(ast.parse((ROOT / path).read_bytes()))


@named(C)
def test_c_file_has_a_head_comment_with_its_name(path: Path) -> None:
    text = (ROOT / path).read_text()
    comment = text[: text.index("*/")]
    assert text.startswith("/*")
    assert f" * {path.name} - " in comment


@named(PYTHON + C + SCRIPTS)
def test_file_names_its_licence(path: Path) -> None:
    first = (ROOT / path).read_text().splitlines()[:2]
    assert any("SPDX-License-Identifier: Apache-2.0" in line for line in first)


@named(PYTHON + C + SCRIPTS)
def test_file_is_short(path: Path) -> None:
    assert len((ROOT / path).read_text().splitlines()) < MOST_LINES


@named(PYTHON + C + SCRIPTS)
def test_file_names_no_path_of_one_machine(path: Path) -> None:
    assert not MACHINE_PATH.findall((ROOT / path).read_text())
