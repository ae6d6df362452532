# SPDX-License-Identifier: Apache-2.0
"""Programs as they are, which map what they read or write: compilers and linkers, git, databases, search.

What each has made is judged on the backing directory, without the mount.
"""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import lmdb
import plyvel
import pytest
from needs import require
from patience import PATIENCE
from run_host import RunningHost

from daxfault.vmm.programs.address_space import areas


def tool(name: str) -> str:
    found = shutil.which(name)
    require(found, name)
    return found or name


def directory(host: RunningHost, name: str) -> Path:
    (host.source / name).mkdir()
    return host.source / name


def judged(*command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """What a program says behind the mount."""
    done = subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# ---- compilers and linkers

LIBRARY = """
static const char table[3 << 20] = { [0] = 1, [1234567] = 42 };
int looked_up(long i) { return table[i]; }
"""
MAIN = """
#include <stdio.h>
int looked_up(long i);
int main(void) { printf("%d %d\\n", looked_up(0), looked_up(1234567)); return 0; }
"""


@pytest.mark.parametrize("linker", ["bfd", "gold", "lld"])
def test_compiler_and_linker_make_a_program_that_runs(run_host: RunningHost, linker: str) -> None:
    gcc = tool("gcc")
    tool("ld." + linker)
    top = directory(run_host, "cc-" + linker)
    (top / "library.c").write_text(LIBRARY)
    (top / "main.c").write_text(MAIN)
    build = (
        f"cd cc-{linker} && {gcc} -g -c library.c main.c && ar rcs liblooked.a library.o && "
        f"{gcc} -fuse-ld={linker} -o static main.o -L. -l:liblooked.a && "
        f"{gcc} -fuse-ld={linker} -shared -fPIC -g -o liblooked.so library.c && "
        f"{gcc} -fuse-ld={linker} -o dynamic main.o -L. -llooked -Wl,-rpath,'$ORIGIN' && "
        "objcopy --only-keep-debug static static.debug && strip -o stripped static && "
        "ranlib liblooked.a && nm liblooked.a | grep -c looked_up && ./static && ./stripped && ./dynamic"
    )
    assert run_host.does("sh", "-e", "-c", build).split() == ["1", *["1", "42"] * 3]
    run_host.freed()
    for name in ("static", "stripped", "dynamic"):
        assert judged(top / name) == "1 42\n"
        assert "looked_up" in judged("nm", top / "static")
    assert judged("ar", "t", top / "liblooked.a") == "library.o\n"


def test_linker_that_writes_through_a_mapping_is_served(run_host: RunningHost) -> None:
    """Not only that its output is right: it came by a mapping of ours."""
    gcc = tool("gcc")
    tool("ld.gold")
    top = directory(run_host, "ld")
    (top / "main.c").write_text("int main(void) { return 7; }\n")
    run_host.does(gcc, "-c", "-o", "ld/main.o", "ld/main.c")
    with run_host.serves():
        run_host.does(gcc, "-fuse-ld=gold", "-Wl,--mmap-output-file", "-o", "ld/main", "ld/main.o")
    run_host.freed()
    assert subprocess.run([top / "main"], check=False).returncode == 7


# ---- git


def test_git_with_mapped_packs_survives_its_own_fsck(run_host: RunningHost) -> None:
    git = tool("git")
    top = directory(run_host, "git")
    settings = {
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b",
        "HOME": str(top),
    }
    script = """
git init -q -b main .
for i in 1 2 3; do
    for n in 1 2; do seq $((n * 1000)) $((n * 1000 + i * 700)) > $n.txt; done
    head -c 150000 /dev/urandom > big$i
    git add -A && git commit -q -m "commit $i"
    test $i = 2 && git repack -q -a -d
done
git gc -q --prune=now
git log --oneline | wc -l
git checkout -q HEAD~1 && test ! -e big3 && git checkout -q main && git status --porcelain
git clone -q --no-local . ../git-clone
git diff HEAD~2 HEAD --stat | tail -1
"""
    with run_host.serves():
        out = run_host.does("sh", "-e", "-c", "cd git\n" + script, env=settings)
    assert out.split()[0] == "3"
    assert "2800 insertions" in out
    run_host.settled()
    env = {**os.environ, **settings}
    for clone in (top, run_host.source / "git-clone"):
        judged(git, "fsck", "--full", "--strict", cwd=clone, env=env)
        assert judged(git, "status", "--porcelain", cwd=clone, env=env) == ""
    packs = list((top / ".git/objects/pack").glob("*.pack"))
    assert len(packs) == 1
    judged(git, "verify-pack", packs[0], cwd=top, env=env)


# ---- LMDB: a B+tree that is read through a mapping, and with `writemap` stored to through it

LMDB_WRITE = """
import lmdb, sys
kind, writer, writemap = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "True"
env = lmdb.open(kind, map_size=4 << 20, writemap=writemap, map_async=False, max_readers=20)
n = 0
while n < 400:
    try:
        with env.begin(write=True) as t:
            for i in range(n, n + 20):
                t.put(b"%d-%05d" % (writer, i), bytes([i % 256]) * (i * 7 % 5000))
            if n % 100 == 60:
                t.delete(b"%d-%05d" % (writer, n - 60))
        n += 20
    except lmdb.MapFullError:
        env.set_mapsize(env.info()["map_size"] * 2)
    except lmdb.MapResizedError:
        env.set_mapsize(0)
env.sync(True)
env.close()
"""

LMDB_READ = """
import lmdb, sys
env = lmdb.open(sys.argv[1], max_readers=20)
seen = 0
while seen < 300:
    try:
        with env.begin() as t:
            seen = 0
            for key, value in t.cursor():
                i = int(key[2:])
                assert value == bytes([i % 256]) * (i * 7 % 5000)
                seen += 1
    except lmdb.MapResizedError:
        env.set_mapsize(0)
"""


@pytest.mark.parametrize("writemap", [False, True])
def test_lmdb_with_writers_and_readers_growing_its_map(run_host: RunningHost, writemap: bool) -> None:
    name = f"lmdb-{writemap}"
    directory(run_host, name)
    with run_host.serves():
        others = [
            run_host.start(sys.executable, "-c", LMDB_WRITE, name, str(w), str(writemap)) for w in (1, 2)
        ]
        others.append(run_host.start(sys.executable, "-c", LMDB_READ, name))
        for process in others:
            _, err = process.communicate(timeout=PATIENCE)
            assert process.returncode == 0, err
    with (
        contextlib.closing(lmdb.open(str(run_host.settled() / name), map_size=64 << 20)) as env,
        env.begin() as t,
    ):
        found = {bytes(key): bytes(value) for key, value in t.cursor()}
    assert len(found) == 2 * (400 - 4)
    assert all(value == bytes([int(k[2:]) % 256]) * (int(k[2:]) * 7 % 5000) for k, value in found.items())


def test_lmdb_writer_killed_keeps_what_was_committed(run_host: RunningHost) -> None:
    directory(run_host, "lmdb-killed")
    script = """
import lmdb, sys
env = lmdb.open("lmdb-killed", map_size=16 << 20, writemap=True, sync=False)
for n in range(50):
    with env.begin(write=True) as t:
        t.put(b"%d" % n, b"v" * 9000)
t = env.begin(write=True)
for n in range(100, 200):
    t.put(b"%d" % n, b"not committed" * 500)
print("in it", flush=True)
sys.stdin.read()
"""
    with run_host.start(sys.executable, "-c", script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in it\n"
        process.kill()
    # its lock is a robust mutex in a shared mapping: the next writer is told that the owner has died
    run_host.python(
        "import lmdb\nenv = lmdb.open('lmdb-killed', map_size=16 << 20)\n"
        "with env.begin(write=True) as t: t.put(b'after', b'wards')\n"
    )
    path = run_host.settled() / "lmdb-killed"
    with contextlib.closing(lmdb.open(str(path), map_size=16 << 20)) as env, env.begin() as t:
        assert {bytes(key) for key, _ in t.cursor()} == {b"%d" % n for n in range(50)} | {b"after"}


# ---- gdbm: a hash table that is read and written through a mapping of a part of it


def test_gdbm_stores_through_its_mapping_and_reorganizes(run_host: RunningHost) -> None:
    gdbmtool = tool("gdbmtool")
    lines = [f"store key{n} {'value' * (n % 50 + 1)}{n}\n" for n in range(1500)]
    lines += [f"delete key{n}\n" for n in range(0, 1500, 3)] + ["reorganize\n", "count\n"]
    with run_host.serves():
        out = run_host.does(gdbmtool, "-n", "my.gdbm", input="".join(lines))
    assert "1000" in out.split()
    path = run_host.settled() / "my.gdbm"
    dump = judged(gdbmtool, "-r", path, "list").splitlines()
    wanted = {f"key{n} {'value' * (n % 50 + 1)}{n}" for n in range(1500) if n % 3}
    assert {line.strip() for line in dump} == wanted


# ---- LevelDB: its tables are read through mappings

LEVELDB = """
import plyvel, hashlib
db = plyvel.DB("leveldb", create_if_missing=True, write_buffer_size=64 << 10, max_file_size=1 << 20)
for n in range(4000):
    db.put(b"%06d" % n, hashlib.sha256(b"%d" % n).digest() * 8)
for n in range(0, 4000, 5):
    db.delete(b"%06d" % n)
db.compact_range()
assert sum(1 for _ in db) == 3200
db.close()
db = plyvel.DB("leveldb", max_open_files=20)
assert all(value == hashlib.sha256(b"%d" % int(key)).digest() * 8 for key, value in db)
db.close()
"""


def test_leveldb_reads_its_tables_through_mappings(run_host: RunningHost) -> None:
    with run_host.serves():
        run_host.python(LEVELDB)
    with contextlib.closing(plyvel.DB(str(run_host.settled() / "leveldb"), paranoid_checks=True)) as db:
        found = {bytes(key): bytes(value) for key, value in db}
    assert found == {b"%06d" % n: hashlib.sha256(b"%d" % n).digest() * 8 for n in range(4000) if n % 5}


# ---- ripgrep, and others that read


def test_ripgrep_finds_through_a_mapping_what_grep_finds(run_host: RunningHost) -> None:
    rg = tool("rg")
    top = directory(run_host, "rg")
    for i in range(4):
        (top / f"{i}.txt").write_text("".join(f"line {n} of {i}\n" for n in range(30000)))
    with run_host.serves():
        found = run_host.does(rg, "--mmap", "-N", "-c", "--sort=path", "line [0-9]*7 of", "rg")
    assert found == "".join(f"rg/{i}.txt:3000\n" for i in range(4))


def test_dynamic_loader_maps_a_library_of_the_mount_executably(run_host: RunningHost) -> None:
    """PROT_EXEC is left to the kernel, and so is the rest of what the loader maps before anybody is asked."""
    gcc = tool("gcc")
    (run_host.source / "lib.c").write_text("int answer = 41; int next(void) { return ++answer; }\n")
    run_host.does(gcc, "-shared", "-fPIC", "-o", "lib.so", "lib.c")
    script = "import ctypes\nl = ctypes.CDLL('./lib.so')\nprint(l.next(), l.next())"
    assert run_host.python(script) == "42 43\n"


def test_program_shows_in_its_maps_whose_page_cache_it_maps(run_host: RunningHost) -> None:
    (run_host.mount / "shown").write_bytes(b"x" * 4096)
    script = (
        "import mmap\n"
        "f = open('shown', 'r+b')\n"
        "m = mmap.mmap(f.fileno(), 0)\n"
        "print(m[0], flush=True)\n"
        "input()"
    )
    with run_host.start(sys.executable, "-c", script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "120\n"
        assert [area for area in areas(process.pid) if area.file is not None]
        process.communicate("\n")
