# SPDX-License-Identifier: Apache-2.0
"""DAXFAULT_VERIFY: a page cache that is given up is compared with the backing file."""

import os
from pathlib import Path

import pytest
from serving import PAGE, call, serving
from trio.testing import trio_test

from daxfault import native

DATA = b"x" * 16 * PAGE


@pytest.mark.parametrize("forged", [False, True], ids=["same", "forged"])
def test_page_changed_past_the_hosts_knowledge_is_reported_when_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], forged: bool
) -> None:
    monkeypatch.setenv("DAXFAULT_VERIFY", "1")

    @trio_test
    async def body() -> None:
        async with serving(tmp_path) as s, s.mapped("file", DATA) as guest:
            await guest.access(0, f"sum 0 {len(DATA)}")
            await guest.access(0, f"write {5 * PAGE} {b'stored'.hex()}")
            file = guest.session.file("file")
            if forged:
                cache = file.cache_fd(writable=True)
                os.pwrite(cache, b"FORGED", 3 * PAGE + 1)
                os.close(cache)
            await guest.unmap(0, native.RANGE_SIZE)
            await call(file.retire)

    before = native.lib.df_verify_differences()
    body()
    assert native.lib.df_verify_differences() == before + forged
    assert ("byte 0x3001: page cache and backing file differ" in capfd.readouterr().err) == forged
