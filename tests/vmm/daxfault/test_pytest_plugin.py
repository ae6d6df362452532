# SPDX-License-Identifier: Apache-2.0
"""The pytest plugin, used as its users do: by tests in a pytest of its own."""

import textwrap

import pytest
from needs import require_fuse

pytest_plugins = ["pytester"]

CODE = """
import mmap, os, signal, subprocess, sys

PAGE = mmap.PAGESIZE
# maps a file, says so, waits for a line, then touches a page
READER = '''
import mmap, os, sys
with open(sys.argv[1], "rb") as file:
    m = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
m[0]
print("mapped", flush=True)
sys.stdin.readline()
print(m[int(sys.argv[2])])
'''

def reader(mount, offset):
    process = mount.start([sys.executable, "-c", READER, "f", str(offset)],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "mapped\\n"
    return process

"""


@pytest.fixture
def check(pytester: pytest.Pytester) -> pytest.Pytester:
    require_fuse()
    return pytester


def run(pytester: pytest.Pytester, tests: str, **outcomes: int) -> pytest.RunResult:
    pytester.makepyfile(CODE + textwrap.dedent(tests))
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", timeout=120)
    result.assert_outcomes(**outcomes)
    return result


def test_plugin_truncated_file_ends_a_program_by_sigbus(check: pytest.Pytester) -> None:
    run(
        check,
        """
        def test_truncated(daxfault_mount):
            daxfault_mount.write("f", b"x" * 4 * PAGE)
            process = reader(daxfault_mount, 2 * PAGE)
            daxfault_mount.truncate("f", PAGE)
            process.communicate("go\\n", timeout=30)
            assert process.returncode == -signal.SIGBUS

        def test_grown_again(daxfault_mount):
            daxfault_mount.write("f", b"x" * 4 * PAGE)
            process = reader(daxfault_mount, 2 * PAGE)
            daxfault_mount.truncate("f", PAGE)
            daxfault_mount.truncate("f", 4 * PAGE)
            assert process.communicate("go\\n", timeout=30)[0] == "0\\n"
        """,
        passed=2,
    )


def test_plugin_failed_pages_are_recorded_and_heal_for_the_next_test(check: pytest.Pytester) -> None:
    run(
        check,
        """
        def test_failed(daxfault_mount):
            daxfault_mount.write("f", b"x" * 64 * PAGE)
            daxfault_mount.fail("f", "EIO", offset=f"{32 * PAGE}-")
            process = reader(daxfault_mount, 40 * PAGE)
            process.communicate("go\\n", timeout=30)
            assert process.returncode == -signal.SIGBUS
            (record,) = daxfault_mount.records()
            assert (record["errno"], record["offset"]) == ("EIO", 40 * PAGE)

        def test_other(daxfault_mount):
            daxfault_mount.write("f", b"y" * 64 * PAGE)
            process = reader(daxfault_mount, 40 * PAGE)
            assert process.communicate("go\\n", timeout=30)[0].strip() == str(ord("y"))
            assert daxfault_mount.records() == []
        """,
        passed=2,
    )


def test_plugin_map_serves_the_process_of_the_test_itself(check: pytest.Pytester) -> None:
    run(
        check,
        """
        def test_own(daxfault_mount):
            path = daxfault_mount.write("f", b"x" * 4 * PAGE)
            view = daxfault_mount.map("f", write=True)
            view[PAGE : PAGE + 2] = b"ab"
            with open(path, "rb") as file:
                assert file.read()[PAGE : PAGE + 3] == b"abx"
            daxfault_mount.truncate_behind("f", 2 * PAGE)
            assert view[0] == ord("x")
            with pytest.raises(TypeError):
                daxfault_mount.map("f")[0] = 1

        import pytest

        def test_refused(daxfault_mount):
            daxfault_mount.write("f", b"")
            with pytest.raises(OSError, match="f"):
                daxfault_mount.map("f")
        """,
        passed=2,
    )


def test_plugin_map_in_a_guard_raises_what_its_host_knows(check: pytest.Pytester) -> None:
    run(
        check,
        """
        import daxfault
        import pytest

        def test_cut_then_failed(daxfault_mount):
            path = daxfault_mount.write("f", b"x" * 8 * PAGE)
            view = daxfault_mount.map("f")
            daxfault_mount.truncate("f", 6 * PAGE)
            daxfault_mount.fail("f", "EIO", offset=f"{2 * PAGE}-{3 * PAGE}")
            with pytest.raises(daxfault.MappingError) as caught, daxfault.guard(view):
                bytes(view)
            assert caught.value.filename == str(path)
            seen = [(r.offset, r.pages, r.reason) for r in caught.value.records]
            assert seen == [(2 * PAGE, 1, "io"), (6 * PAGE, 2, "eof")]
            assert "DAXFAULT_MOUNT" in os.environ

        def test_healed(daxfault_mount):
            daxfault_mount.write("f", b"y" * 8 * PAGE)
            with daxfault.guard():
                assert bytes(daxfault_mount.map("f")) == b"y" * 8 * PAGE
        """,
        passed=2,
    )


def test_plugin_program_that_is_left_is_killed(check: pytest.Pytester) -> None:
    run(
        check,
        """
        PIDS = []

        def test_leaves_one(daxfault_mount):
            daxfault_mount.write("f", b"x" * PAGE)
            PIDS.append(reader(daxfault_mount, 0).pid)

        def test_it_is_gone(daxfault_mount):
            assert not os.path.exists(f"/proc/{PIDS[0]}")
        """,
        passed=2,
    )


def test_plugin_machine_that_lacks_something_skips(check: pytest.Pytester) -> None:
    check.makeconftest(
        """
        from daxfault import pytest_plugin as plugin
        plugin.sys = type("sys", (), {"executable": "/bin/false"})
        plugin.LACKING = 1
        """
    )
    run(
        check,
        """
        def test_any(daxfault_mount):
            raise AssertionError
        """,
        skipped=1,
    )


def test_plugin_is_known_to_pytest_by_its_entry_point(check: pytest.Pytester) -> None:
    result = check.runpytest_subprocess("--fixtures", timeout=60)
    result.stdout.fnmatch_lines(["*daxfault_mount*vmm/daxfault/pytest_plugin.py*"])
