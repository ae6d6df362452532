# SPDX-License-Identifier: Apache-2.0
"""The mount against a plain directory: the same calls, the same answers, the same tree."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from compared_calls import performed, tree
from fsd_mount import FsdMount
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from needs import require_fuse

NAMES = st.sampled_from(["a", "b", "c", "d/a", "d/b", "d/e/a", "d", "d/e", "n" * 256, "caf\udce9", "l/a"])
SIZES = st.sampled_from([0, 1, 100, 4095, 4096, 4097, 10000, 200000])

CALLS = st.one_of(
    st.tuples(st.just("write"), NAMES, SIZES, SIZES, st.binary(min_size=1, max_size=3)),
    st.tuples(st.just("append"), NAMES, st.binary(min_size=1, max_size=9)),
    st.tuples(st.just("read"), NAMES, SIZES, SIZES),
    st.tuples(st.just("truncate"), NAMES, SIZES),
    st.tuples(st.just("create"), NAMES, st.sampled_from([0o644, 0o600, 0o4711]), st.booleans()),
    st.tuples(st.just("mkdir"), NAMES, st.sampled_from([0o755, 0o700, 0o2775])),
    st.tuples(st.just("rmdir"), NAMES),
    st.tuples(st.just("unlink"), NAMES),
    st.tuples(st.just("rename"), NAMES, NAMES),
    st.tuples(st.just("link"), NAMES, NAMES),
    st.tuples(st.just("symlink"), st.sampled_from(["d", "a", "nowhere"]), st.sampled_from(["l", "a", "d/l"])),
    st.tuples(st.just("readlink"), NAMES),
    st.tuples(st.just("listdir"), NAMES),
    st.tuples(st.just("stat"), NAMES),
    st.tuples(st.just("chmod"), NAMES, st.sampled_from([0o777, 0o640, 0o2750])),
    st.tuples(st.just("utime"), NAMES, st.integers(0, 2**33)),
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FsdMount]:
    require_fuse()
    base = tmp_path_factory.mktemp("model")
    (base / "source").mkdir()
    (base / "mount").mkdir()
    mount = FsdMount(base / "source", base / "mount")
    yield mount
    assert mount.close() == ""


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls=st.lists(CALLS, min_size=5, max_size=40))
def test_any_sequence_of_calls_gives_the_same_as_on_the_source_itself(
    shared: FsdMount, tmp_path: Path, calls: list[tuple[str, ...]]
) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    for root in (plain, shared.path):
        (root / "d").mkdir()
    try:
        for call in calls:
            assert performed(plain, call) == performed(shared.path, call), call
        assert tree(shared.path) == tree(plain)
        assert tree(shared.source) == tree(plain)
    finally:
        shutil.rmtree(plain)
        for entry in list(shared.path.iterdir()):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
