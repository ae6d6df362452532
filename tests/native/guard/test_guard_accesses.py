# SPDX-License-Identifier: Apache-2.0
"""daxfault.guard() around every kind of access to a page that fails: it is an exception that says where."""

import ctypes
import mmap
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from failing_file import KEPT, PAGE, PAGES, FailingFile, content, in_thread, standing_in

import daxfault

BAD = KEPT * PAGE  # the first byte that cannot be had


@pytest.fixture
def file(tmp_path: Path) -> FailingFile:
    file = FailingFile(tmp_path)
    bytes(file.map)  # present, as they are in real programs
    file.cut()
    return file


def memcpy(m: mmap.mmap) -> object:
    size = 2 * PAGE
    into = ctypes.create_string_buffer(size)
    return ctypes.memmove(into, ctypes.addressof(ctypes.c_char.from_buffer(m, BAD - PAGE)), size)


READS: dict[str, Callable[[mmap.mmap], object]] = {
    "item": lambda m: m[BAD],
    "slice": lambda m: m[BAD - 8 : BAD + 8],
    "read": lambda m: (m.seek(0), m.read()),
    "find": lambda m: m.find(b"\xff"),
    "line": lambda m: (m.seek(BAD), m.readline()),
    "view": lambda m: bytes(memoryview(m)[BAD : BAD + 1]),
    "comparison": lambda m: memoryview(m)[BAD : BAD + 1] == b"x",
    "straddling": lambda m: struct.unpack_from("<Q", m, BAD - 4),
    "pointer": lambda m: ctypes.c_uint64.from_buffer(m, BAD).value,
    "memcpy": memcpy,
    "integer": lambda m: int.from_bytes(memoryview(m)[BAD:], "little"),
}


@pytest.mark.parametrize("name", READS)
def test_guard_read_of_a_page_that_is_gone_raises(file: FailingFile, name: str) -> None:
    with pytest.raises(daxfault.MappingError) as caught, daxfault.guard():
        READS[name](file.map)
    record, *_ = caught.value.records
    assert (record.path, record.write) == (os.fspath(file.path), False)
    assert record.offset == BAD
    assert standing_in() == []


def test_guard_block_without_a_fault_raises_nothing(file: FailingFile) -> None:
    with daxfault.guard() as guard:
        assert file.map[:BAD] == content()[:BAD]
        assert file.map[BAD:BAD] == b""
        guard.check()
        assert guard.records == ()


def test_guard_store_to_a_page_that_is_gone_is_told_as_one(file: FailingFile) -> None:
    with pytest.raises(daxfault.MappingError, match="stores lost") as caught, daxfault.guard():
        file.map[BAD + 7] = 1
    (record,) = caught.value.records
    assert (record.offset, record.write, record.pages) == (BAD + 7, True, 1)


@pytest.mark.parametrize("value", [0, 1])
def test_guard_store_after_a_read_of_the_same_page_is_told(file: FailingFile, value: int) -> None:
    """Which raises no signal of its own, be it zeros over zeros."""
    fill = ctypes.memset
    at = ctypes.addressof(ctypes.c_char.from_buffer(file.map, BAD))
    into = ctypes.create_string_buffer(1)

    def touch() -> None:
        with daxfault.guard(threads=True) as guard:
            ctypes.memmove(into, at, 1)
            assert [record.write for record in guard.records] == [False]
            fill(at + 1, value, 1)

    with pytest.raises(daxfault.MappingError) as caught:
        in_thread(touch)
    assert [record.write for record in caught.value.records] == [True]


def test_guard_store_that_the_page_took_before_it_was_gone_is_nothing_of_its(tmp_path: Path) -> None:
    file = FailingFile(tmp_path)
    file.map[BAD] = 9
    file.cut()
    with pytest.raises(daxfault.MappingError) as caught, daxfault.guard():
        file.map[BAD]
    assert [record.write for record in caught.value.records] == [False]


def test_guard_sweep_over_many_pages_is_one_record(file: FailingFile) -> None:
    with pytest.raises(daxfault.MappingError) as caught, daxfault.guard():
        bytes(file.map)
    (record,) = caught.value.records
    assert (record.offset, record.pages) == (BAD, PAGES - KEPT)
    assert str(record) == f"{file.path}: offset {BAD}, {PAGES - KEPT} pages"
    assert caught.value.filename == os.fspath(file.path)
    assert str(caught.value) == (
        f"[Errno 14] a mapping failed at offset {BAD}, {PAGES - KEPT} pages: '{file.path}'"
    )


def test_guard_more_scattered_faults_than_records_are_counted(tmp_path: Path) -> None:
    pages = 400
    path = tmp_path / "large"
    path.write_bytes(bytes(pages * PAGE))
    with open(path, "r+b") as opened:
        m = mmap.mmap(opened.fileno(), 0)
    os.truncate(path, 0)
    at = [*range(0, pages, 2)]
    with pytest.raises(daxfault.MappingError, match="and 199 more") as caught, daxfault.guard():
        memoryview(m).cast("B")[:: 2 * PAGE].tobytes()
    assert [record.offset for record in caught.value.records] == [page * PAGE for page in at[:64]]
    assert caught.value.omitted == len(at) - 64
    assert standing_in() == []


