# SPDX-License-Identifier: Apache-2.0
"""When a daxfault.guard() raises what: nothing that was read from a page that failed leaves it unnoticed."""

import contextlib
import errno
import mmap
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
from failing_file import KEPT, PAGE, FailingFile, in_thread, program, standing_in

import daxfault

BAD = KEPT * PAGE
OTHER = BAD + 2 * PAGE


@pytest.fixture
def file(tmp_path: Path) -> FailingFile:
    file = FailingFile(tmp_path)
    file.cut()
    return file


def offsets(error: daxfault.MappingError) -> list[int | None]:
    return [record.offset for record in error.records]


def test_guard_in_the_main_thread_raises_before_the_next_statement(file: FailingFile) -> None:
    reached = []

    def read() -> None:
        with daxfault.guard():
            for _ in range(100):
                reached.append(file.map[BAD])

    with pytest.raises(daxfault.MappingError):
        read()
    assert len(reached) == 1  # the interpreter looks when it comes round


def test_guard_in_another_thread_raises_when_the_block_ends(file: FailingFile) -> None:
    reached: list[int] = []

    def read() -> None:
        with daxfault.guard():
            for _ in range(100):
                reached.append(file.map[BAD])

    with pytest.raises(daxfault.MappingError) as caught:
        in_thread(read)
    assert reached == [0] * 100
    assert offsets(caught.value) == [BAD]


def test_guard_check_raises_what_has_failed_so_far_and_once(file: FailingFile) -> None:
    raised: list[daxfault.MappingError] = []

    def read() -> None:
        with daxfault.guard() as guard:
            file.map[BAD]
            try:
                guard.check()
            except daxfault.MappingError as e:
                raised.append(e)
            assert standing_in() == []
            guard.check()
            file.map[OTHER]

    with pytest.raises(daxfault.MappingError) as caught:
        in_thread(read)
    assert [offsets(e) for e in raised] == [[BAD]]
    assert offsets(caught.value) == [OTHER]


def test_guard_error_of_check_leaves_the_block_as_it_is(file: FailingFile) -> None:
    raised: list[daxfault.MappingError] = []

    def read() -> None:
        with daxfault.guard() as guard:
            file.map[BAD]
            try:
                guard.check()
            except daxfault.MappingError as e:
                raised.append(e)
                raise

    with pytest.raises(daxfault.MappingError) as caught:
        in_thread(read)
    assert caught.value is raised[0]


def test_guard_whose_error_is_swallowed_inside_raises_it_at_the_end(file: FailingFile) -> None:
    """As by a library's own `except OSError`, or by the interpreter in a finalizer."""

    read = []

    def swallow(at: int) -> None:
        with contextlib.suppress(OSError):
            read.extend([file.map[at] for _ in range(2)])

    def block() -> None:
        with daxfault.guard():
            swallow(BAD)
            swallow(OTHER)

    with pytest.raises(daxfault.MappingError) as caught:
        block()
    assert read == []
    assert offsets(caught.value) == [BAD, OTHER]


def test_guard_whose_error_was_turned_into_another_lets_that_leave(file: FailingFile) -> None:
    def read() -> None:
        try:
            [file.map[BAD] for _ in range(2)]
        except daxfault.MappingError as e:
            raise KeyError from e

    with pytest.raises(KeyError) as caught, daxfault.guard():
        read()
    assert isinstance(caught.value.__cause__, daxfault.MappingError)


def test_guard_that_another_exception_leaves_is_chained_to_it(file: FailingFile) -> None:
    def read() -> None:
        with daxfault.guard():
            {}[file.map[BAD]]

    with pytest.raises(daxfault.MappingError) as caught:
        in_thread(read)
    assert isinstance(caught.value.__cause__, KeyError)


def test_guard_without_a_fault_lets_another_exception_leave(file: FailingFile) -> None:
    with pytest.raises(KeyError), daxfault.guard():
        {}[0]


def test_guard_inside_another_catches_and_the_outer_one_goes_on(file: FailingFile) -> None:
    with daxfault.guard() as outer:
        with pytest.raises(daxfault.MappingError) as caught, daxfault.guard():
            file.map[BAD]
        assert outer.records == ()
        assert standing_in() == []
    assert offsets(caught.value) == [BAD]


def test_guard_inside_one_that_has_failed_catches_the_same_page(file: FailingFile) -> None:
    inner: list[daxfault.MappingError] = []

    def read() -> None:
        with daxfault.guard():
            file.map[BAD]
            try:
                with daxfault.guard():
                    file.map[BAD]
            except daxfault.MappingError as e:
                inner.append(e)

    with pytest.raises(daxfault.MappingError) as caught:
        in_thread(read)
    assert offsets(caught.value) == [BAD]
    assert [offsets(e) for e in inner] == [[BAD]]


def test_guard_of_other_buffers_leaves_a_fault_to_the_one_around_it(tmp_path: Path) -> None:
    first, second = FailingFile(tmp_path, "first"), FailingFile(tmp_path, "second")
    first.cut()
    second.cut()
    inner = daxfault.guard(second.map)
    with pytest.raises(daxfault.MappingError) as caught, daxfault.guard(first.map, b""), inner:
        first.map[BAD]
    assert caught.value.__cause__ is None
    assert [record.path for record in caught.value.records] == [str(first.path)]


