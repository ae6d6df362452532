# SPDX-License-Identifier: Apache-2.0
"""Every system call that can touch a mapping does on a mount what it does on the kernel's own file system:
by the libc with the library preloaded, and by the libc and by its own instruction under the tracer.

tests/support/call_matrix.py has the cases.  What is refused by name, or cannot be the same, is in REFUSED
and DIFFERENT: there the rest of the case is held to what it is when the call fails like that.
"""

import re
import subprocess
from pathlib import Path

import pytest
from call_matrix import Case, answers, cases, script
from mapscript import compiled
from patience import PATIENCE
from run_host import RunningHost

from daxfault import native

CASES = cases()
CONTENT = b"".join(letter * 4096 for letter in (b"a", b"b", b"c", b"d")) + b"e" * 100
SHARED = "shared|stored|holed|end|none"

# A pattern of names -> the call's answer, and why.  docs/run.md names them, too.
REFUSED = {
    f"({SHARED}): madvise remove (?!unaligned|empty|wrapped)": "EOPNOTSUPP",  # FUSE here has no fallocate
    "stored: fallocate": "EOPNOTSUPP",
    "stored: process_madvise (remove|guard_install)": "EINVAL",  # as before Linux 6.13
    "(?!mixed).*: madvise guard_install (?!unaligned|empty|wrapped)": "EINVAL",
    ".*: remap_file_pages": "EINVAL",  # the kernel would show zeros
    # a shared mapping of a file that was opened read-only is private, and no second one is made of that
    "readonly: mremap 0 to 4p (in place|anywhere)": "EINVAL",
    # several mappings move in one call since 6.17, but for those with a userfaultfd
    "holed: mremap to a place": "EFAULT",
    # shmem lets a ring pin what ext4 does not
    "(shared|stored): io_uring fixed buffer": "0",
}
TRACED = {".*: ptrace of touched pages": "untraced"}  # nobody else traces a tracee

DIFFERENT = (
    # Nobody can intercept what a ring does: the pages go out of the page cache, and out of nothing else.
    r"(shared|stored): io_uring madvise remove"
    # What comes before the page cache is done, as if the call had been for that alone.
    r"|mixed: (madvise guard_install (whole|middle)|mremap to a place)"
)


def refused(case: Case, patterns: dict[str, str]) -> Case:
    """The case as it is when its call is refused."""
    for pattern, answer in patterns.items():
        if re.match(pattern, case.name):
            return Case(case.name, re.sub(r"\b(call WAY|ringbuffer|peek) [^|]*", f"say {answer}", case.steps))
    return case


def fill(top: Path) -> None:
    top.mkdir()
    for number in range(len(CASES)):
        (top / f"c{number}").write_bytes(CONTENT)


def contents(top: Path) -> list[bytes]:
    return [(top / f"c{number}").read_bytes() for number in range(len(CASES))]


def natively(program: Path, top: Path, wanted: list[Case], way: str) -> tuple[list[list[str]], list[bytes]]:
    fill(top)
    done = subprocess.run(
        [program, top, top],
        input=script(wanted, way),
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    return answers(wanted, done.stdout), contents(top)


@pytest.mark.parametrize(
    ("traced", "static", "way"),
    [
        pytest.param(False, False, "libc", id="preloaded, libc"),
        pytest.param(True, True, "raw", id="traced, raw"),
        pytest.param(True, False, "libc", id="traced, libc", marks=pytest.mark.slow),
    ],
)
def test_calls_of_a_program_do_what_they_do_on_the_kernels_own_file_system(
    tmp_path: Path, run_host: RunningHost, traced: bool, static: bool, way: str
) -> None:
    program = compiled(tmp_path, static=static)
    wanted = [refused(case, REFUSED | (TRACED if traced else {})) for case in CASES]
    expected, left = natively(program, tmp_path / "native", wanted, way)
    top = f"{program.name}-{traced}-{way}"
    fill(run_host.source / top)
    by = [native.tracer()] if traced else []
    given = run_host.does(*by, program, run_host.mount / top, run_host.source / top, input=script(CASES, way))
    found = answers(CASES, given)
    run_host.settled()
    files = contents(run_host.source / top)
    wrong = [
        f"{case.name}\n  here  {found[i]}\n  there {expected[i]}"
        f"{'' if files[i] == left[i] else ', and another file'}"
        for i, case in enumerate(CASES)
        if (found[i], files[i]) != (expected[i], left[i]) and not re.match(DIFFERENT, case.name)
    ]
    assert not wrong, f"{len(wrong)} of {len(CASES)}\n" + "\n".join(wrong[:20])


def test_every_exception_of_the_matrix_is_of_a_case() -> None:
    for pattern in (*REFUSED, *TRACED, DIFFERENT):
        assert any(re.match(pattern, case.name) for case in CASES), pattern
