# SPDX-License-Identifier: Apache-2.0
"""Who calls whom among the C objects of a build, as nm(1) has it: downward among the rooms, and in
no circle inside one."""

import json
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest
from checkout import NATIVE, ROOT

from daxfault.native import _daxfault

# Lowest first: each may call those before it.
HOST = ["abi", "base", "keeper", "source", "cache", "apf", "space", "engine"]
# Each may call `base` and itself.
BESIDE = ["guard", "kvm", "linux", "program", "standin"]

MAY_CALL = {
    **{room: set(HOST[:i]) for i, room in enumerate(HOST)},
    **{room: {"abi", "base"} for room in BESIDE},
    "python": {*HOST, "guard", "kvm"},
}


@dataclass
class Unit:
    """The objects that are linked together: what defines a symbol, and what wants it."""

    defines: dict[str, Path] = field(default_factory=dict)
    wants: dict[Path, set[str]] = field(default_factory=lambda: defaultdict(set))


@dataclass(frozen=True)
class Call:
    symbol: str
    caller: Path  # source, below native/
    callee: Path

    def __str__(self) -> str:
        return f"{self.caller} calls {self.symbol} of {self.callee}"


def source_of(build: Path, entry: dict[str, str]) -> Path:
    """Below native/: a generated one by where it is generated."""
    source = (Path(entry["directory"]) / entry["file"]).resolve()
    return source.relative_to(NATIVE if source.is_relative_to(NATIVE) else build / "native")


@cache
def units() -> dict[str, Unit]:
    build = next(path for path in Path(_daxfault.__file__).resolve().parents if path.parent == ROOT / "build")
    found: dict[str, Unit] = defaultdict(Unit)
    for entry in json.loads((build / "compile_commands.json").read_text()):
        output = Path(entry["output"])
        if output.parts[0] != "native":
            continue
        source, unit = source_of(build, entry), found[output.parent.name]
        listing = subprocess.run(
            ["nm", "-P", "-g", build / output], capture_output=True, text=True, check=True
        )
        for line in listing.stdout.splitlines():
            symbol, kind = line.split()[:2]
            if kind in "Uwv":
                unit.wants[source].add(symbol)
            else:
                unit.defines[symbol] = source
    return found


@cache
def calls() -> frozenset[Call]:
    engine = next(unit for name, unit in units().items() if name.startswith("libdaxfault_engine."))
    return frozenset(
        Call(symbol, caller, callee)
        for unit in units().values()
        for caller, symbols in unit.wants.items()
        for symbol in symbols
        if (callee := unit.defines.get(symbol) or engine.defines.get(symbol)) and callee != caller
    )


def circles(room: str) -> Iterator[Call]:
    """The calls among objects of a room that come back to where they started."""
    inside = [call for call in calls() if call.caller.parts[0] == call.callee.parts[0] == room]
    reached: dict[Path, set[Path]] = defaultdict(set)
    for call in inside:
        reached[call.caller].add(call.callee)
    grown = True
    while grown:
        grown = False
        for callees in reached.values():
            more = set().union(*(reached.get(callee, set()) for callee in callees)) - callees
            callees |= more
            grown |= bool(more)
    return (call for call in inside if call.caller in reached.get(call.callee, set()))


def listed(found: Iterator[Call]) -> str:
    return "\n".join(sorted(map(str, found)))


def test_every_room_with_c_sources_has_objects_and_a_place_in_the_order() -> None:
    sources = {source for unit in units().values() for source in (*unit.wants, *unit.defines.values())}
    rooms = {path.relative_to(NATIVE).parts[0] for path in NATIVE.rglob("*.c")}
    built = {source.parts[0] for source in sources}
    assert rooms <= set(MAY_CALL)
    # layout.c has assertions only, and an empty object; linux is compiled for its own kernels
    assert rooms - built <= {"abi", "linux"}
    assert len(sources) > 90
    assert len(calls()) > 500


def test_calls_among_rooms_go_downward() -> None:
    upward = (
        call
        for call in calls()
        if call.callee.parts[0] != call.caller.parts[0]
        and call.callee.parts[0] not in MAY_CALL[call.caller.parts[0]]
    )
    assert not (found := listed(upward)), found


@pytest.mark.parametrize("room", [*HOST, *BESIDE])
def test_calls_inside_a_room_have_no_circle(room: str) -> None:
    assert not (found := listed(circles(room))), found


def test_userfaultfd_calls_of_the_host_are_those_of_its_address_spaces() -> None:
    others = (
        call
        for call in calls()
        if call.callee == Path("base/uffd.c")
        and call.caller.parts[0] in HOST
        and call.caller.parts[0] not in {"base", "space"}
    )
    assert not (found := listed(others)), found
