# SPDX-License-Identifier: Apache-2.0
"""daxfault.guard() among other handlers of SIGBUS: what it does not catch ends as it would without it.

Each runs in a process of its own, most of which die.
"""

import signal
from pathlib import Path

import pytest
from failing_file import program

GUARDED = """
try:
    with daxfault.guard():
        array[PAGE]
        array[PAGE]
except daxfault.MappingError as e:
    print("caught", len(e.records), flush=True)
"""
HANDLER = """
@ctypes.CFUNCTYPE(None, ctypes.c_int)
def handler(number):
    os.write(1, b"handler\\n")
    os._exit(9)
libc = ctypes.CDLL(None)
libc.signal(signal.SIGBUS, handler)
"""
DIES = -signal.SIGBUS


def outcome(tmp_path: Path, script: str) -> tuple[int, list[str], str]:
    done = program(tmp_path, script)
    return done.returncode, done.stdout.splitlines(), done.stderr


def test_guard_with_nobody_before_it_dies_of_the_fault_itself(tmp_path: Path) -> None:
    assert outcome(tmp_path, GUARDED + "array[PAGE]") == (DIES, ["caught 1"], "")


def test_guard_with_faulthandler_before_it_lets_that_report(tmp_path: Path) -> None:
    end, out, err = outcome(tmp_path, "faulthandler.enable()" + GUARDED + "array[PAGE]")
    assert (end, out) == (DIES, ["caught 1"])
    assert err.count("Fatal Python error: Bus error") == 1
    assert 'File "<string>", line' in err


def test_guard_with_faulthandler_enabled_later_goes_on_and_lets_that_report(tmp_path: Path) -> None:
    end, out, err = outcome(tmp_path, GUARDED + "faulthandler.enable()" + GUARDED + "array[PAGE]")
    assert (end, out) == (DIES, ["caught 1"] * 2)
    assert err.count("Fatal Python error: Bus error") == 1


def test_guard_with_a_handler_before_it_lets_that_handle(tmp_path: Path) -> None:
    assert outcome(tmp_path, HANDLER + GUARDED + "array[PAGE]") == (9, ["caught 1", "handler"], "")


def test_guard_with_a_handler_set_later_takes_the_signal_back(tmp_path: Path) -> None:
    script = GUARDED + HANDLER + GUARDED + "array[PAGE]"
    assert outcome(tmp_path, script) == (9, ["caught 1", "caught 1", "handler"], "")


def test_guard_handler_that_mends_the_mapping_is_returned_from(tmp_path: Path) -> None:
    script = """
@ctypes.CFUNCTYPE(None, ctypes.c_int)
def handler(number):
    os.truncate(sys.argv[1], 4 * PAGE)
ctypes.CDLL(None).signal(signal.SIGBUS, handler)
"""
    script += GUARDED + "print(array[PAGE])\nos.truncate(sys.argv[1], PAGE)\nprint(array[PAGE])"
    assert outcome(tmp_path, script) == (0, ["caught 1", "0", "0"], "")


@pytest.mark.parametrize("action", ["SIG_IGN", "SIG_DFL"])
def test_guard_signal_that_somebody_sent_does_what_it_did_before(tmp_path: Path, action: str) -> None:
    send = "os.kill(os.getpid(), signal.SIGBUS)\nprint('alive')"
    end, out, _ = outcome(tmp_path, f"signal.signal(signal.SIGBUS, signal.{action})" + GUARDED + send)
    assert (end, out) == ((0, ["caught 1", "alive"]) if action == "SIG_IGN" else (DIES, ["caught 1"]))


def test_guard_with_the_signal_ignored_dies_of_a_fault(tmp_path: Path) -> None:
    """As the kernel has it."""
    script = "signal.signal(signal.SIGBUS, signal.SIG_IGN)" + GUARDED + "array[PAGE]"
    assert outcome(tmp_path, script) == (DIES, ["caught 1"], "")


def test_guard_signal_that_somebody_sent_inside_is_not_caught(tmp_path: Path) -> None:
    end, _, _ = outcome(tmp_path, "with daxfault.guard():\n    os.kill(os.getpid(), signal.SIGBUS)")
    assert end == DIES


def test_guard_code_that_is_gone_is_not_executed_as_zeros(tmp_path: Path) -> None:
    script = """
with open(sys.argv[1], "r+b") as file:
    file.truncate(4 * PAGE)
    code = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code[PAGE] = 0xC3  # ret
    call = ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(code, PAGE)))
    call()
    print("ran", flush=True)
    file.truncate(PAGE)
with daxfault.guard():
    call()
"""
    assert outcome(tmp_path, script) == (DIES, ["ran"], "")


def test_guard_without_descriptors_dies_as_without_it(tmp_path: Path) -> None:
    script = """
import resource
with daxfault.guard():
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
    array[PAGE]
"""
    assert outcome(tmp_path, script)[0] == DIES


def test_guard_without_address_space_dies_as_without_it(tmp_path: Path) -> None:
    script = """
import resource
with daxfault.guard():
    used = int(open("/proc/self/statm").read().split()[0]) * PAGE
    resource.setrlimit(resource.RLIMIT_AS, (used, used))
    array[PAGE]
"""
    assert outcome(tmp_path, script)[0] == DIES


def test_guard_in_a_program_that_closed_all_descriptors_works(tmp_path: Path) -> None:
    script = GUARDED + "os.closerange(3, 100)" + GUARDED
    assert outcome(tmp_path, script) == (0, ["caught 1"] * 2, "")


def test_guard_memory_that_cannot_be_moved_dies_as_without_it(tmp_path: Path) -> None:
    script = """
sealed = ctypes.CDLL(None).syscall(
    462, ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(array))), ctypes.c_size_t(4 * PAGE), 0)
print(sealed, flush=True)
with daxfault.guard():
    array[PAGE]
"""
    end, out, _ = outcome(tmp_path, script)
    if out != ["0"]:
        pytest.skip("missing: mseal(2), Linux 6.10")
    assert end == DIES


def test_guard_mapping_cannot_be_resized_while_zeros_stand_in(tmp_path: Path) -> None:
    script = """
def resize():
    try:
        with daxfault.guard():
            array[PAGE]
            try:
                array.resize(8 * PAGE)
            except OSError as e:
                print(e.errno)
    except daxfault.MappingError:
        pass
    array.resize(2 * PAGE)
    print(array[0], array[PAGE])
in_thread(resize)
"""
    assert outcome(tmp_path, script) == (0, ["14", "120 0"], "")
