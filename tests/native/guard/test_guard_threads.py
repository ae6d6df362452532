# SPDX-License-Identifier: Apache-2.0
"""Guards of several threads, of processes that fork, and threads without one."""

import os
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from failing_file import KEPT, PAGE, PAGES, FailingFile, content, in_thread, program, standing_in
from patience import PATIENCE

import daxfault

BAD = KEPT * PAGE


@pytest.fixture
def file(tmp_path: Path) -> FailingFile:
    file = FailingFile(tmp_path)
    file.cut()
    return file


def together(*functions: Callable[[], object]) -> list[BaseException | None]:
    """Run each in a thread of its own, at once; -> what each raised."""
    raised: list[BaseException | None] = [None] * len(functions)

    def run(i: int) -> None:
        try:
            functions[i]()
        except BaseException as e:
            raised[i] = e

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    return raised


def records(error: BaseException | None) -> list[tuple[str | None, int | None]]:
    assert isinstance(error, daxfault.MappingError), error
    return [(record.path, record.offset) for record in error.records]


def test_guard_threads_on_one_page_all_raise(file: FailingFile) -> None:
    barrier = threading.Barrier(4)

    def read() -> None:
        with daxfault.guard():
            barrier.wait(PATIENCE)
            file.map[BAD]
            barrier.wait(PATIENCE)

    assert all((str(file.path), BAD) in records(error) for error in together(*[read] * 4))
    assert standing_in() == []


def test_guard_thread_whose_page_another_put_back_fails_again(file: FailingFile) -> None:
    entered, gone = threading.Event(), threading.Event()
    tids: list[int] = []

    def first() -> None:
        assert entered.wait(PATIENCE)
        try:
            with daxfault.guard():
                file.map[BAD]
        finally:
            gone.set()

    def second() -> None:
        tids.append(threading.get_native_id())
        with daxfault.guard():
            entered.set()
            assert gone.wait(PATIENCE)
            assert standing_in() == []
            file.map[BAD]
            assert standing_in() != []

    errors = together(first, second)
    assert records(errors[0]) == [(str(file.path), BAD)]
    assert isinstance(errors[1], daxfault.MappingError)
    assert errors[1].records[-1].tid == tids[0]


def test_guard_of_other_buffers_is_not_told_of_another_threads_fault(tmp_path: Path) -> None:
    first, second = FailingFile(tmp_path, "first"), FailingFile(tmp_path, "second")
    first.cut()
    entered, failed = threading.Event(), threading.Event()

    def fail() -> None:
        assert entered.wait(PATIENCE)
        try:
            with daxfault.guard(first.map):
                first.map[BAD]
        finally:
            failed.set()

    def read() -> None:
        with daxfault.guard(second.map):
            entered.set()
            assert failed.wait(PATIENCE)
            assert second.map[:] == content()

    errors = together(fail, read)
    assert records(errors[0]) == [(str(first.path), BAD)]
    assert errors[1] is None


def test_guard_of_anything_is_told_of_what_stood_in_while_it_read(file: FailingFile) -> None:
    """It may have read zeros without a fault of its own."""
    entered, failed, read_it = (threading.Event() for _ in range(3))
    seen = []

    def fail() -> None:
        assert entered.wait(PATIENCE)
        with daxfault.guard():
            file.map[BAD]
            failed.set()
            assert read_it.wait(PATIENCE)

    def read() -> None:
        with daxfault.guard():
            entered.set()
            assert failed.wait(PATIENCE)
            seen.append(file.map[BAD])
            read_it.set()

    errors = together(fail, read)
    assert seen == [0]
    assert [records(error) for error in errors] == [[(str(file.path), BAD)]] * 2


def test_guard_entered_while_zeros_stand_in_fails_for_itself(file: FailingFile) -> None:
    failed, done = threading.Event(), threading.Event()
    tids = []

    def fail() -> None:
        with daxfault.guard():
            file.map[BAD]
            failed.set()
            assert done.wait(PATIENCE)

    def read() -> None:
        assert failed.wait(PATIENCE)
        tids.append(threading.get_native_id())
        try:
            with daxfault.guard():
                assert standing_in() == []
                file.map[BAD]
        finally:
            done.set()

    errors = together(fail, read)
    assert isinstance(errors[1], daxfault.MappingError)
    assert [record.tid for record in errors[1].records] == tids


def test_guard_of_all_threads_catches_those_without_one(file: FailingFile) -> None:
    seen: list[int] = []
    tids: list[int] = []

    def helper() -> None:
        tids.append(threading.get_native_id())
        seen.append(file.map[BAD + 1])

    def read() -> None:
        with daxfault.guard(threads=True):
            in_thread(helper)

    with pytest.raises(daxfault.MappingError) as caught:
        in_thread(read)
    (record,) = caught.value.records
    assert (record.offset, [record.tid], seen) == (BAD + 1, tids, [0])


