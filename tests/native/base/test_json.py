# SPDX-License-Identifier: Apache-2.0
"""json.c: what it writes is JSON, whatever the values and however little room there is."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
from collections.abc import Callable

import pytest
from checkout import ROOT
from needs import require


class Writer(ctypes.Structure):
    """struct json."""

    _fields_ = [
        ("text", ctypes.c_char_p),
        ("room", ctypes.c_size_t),
        ("len", ctypes.c_size_t),
        ("open", ctypes.c_uint),
        ("left_out", ctypes.c_uint),
    ]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    require(compiler, "a C compiler")
    path = tmp_path_factory.mktemp("json") / "json.so"
    source = ROOT / "native" / "base" / "json.c"
    flags = ["-D_GNU_SOURCE", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler or "cc", *flags, "-o", path, source], check=True)
    return ctypes.CDLL(str(path))


def written(library: ctypes.CDLL, room: int, write: Callable[[ctypes.CDLL, Writer], None]) -> str:
    """What `write` puts into one object, for which there are `room` bytes."""
    buffer = ctypes.create_string_buffer(b"\xff" * (room + 8))
    writer = Writer()
    library.json_begin(ctypes.byref(writer), buffer, ctypes.c_size_t(room))
    library.json_object_begin(ctypes.byref(writer), None)
    write(library, writer)
    library.json_object_end(ctypes.byref(writer))
    assert writer.len <= room
    assert buffer.raw[room:].startswith(b"\xff" * 8)
    return buffer.raw[: writer.len].decode("ascii")


def every_kind(library: ctypes.CDLL, writer: Writer) -> None:
    j = ctypes.byref(writer)
    library.json_int(j, b"int", ctypes.c_int64(-(2**63)))
    library.json_uint(j, b"uint", ctypes.c_uint64(2**64 - 1))
    library.json_real(j, b"real", ctypes.c_double(0.25))
    library.json_bool(j, b"bool", ctypes.c_bool(True))
    library.json_null(j, b"null")
    library.json_address(j, b"address", ctypes.c_uint64(0xABC000))
    library.json_text(j, b"text", bytes(range(1, 256)))
    library.json_hex(j, b"hex", b"\x00\x9f", ctypes.c_size_t(2))
    library.json_list_begin(j, b"list")
    library.json_uint(j, None, ctypes.c_uint64(1))
    library.json_object_begin(j, None)
    library.json_object_end(j)
    library.json_list_end(j)
    library.json_object_begin(j, b"object")
    library.json_uint(j, b"last", ctypes.c_uint64(7))
    library.json_object_end(j)


EVERY_KIND = {
    "int": -(2**63),
    "uint": 2**64 - 1,
    "real": 0.25,
    "bool": True,
    "null": None,
    "address": "0xabc000",
    "text": "".join(map(chr, range(1, 256))),
    "hex": "009f",
    "list": [1, {}],
    "object": {"last": 7},
}


def test_json_of_every_kind_of_value_is_what_a_reader_takes_it_for(library: ctypes.CDLL) -> None:
    assert json.loads(written(library, 4096, every_kind)) == EVERY_KIND


def test_json_without_room_leaves_out_whole_fields(library: ctypes.CDLL) -> None:
    whole = len(written(library, 4096, every_kind))
    for room in range(2, whole + 1):
        found = json.loads(written(library, room, every_kind))
        assert found.items() <= EVERY_KIND.items() or {"list", "object"} & set(found)
        for key in set(found) - {"list", "object"}:
            assert found[key] == EVERY_KIND[key]
    assert found == EVERY_KIND