def test_guard_of_a_piece_of_a_buffer_is_about_its_pages(file: FailingFile, tmp_path: Path) -> None:
    view = memoryview(file.map)
    with pytest.raises(daxfault.MappingError), daxfault.guard(view[BAD + PAGE - 1 : BAD + PAGE + 1]):
        file.map[BAD + PAGE]
    script = """
with daxfault.guard(memoryview(array)[:PAGE], b""):
    array[PAGE]
"""
    assert program(tmp_path, script).returncode == -7  # SIGBUS


def test_guard_of_what_is_no_buffer_is_refused(file: FailingFile) -> None:
    with pytest.raises(TypeError):
        daxfault.guard(3)  # type: ignore[arg-type]
    view = memoryview(file.map)[::2]
    with pytest.raises((ValueError, BufferError)):
        daxfault.guard(view)


def test_guard_does_not_keep_its_buffers_from_being_closed(tmp_path: Path) -> None:
    file = FailingFile(tmp_path)
    with daxfault.guard(file.map):
        file.map.close()


def test_guard_mapping_that_is_closed_in_the_block_is_known_by_name(file: FailingFile) -> None:
    def read() -> None:
        with daxfault.guard():
            file.map[BAD]
            file.map.close()

    with pytest.raises(daxfault.MappingError) as caught:
        in_thread(read)
    assert [record.path for record in caught.value.records] == [str(file.path)]
    assert standing_in() == []


def test_guard_memory_that_took_a_closed_mappings_place_is_left_alone(file: FailingFile) -> None:
    import numpy as np

    address = np.frombuffer(file.map, dtype=np.uint8).ctypes.data
    size = len(file.map)
    taken: list[mmap.mmap] = []

    def read() -> None:
        with daxfault.guard():
            file.map[BAD]
            file.map.close()
            for _ in range(64):
                taken.append(mmap.mmap(-1, size))
                taken[-1].write(b"\x55" * size)

    with pytest.raises(daxfault.MappingError):
        in_thread(read)
    starts = [np.frombuffer(m, dtype=np.uint8).ctypes.data for m in taken]
    assert any(start < address + size and address < start + size for start in starts)
    assert all(m[:] == b"\x55" * size for m in taken)


def test_guard_may_be_used_again_but_not_inside_itself(file: FailingFile) -> None:
    guard = daxfault.guard()
    for _ in range(2):
        with pytest.raises(daxfault.MappingError) as caught, guard:
            file.map[BAD]
        assert offsets(caught.value) == [BAD]
    with guard, pytest.raises(RuntimeError, match="entered already"):
        guard.__enter__()
    with pytest.raises(RuntimeError, match="not been entered"):
        guard.check()
    with pytest.raises(RuntimeError, match="not been entered"):
        guard.__exit__(None, None, None)


def test_guard_that_is_forgotten_is_left_and_its_error_shown(tmp_path: Path) -> None:
    """As when an interrupt comes just before its __exit__()."""
    script = """
def forget():
    guard = daxfault.guard()
    guard.__enter__()
    bytes(array)
in_thread(forget)
print("left", flush=True)
array[PAGE]
"""
    done = program(tmp_path, script)
    assert (done.returncode, done.stdout) == (-7, "left\n")
    assert "Exception ignored in: <function Guard.__del__" in done.stderr
    assert "daxfault.MappingError: [Errno 14] a mapping failed at offset 4096, 3 pages" in done.stderr


def test_guard_in_a_generator_is_the_threads_until_it_is_left(file: FailingFile) -> None:
    def generate() -> Iterator[int]:
        with daxfault.guard():
            yield 1
            yield 2

    generator = generate()
    with daxfault.guard() as outer:
        next(generator)  # entered inside `outer`, and goes on beyond it
    assert outer.records == ()
    # the thread's innermost guard is the generator's, whoever touches
    with pytest.raises(daxfault.MappingError) as caught:
        [file.map[BAD] for _ in range(2)]
    assert offsets(caught.value) == [BAD]
    with pytest.raises(daxfault.MappingError) as caught:
        generator.close()
    assert offsets(caught.value) == [BAD]
    assert standing_in() == []


def test_guard_error_is_an_oserror_that_can_be_pickled(file: FailingFile) -> None:
    with pytest.raises(daxfault.MappingError) as caught, daxfault.guard():
        file.map[BAD]
    copy = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(copy, OSError)
    assert copy.errno == errno.EFAULT
    assert (copy.records, str(copy)) == (caught.value.records, str(caught.value))


def test_guard_file_that_grows_again_can_be_read_after_the_block(file: FailingFile) -> None:
    with pytest.raises(daxfault.MappingError), daxfault.guard():
        file.map[BAD]
    file.heal()
    assert file.map[BAD] == KEPT + 1
    file.map[BAD] = 99
    with open(file.path, "rb") as opened:
        assert opened.read()[BAD] == 99


def test_guard_that_has_ended_lets_an_access_kill_again(tmp_path: Path) -> None:
    script = """
try:
    with daxfault.guard():
        array[PAGE]
except daxfault.MappingError:
    print("caught", flush=True)
array[PAGE]
"""
    done = program(tmp_path, script)
    assert (done.returncode, done.stdout) == (-7, "caught\n")