def test_guard_of_all_threads_in_the_main_thread_raises_when_it_runs(file: FailingFile) -> None:
    def read() -> None:
        with daxfault.guard(threads=True):
            in_thread(lambda: file.map[BAD])

    with pytest.raises(daxfault.MappingError):
        read()


def test_guard_of_one_thread_leaves_others_to_die(tmp_path: Path) -> None:
    script = """
with daxfault.guard():
    in_thread(lambda: array[PAGE])
"""
    assert program(tmp_path, script).returncode == -signal.SIGBUS


def test_guard_left_by_another_thread_is_left(file: FailingFile, tmp_path: Path) -> None:
    guard = daxfault.guard()
    in_thread(lambda: guard.__enter__() and None)  # type: ignore[func-returns-value]
    guard.__exit__(None, None, None)
    script = """
guard = daxfault.guard()
guard.__enter__()
in_thread(lambda: guard.__exit__(None, None, None))
print("left", flush=True)
array[PAGE]
"""
    done = program(tmp_path, script)
    assert (done.returncode, done.stdout) == (-signal.SIGBUS, "left\n")


def test_guard_of_a_thread_that_has_ended_catches_nothing(tmp_path: Path) -> None:
    script = """
import time
guards = []
def enter():
    guards.append(daxfault.guard(threads=True))
    guards[0].__enter__()
    guards.append(threading.get_native_id())
in_thread(enter)
while os.path.exists(f"/proc/self/task/{guards[1]}"):  # join() returns before it is gone
    time.sleep(0.001)
print("ended", flush=True)
array[PAGE]
"""
    done = program(tmp_path, script)
    assert (done.returncode, done.stdout) == (-signal.SIGBUS, "ended\n")


def test_guard_in_a_forked_child_raises_in_both(file: FailingFile) -> None:
    pids: list[int] = []

    def child() -> int:
        """What becomes of the child: 42 when all is well."""
        try:
            file.map[BAD + PAGE]
            guard.__exit__(None, None, None)
        except daxfault.MappingError as e:
            return 42 if len(e.records) == 2 and not standing_in() else 1
        return 2

    def read() -> None:
        with guard:
            file.map[BAD]
            pids.append(os.fork())
            if not pids[0]:
                os._exit(child())

    guard = daxfault.guard()
    with pytest.raises(daxfault.MappingError) as caught:
        in_thread(read)
    assert os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1]) == 42
    assert [record.pages for record in caught.value.records] == [1]


def test_guard_of_another_thread_is_over_in_a_forked_child(tmp_path: Path) -> None:
    script = """
failed, forked = threading.Event(), threading.Event()
def fail():
    try:
        with daxfault.guard():
            array[PAGE]
            failed.set()
            forked.wait(60)
    except daxfault.MappingError as e:
        print("parent", len(e.records), flush=True)
thread = threading.Thread(target=fail)
thread.start()
failed.wait(60)
pid = os.fork()
if not pid:
    array[PAGE]     # no zeros stand in here any more
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
forked.set()
thread.join()
"""
    assert program(tmp_path, script).stdout.split() == [str(-signal.SIGBUS), "parent", "1"]


@pytest.mark.parametrize("seed", range(2))
def test_guard_under_stress_misses_no_byte_that_was_not_the_files(tmp_path: Path, seed: int) -> None:
    """Readers in guards, while the file is cut.  Whatever differs from what it held raises."""
    file = FailingFile(tmp_path)
    readers, rounds = 3, 25
    barrier = threading.Barrier(readers + 1)
    draw = random.Random(seed)
    wrong: list[str] = []
    failed = [0]

    def read(draw: random.Random) -> None:
        for _ in range(rounds):
            barrier.wait(PATIENCE)
            for _ in range(8):
                start = draw.randrange(PAGES * PAGE)
                end = min(start + draw.randrange(1, 3 * PAGE), PAGES * PAGE)
                try:
                    with daxfault.guard():
                        got = file.map[start:end]
                except daxfault.MappingError:
                    failed[0] += 1
                    continue
                if got != content()[start:end]:
                    wrong.append(f"seed {seed}: {start}-{end}")
            barrier.wait(PATIENCE)

    def cut() -> None:
        for _ in range(rounds):
            barrier.wait(PATIENCE)
            file.cut(draw.randrange(PAGES))
            barrier.wait(PATIENCE)
            file.heal()  # nobody reads now

    errors = together(cut, *[lambda i=i: read(random.Random(seed * 100 + i)) for i in range(readers)])
    assert errors == [None] * (readers + 1)
    assert wrong == []
    assert failed[0]
    assert standing_in() == []
