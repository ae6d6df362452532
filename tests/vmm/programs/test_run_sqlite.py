# SPDX-License-Identifier: Apache-2.0
"""SQLite on the mount: its mapped reads, its journals, its shared memory of a WAL.

Afterwards the database is judged by another SQLite, on the backing directory.
"""

import contextlib
import shutil
import signal
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from needs import require
from run_host import RunningHost, looks

JOURNALS = ["delete", "persist", "wal"]

# `PRAGMA mmap_size` makes SQLite read through a mapping; a WAL's index is a mapped file that all share.
OPEN = """
import sqlite3, sys
def opened():
    db = sqlite3.connect("my.db", timeout=60, isolation_level=None)
    size, = db.execute("PRAGMA mmap_size=100000000").fetchone()
    assert size == 100000000
    return db
db = opened()
"""

MAKE = (
    OPEN
    + """
mode, = db.execute(f"PRAGMA journal_mode={sys.argv[1]}").fetchone()
assert mode == sys.argv[1]
db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, writer INTEGER, n INTEGER, filler BLOB)")
db.execute("CREATE INDEX by_writer ON t (writer, n)")
"""
)

WRITE = (
    OPEN
    + """
writer, rows = int(sys.argv[1]), int(sys.argv[2])
for n in range(0, rows, 10):
    db.execute("BEGIN IMMEDIATE")
    db.executemany("INSERT INTO t (writer, n, filler) VALUES (?, ?, ?)",
                   [(writer, n + i, bytes([writer]) * (700 + n % 900)) for i in range(10)])
    if n % 50 == 0:
        db.execute("DELETE FROM t WHERE writer = ? AND n % 10 = 3", (writer,))
    db.execute("COMMIT")
    print(n, flush=True)
"""
)

# Transactions are of 10 rows, so no reader may ever count others: 9 when the deletion has passed.
READ = (
    OPEN
    + """
seen = 0
while seen < int(sys.argv[1]):
    db.execute("BEGIN")
    groups = db.execute("SELECT count(*), min(length(filler)) FROM t GROUP BY writer, n / 10").fetchall()
    assert all(count in (9, 10) and length >= 700 for count, length in groups), groups
    assert db.execute("SELECT count(*) FROM t").fetchone()[0] == sum(count for count, _ in groups)
    db.execute("COMMIT")
    seen = len(groups)
print(seen)
"""
)


@contextlib.contextmanager
def judged(source: Path) -> Iterator[sqlite3.Connection]:
    """The database as another SQLite finds it, in a copy of what is behind the mount: it would remove files
    that the mount has just been asked for."""
    with tempfile.TemporaryDirectory() as copy:
        for file in source.glob("my.db*"):
            shutil.copy(file, copy)
        with contextlib.closing(sqlite3.connect(Path(copy) / "my.db")) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            yield db


@pytest.fixture
def db_host(run_host: RunningHost) -> Iterator[RunningHost]:
    for file in run_host.source.glob("my.db*"):
        (run_host.mount / file.name).unlink()
    with run_host.serves():
        yield run_host


@pytest.mark.parametrize("journal", JOURNALS)
def test_sqlite_with_writers_and_readers_keeps_every_row(db_host: RunningHost, journal: str) -> None:
    db_host.python(MAKE, journal)
    others = [db_host.start(sys.executable, "-c", WRITE, str(i), "100") for i in (1, 2)]
    others += [db_host.start(sys.executable, "-c", READ, "20") for _ in (1, 2)]
    for process in others:
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
    with judged(db_host.settled()) as db:
        rows = db.execute("SELECT writer, n, filler FROM t ORDER BY writer, n").fetchall()
    wanted = [
        (w, n, bytes([w]) * (700 + n // 10 * 10 % 900))
        for w in (1, 2)
        for n in range(100)
        if n % 10 != 3 or n > 59
    ]
    assert rows == wanted


@pytest.mark.parametrize("journal", JOURNALS)
def test_sqlite_writer_killed_in_a_transaction_is_recovered(db_host: RunningHost, journal: str) -> None:
    db_host.python(MAKE, journal)
    db_host.python(WRITE, "1", "100")
    # a transaction larger than SQLite's cache of pages, so that it is in the file when the program dies
    spill = (
        OPEN
        + """
db.execute("PRAGMA cache_size=10")
db.execute("BEGIN IMMEDIATE")
db.execute("UPDATE t SET filler = zeroblob(length(filler)), n = -n")
print("in it", flush=True)
sys.stdin.read()
"""
    )
    with db_host.start(sys.executable, "-c", spill) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in it\n"
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    found = db_host.python(OPEN + "print(*db.execute('SELECT count(*), sum(n), sum(length(filler)) FROM t'))")
    db_host.settled()
    with judged(db_host.source) as db:
        rows = db.execute("SELECT count(*), sum(n), sum(length(filler)) FROM t").fetchone()
        assert found == f"{rows}\n"
        # n % 10 == 3 was deleted up to 53
        assert rows[:2] == (94, sum(range(100)) - sum(range(3, 60, 10)))


def test_sqlite_vacuum_while_another_reads_leaves_a_smaller_whole_file(db_host: RunningHost) -> None:
    db_host.python(MAKE, "delete")
    db_host.python(WRITE, "1", "300")
    before = (db_host.source / "my.db").stat().st_size
    # the file shrinks under the other's mapping
    reader = OPEN + (
        "print(db.execute('SELECT sum(length(filler)) FROM t').fetchone(), flush=True)\n"
        "sys.stdin.readline()\n"
        "print(db.execute('SELECT sum(length(filler)) FROM t').fetchone(), flush=True)\n"
        "sys.stdin.readline()\n"
        "print(db.execute('SELECT count(*), sum(length(filler)) FROM t').fetchone(), flush=True)\n"
    )
    with db_host.start(sys.executable, "-c", reader) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        db_host.python(OPEN + "db.execute('DELETE FROM t WHERE n >= 50'); db.execute('VACUUM')")
        process.stdin.write("\n")
        process.stdin.flush()
        process.stdout.readline()
        db_host.python(WRITE, "2", "300")
        process.stdin.write("\n")
        process.stdin.flush()
        last = process.stdout.readline()
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
    db_host.python(OPEN + "db.execute('DELETE FROM t WHERE writer = 2'); db.execute('VACUUM')")
    assert (db_host.settled() / "my.db").stat().st_size < before / 3
    assert last.startswith("(")
    with judged(db_host.source) as db:
        assert db.execute("SELECT count(*), count(DISTINCT n), max(n) FROM t").fetchone() == (45, 45, 49)


def test_sqlite_command_line_on_a_wal_shares_it_with_python(db_host: RunningHost) -> None:
    shell = shutil.which("sqlite3")
    require(shell, "sqlite3")
    db_host.python(MAKE, "wal")
    with db_host.start(sys.executable, "-c", WRITE + "sys.stdin.read()", "1", "100") as process:
        sql = "PRAGMA mmap_size=100000000; SELECT count(*) FROM t WHERE writer = 1"
        for _ in looks(60):
            found = db_host.does(shell or "", "-cmd", ".timeout 60000", "my.db", sql).split()
            if found[1] == "94":
                break
        # the WAL is not checkpointed, and no file of its own on the backing directory says so
        assert (db_host.source / "my.db-shm").exists()
        db_host.does(shell or "", "my.db", "INSERT INTO t (writer, n) VALUES (7, 7)")
        process.communicate(timeout=60)
    with judged(db_host.settled()) as db:
        assert db.execute("SELECT count(*) FROM t").fetchone() == (95,)
