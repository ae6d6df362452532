# SPDX-License-Identifier: Apache-2.0
"""The files that programs map: giving one up while somebody else is about to use it."""

import os
import threading
from pathlib import Path

import pytest
import trio
from patience import PATIENCE
from trio.testing import trio_test, wait_all_tasks_blocked

from daxfault import native
from daxfault.vmm.programs import files
from daxfault.vmm.programs.files import Files


class Gated(native.File):
    """Giving its page cache up waits at a gate; using it after that fails."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(b"x")
        super().__init__(os.open(path, os.O_RDWR), writable=True)
        self.reached, self.opened = threading.Event(), threading.Event()
        self.released = trio.Event()

    def retire(self) -> bool:
        self.reached.set()
        assert self.opened.wait(PATIENCE)
        return super().retire()

    def write_back(self) -> bool:
        if self.released.is_set():
            raise ValueError("used after its pin was released")
        return super().write_back()


class Pinned:
    """A client has the file open as well, so release() does not close it."""

    inode = 1

    def __init__(self, file: Gated) -> None:
        self.file = file

    def release(self) -> None:
        self.file.released.set()


class Server:
    """Descriptor n is of file n."""

    def __init__(self, *files: Gated) -> None:
        self._files = files

    async def pin(self, fd: int) -> Pinned:
        return Pinned(self._files[fd])

    def mapping_changed(self, inode: int) -> None: ...


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gated:
    monkeypatch.setattr(files, "LINGER_SECONDS", 0.0)
    monkeypatch.setattr(files, "_LOOK_SECONDS", 0.001)
    return Gated(tmp_path / "file")


@trio_test
async def test_file_given_up_while_its_writing_back_waits_is_not_used(
    file: Gated, caplog: pytest.LogCaptureFixture
) -> None:
    held = Files(Server(file), lambda _: None)
    await held.let_go(await held.hold(0, lambda: "file"))
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(held.reap)
            await trio.to_thread.run_sync(file.reached.wait)
            nursery.start_soon(held.write_back)
            await wait_all_tasks_blocked()
            file.opened.set()
            await file.released.wait()
            await held.write_back()
            nursery.cancel_scope.cancel()
    assert not caplog.records


@trio_test
async def test_bug_in_writing_one_file_back_leaves_the_others_served(
    file: Gated, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = Gated(tmp_path / "other")
    held = Files(Server(file, other), lambda _: None)
    first = await held.hold(0, lambda: "file")
    await held.hold(1, lambda: "other")
    first.file.close()
    written: list[bool] = []
    other.write_back = lambda: written.append(True) or True  # type: ignore[method-assign]
    await held.write_back()
    assert written
    assert "closed" in caplog.text


@trio_test
async def test_file_whose_storage_does_not_answer_holds_up_no_other(file: Gated, tmp_path: Path) -> None:
    other = Gated(tmp_path / "other")
    held = Files(Server(file, other), lambda _: None)
    hung, goes_on = await held.hold(0, lambda: "file"), await held.hold(1, lambda: "other")

    def wait(*_: object, **__: bool) -> bool:
        file.reached.set()
        assert file.opened.wait(PATIENCE)
        return False

    file.sync = file.write_back = wait  # type: ignore[method-assign, assignment]
    written = trio.Event()
    token = trio.lowlevel.current_trio_token()
    other.write_back = lambda: bool(token.run_sync_soon(written.set))  # type: ignore[method-assign]
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            for _ in range(45):  # more than trio has threads
                nursery.start_soon(held.sync, hung, native.SyncErrors(0))
            held.start_write_back(nursery)
            await trio.to_thread.run_sync(file.reached.wait)
            held.start_write_back(nursery)
            await written.wait()
            await held.sync(goes_on, native.SyncErrors(0))
            file.opened.set()
