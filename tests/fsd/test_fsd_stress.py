# SPDX-License-Identifier: Apache-2.0
"""Many clients and somebody behind the mount at once, with few descriptors.

What each call answers is open; that the server lives, says nothing and forgets
everything is not.
"""

import contextlib
import multiprocessing
import os
import random
from pathlib import Path

from fsd_mount import MakeMount, drop_caches, eventually

CALLS = 1200  # of each client
CALLS_BEHIND = 60 * CALLS  # as many take about as long on the source itself


def work(seed: int, root: Path, count: int) -> None:
    rng = random.Random(seed)

    def path() -> str:
        return os.path.join(root, *(rng.choice("abc") for _ in range(rng.randint(1, 3))))

    def use() -> None:
        fd = os.open(path(), os.O_CREAT | os.O_RDWR)
        try:
            os.pwrite(fd, b"x" * rng.randrange(1, 9000), rng.randrange(9000))
            os.pread(fd, 9000, 0)
            os.ftruncate(fd, rng.randrange(5000))
            os.fstat(fd)
        finally:
            os.close(fd)

    calls = (
        use,
        use,
        lambda: os.mkdir(path()),
        lambda: os.mkdir(path()),
        lambda: os.rename(path(), path()),
        lambda: os.unlink(path()),
        lambda: os.rmdir(path()),
        lambda: os.link(path(), path()),
        lambda: os.listdir(path()),
        lambda: os.truncate(path(), rng.randrange(9000)),
        lambda: os.symlink("x", path()),
        lambda: os.chmod(path(), 0o700),
    )
    for _ in range(count):
        with contextlib.suppress(OSError):
            rng.choice(calls)()


def test_clients_and_changes_behind_the_mount_leave_nothing_behind(make_mount: MakeMount) -> None:
    mnt = make_mount(max_descriptors=16, attr_timeout=0.01, entry_timeout=0.01)
    fork = multiprocessing.get_context("fork")
    shares = [(1, mnt.path, CALLS), (2, mnt.path, CALLS), (3, mnt.path, CALLS), (4, mnt.source, CALLS_BEHIND)]
    workers = [fork.Process(target=work, args=share) for share in shares]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert mnt.ask("descriptors") <= 200

    def only_the_root() -> bool:
        os.system(f"rm -rf {mnt.path}/*")
        drop_caches()  # what was removed behind the mount is still cached under its old name
        return list(mnt.ask("lookups")) == ["1"]

    eventually(only_the_root, "the table holds the root only")
    assert mnt.ask("files") == 0
    assert list(mnt.source.iterdir()) == []
    assert mnt.close() == ""