def test_guard_large_mapping_that_is_gone_altogether_is_one_record(tmp_path: Path) -> None:
    pages = 1 << 15
    path = tmp_path / "sparse"
    path.touch()
    os.truncate(path, pages * PAGE)
    with open(path, "r+b") as opened:
        m = mmap.mmap(opened.fileno(), 0)
    os.truncate(path, 0)
    with pytest.raises(daxfault.MappingError) as caught, daxfault.guard():
        m.find(b"x")
    assert [record.pages for record in caught.value.records] == [pages]


def test_guard_private_mapping_of_a_file_that_is_cut_raises(tmp_path: Path) -> None:
    file = FailingFile(tmp_path)
    private = file.mapped(flags=mmap.MAP_PRIVATE)
    private[0] = private[BAD] = 77
    file.cut()
    with pytest.raises(daxfault.MappingError) as caught, daxfault.guard():
        private[BAD]
    assert caught.value.records[0].offset == BAD
    assert private[0] == 77  # a copy of its own, before the end
    file.heal()
    assert private[BAD] == KEPT + 1


def test_guard_read_only_mapping_stays_one_while_zeros_stand_in(tmp_path: Path) -> None:
    file = FailingFile(tmp_path)
    read_only = file.mapped(prot=mmap.PROT_READ)
    file.cut()
    seen = []

    def look() -> None:
        with daxfault.guard():
            seen.extend([read_only[BAD], rights_at(read_only, BAD)])

    with pytest.raises(daxfault.MappingError):
        in_thread(look)
    assert seen == [0, "r--p"]
    assert rights_at(read_only, BAD) == "r--s"


def rights_at(m: mmap.mmap, offset: int) -> str:
    import numpy as np

    address = np.frombuffer(m, dtype=np.uint8).ctypes.data + offset
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, rights, *_ = line.split()
        start, end = (int(number, 16) for number in span.split("-"))
        if start <= address < end:
            return rights
    raise AssertionError(hex(address))


def test_guard_system_call_on_a_page_that_is_gone_has_its_own_error(file: FailingFile) -> None:
    read, write = os.pipe()
    error = pytest.raises(OSError, match="Bad address")
    with open(read), open(write, "wb"), daxfault.guard(), error as caught:
        os.write(write, memoryview(file.map)[BAD:])
    assert not isinstance(caught.value, daxfault.MappingError)


# ---------------------------------------------------------------- numpy

np = pytest.importorskip("numpy")

REDUCTIONS: dict[str, Callable[..., object]] = {
    "sum": lambda a: a.sum(),
    "compare": lambda a: (a == a[::-1]).all(),
    "fancy": lambda a: a[np.array([0, BAD, BAD + 3 * PAGE])],
    "mask": lambda a: a[np.ones(len(a), dtype=bool)],
    "sort": lambda a: np.sort(a),
    "copy": lambda a: a.astype(np.float64),
    "dot": lambda a: np.dot(a.view(np.uint64), a.view(np.uint64)),
    "strided": lambda a: a[::PAGE].max(),
    "string": lambda a: a.tobytes(),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_guard_numpy_reading_pages_that_are_gone_raises(file: FailingFile, name: str) -> None:
    array = np.frombuffer(file.map, dtype=np.uint8)
    with pytest.raises(daxfault.MappingError) as caught, daxfault.guard():
        REDUCTIONS[name](array)
    assert caught.value.records[0].path == os.fspath(file.path)
    assert standing_in() == []


STORES: dict[str, Callable[..., object]] = {
    "fill": lambda a: a.fill(3),
    "slice": lambda a: a.__setitem__(slice(BAD - 5, BAD + 5), 1),
    "add": lambda a: np.add(a, 1, out=a),
    "fancy": lambda a: a.__setitem__(np.array([0, BAD]), 5),
}


@pytest.mark.parametrize("name", STORES)
def test_guard_numpy_storing_to_pages_that_are_gone_raises(file: FailingFile, name: str) -> None:
    array = np.frombuffer(file.map, dtype=np.uint8)
    with pytest.raises(daxfault.MappingError) as caught, daxfault.guard():
        STORES[name](array)
    assert any(record.write for record in caught.value.records)


def test_guard_numpy_memmap_is_whole_again_when_its_file_is(file: FailingFile) -> None:
    file.heal()
    array = np.memmap(file.path, dtype=np.uint8, mode="r+")
    before = int(array.sum())
    file.cut(1)
    with pytest.raises(daxfault.MappingError), daxfault.guard():
        array.sum()
    file.heal()
    with daxfault.guard():
        assert int(array.sum()) == before
    assert int(array.sum()) == before
