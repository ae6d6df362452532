# SPDX-License-Identifier: Apache-2.0
"""Every case of posix_cases.py on a mount: POSIX's answer, and that of the backing file system."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fsd_mount import FsdMount
from needs import require, require_fuse, require_root
from posix_cases import LACKING, answer, cases

CASES = cases()


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """A mount, and a directory of the same file system as its source."""
    require_fuse()
    require_root()
    base = tmp_path_factory.mktemp("posix")
    for name in ("source", "mount", "plain"):
        (base / name).mkdir()
    mount = FsdMount(base / "source", base / "mount", allow_other=True)
    yield base / "mount", base / "plain"
    assert mount.close() == ""


@pytest.mark.parametrize("case", CASES)
def test_call_answers_as_posix_and_the_backing_file_system_do(places: tuple[Path, Path], case: str) -> None:
    call, expected = CASES[case]
    ours, plain = (answer(call, f"{place}/case") for place in places)
    if case in LACKING:
        assert ours != expected, f"no longer lacking: {LACKING[case]}"
    else:
        assert ours == plain
    require(plain == expected, f"a backing file system that answers {expected!r}, not {plain!r}")


def test_cases_that_a_mount_lacks_are_cases() -> None:
    assert LACKING.keys() <= CASES.keys()
