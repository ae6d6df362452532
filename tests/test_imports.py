# SPDX-License-Identifier: Apache-2.0
"""The package's imports go one way: from the command line down to native.

Reads every import of every module: at the top, inside functions, under TYPE_CHECKING.
"""

from __future__ import annotations

import ast
import functools
import graphlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkout import ROOT

# A room imports itself and those before it.
ROOMS = (
    "native",
    "fsd",
    "vmm.errors",
    "vmm.names",
    "vmm.designs",
    "vmm.host",
    "vmm.kvm",
    "vmm.programs",
    "vmm.study",
    "vmm.doctor",
    "vmm.cli",
    "daxfault",
)
# folder -> package; the longest that matches counts (meson.build)
PACKAGES = {
    "native/python": "daxfault.native",
    "fsd": "daxfault.fsd",
    "vmm": "daxfault.vmm",
    "vmm/daxfault": "daxfault",
}
# Tests of native, and the peers that write messages byte by byte.  Other tests use what native offers.
TESTS_OF_THE_CONTRACT = (
    "tests/native/",
    "tests/support/",
    "tests/vmm/programs/test_run_hostile_wire.py",
)


def module_of(path: Path) -> str:
    folder = max((f for f in PACKAGES if path.is_relative_to(f)), key=len)
    inside = path.relative_to(folder).with_suffix("").parts
    return ".".join([PACKAGES[folder], *(part for part in inside if part != "__init__")])


@functools.cache
def modules() -> dict[str, Path]:
    """Every module of the package, and its file relative to ROOT."""
    return {
        module_of(path.relative_to(ROOT)): path.relative_to(ROOT)
        for folder in PACKAGES
        for path in (ROOT / folder).rglob("*.py")
        if "__pycache__" not in path.parts
    }


def imports(module: str) -> Iterator[tuple[int, str]]:
    """(line, module of ours) for each import in a module."""
    path = modules()[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse((ROOT / path).read_bytes())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")
            above = above[: len(above) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = [
                inner if (inner := f"{base}.{alias.name}") in modules() else base for alias in node.names
            ]
        else:
            continue
        for name in names:
            if name in modules() and name != module:
                yield node.lineno, name


def room_of(module: str) -> str | None:
    """None for a package of rooms that has no code."""
    name = module.removeprefix("daxfault.")
    found = [room for room in ROOMS if name == room or name.startswith(f"{room}.")]
    return found[0] if found else None if name == "vmm" else "daxfault"


EVERY = pytest.mark.parametrize("module", sorted(modules()))


def test_modules_of_every_room_are_read() -> None:
    assert {room_of(module) for module in modules()} == {*ROOMS, None}


@EVERY
def test_imports_of_a_module_go_downward(module: str) -> None:
    own = room_of(module)
    upward = [
        f"{modules()[module]}:{line}: {own} imports {name}, of {room_of(name)}"
        for line, name in imports(module)
        if own is None or ROOMS.index(room_of(name) or "daxfault") > ROOMS.index(own)
    ]
    assert not upward, "\n".join(upward)


def test_imports_of_modules_form_no_circle() -> None:
    graph = {module: {name for _, name in imports(module)} for module in modules()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as e:
        pytest.fail(" imports ".join(reversed(e.args[1])))


def raw(path: Path) -> list[int]:
    """Lines that import or reach for the C extension, its `ffi` or its `lib`."""
    lines = []
    for node in ast.walk(ast.parse((ROOT / path).read_bytes())):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("daxfault"):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
            holder = node.value.id if isinstance(node.value, ast.Name) else node.value.attr
            names = [node.attr] if holder in ("native", "_daxfault") else []
        if {"ffi", "lib", "_daxfault"}.intersection(names):
            lines.append(node.lineno)
    return lines


@pytest.mark.parametrize("module", [m for m in sorted(modules()) if room_of(m) != "native"])
def test_c_extension_is_used_in_native_alone(module: str) -> None:
    lines = raw(modules()[module])
    assert not lines, f"{modules()[module]}: lines {lines} use ffi or lib"


def test_c_extension_is_used_by_tests_of_the_contract_alone() -> None:
    users = [
        os.fspath(path.relative_to(ROOT))
        for room in ("tests", "scripts")
        for path in (ROOT / room).rglob("*.py")
        if raw(path.relative_to(ROOT))
    ]
    assert [user for user in users if not user.startswith(TESTS_OF_THE_CONTRACT)] == []
