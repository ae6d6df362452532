# SPDX-License-Identifier: Apache-2.0
"""Python's parsers on any bytes: the wires of guests and of programs, rules, requests on the control socket.

    python fuzz_python.py TARGET [OPTION OF LIBFUZZER]...

Each may refuse with its own error, and with no other.  Owns the targets; atheris draws the bytes.
"""

from __future__ import annotations

import sys
from typing import Any

import atheris

with atheris.instrument_imports(include=["daxfault"]):
    import trio

    from daxfault.native import guest_wire, program_wire, wire
    from daxfault.vmm.programs import control, faults


def _wire(module: Any, data: bytes) -> None:
    """With a header that fits, or as it comes."""
    if not data:
        return
    packet = bytearray(data[1:])
    if data[0] & 4 and len(packet) >= 8:
        kinds = sorted(module.KINDS)
        packet[0:4] = int(kinds[packet[0] % len(kinds)]).to_bytes(4, "little")
        packet[4:8] = len(packet).to_bytes(4, "little")
    try:
        message = module.parse(bytes(packet), data[0] & 3)
    except wire.ProtocolError:
        return
    wire.reply(message, 5)


def guests(data: bytes) -> None:
    _wire(guest_wire, data)


def programs(data: bytes) -> None:
    _wire(program_wire, data)


def rules(data: bytes) -> None:
    try:
        rule = faults.parse(data.decode(errors="surrogateescape"))
    except faults.BadRule:
        return
    assert faults.parse(str(rule)) == rule


class _Programs:
    """Stands for a host: every request that is understood fails."""

    def __getattr__(self, name: str) -> Any:
        raise OSError(f"no {name}")


def requests(data: bytes) -> None:
    answer = control.Control(_Programs())._answer  # type: ignore[arg-type]
    assert isinstance(trio.run(answer, data), dict)


TARGETS = {"guests": guests, "programs": programs, "rules": rules, "requests": requests}

if __name__ == "__main__":
    target = TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()
