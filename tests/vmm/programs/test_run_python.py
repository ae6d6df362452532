# SPDX-License-Identifier: Apache-2.0
"""Python's mmap and numpy.memmap on the mount, beside what they do on an ordinary file system.

Each script runs twice, in a fresh directory; same output, same files afterwards.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from mapscript import contents
from patience import PATIENCE
from run_host import RunningHost

PRELUDE = """
import mmap, os, sys
def page(c, n=1):
    return c * 4096 * n
with open("f", "wb") as made:
    made.write(b"".join(page(c) for c in (b"a", b"b", b"c", b"d")) + b"tail")
def told(function, *arguments):
    try:
        print(function(*arguments))
    except Exception as e:
        print(type(e).__name__, getattr(e, "errno", None))
"""

SCRIPTS = {
    "access_modes": """
f = open("f", "r+b")
for access in (mmap.ACCESS_READ, mmap.ACCESS_WRITE, mmap.ACCESS_COPY, mmap.ACCESS_DEFAULT):
    m = mmap.mmap(f.fileno(), 0, access=access)
    print(len(m), m[:3], m[4094:4098], m[-6:], m.find(b"c"), m.rfind(b"ab"))
    told(m.__setitem__, slice(5000, 5003), str(access).encode() * 3)
    print(m[4999:5004], os.pread(f.fileno(), 5, 4999))
    told(m.flush)
    m.close()
told(mmap.mmap, os.open("f", os.O_RDONLY), 0, mmap.MAP_SHARED, mmap.PROT_WRITE)
told(mmap.mmap, f.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ)
""",
    "read_only_file": """
fd = os.open("f", os.O_RDONLY)
m = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
n = mmap.mmap(fd, 0, access=mmap.ACCESS_COPY)
n[:4] = b"mine"
print(m[:6], n[:6], bytes(m[16384:]))
told(m.__setitem__, 0, 1)
with open("f", "r+b") as f:
    f.write(b"written")
print(m[:8], n[:8])
""",
    "objects": """
f = open("f", "r+b")
m = mmap.mmap(f.fileno(), 0)
m.seek(4090)
print(m.read(10), m.tell(), m.read_byte())
m.write(b"through write")
m.write_byte(33)
print(m[4100:4120], m.size())
m.move(0, 4096, 8192)
print(m[4090:4100], m[0:4])
view = memoryview(m)
view[8192:8196] = b"view"
print(bytes(view[8190:8198]))
told(m.resize, 100)
del view
print(m.readline()[:4], sum(m[::4096]), m[16380:], bytes(m[100:0:-50]))
""",
    "resize_up": """
f = open("f", "r+b")
m = mmap.mmap(f.fileno(), 0)
m[16384:16388] = b"TAIL"
for size in (5 * 4096, 20 * 4096, 300 * 4096, 1000 * 4096):
    m.resize(size)
    print(len(m), os.fstat(f.fileno()).st_size, m[16384:16390], m[size - 3:])
    m[size - 5:] = b"12345"
    print(os.pread(f.fileno(), 5, size - 5))
m.flush()
""",
    "resize_down": """
f = open("f", "r+b")
m = mmap.mmap(f.fileno(), 0)
m[8192] = 66
m.resize(8192 + 10)
print(len(m), m[8190:], os.fstat(f.fileno()).st_size)
m.resize(100)
print(m[:], os.fstat(f.fileno()).st_size)
m.resize(3 * 4096)
print(m[98:104], m[8192:8196])
""",
    "offsets": """
f = open("f", "r+b")
m = mmap.mmap(f.fileno(), 4096, offset=8192)
print(m[:2], m[-2:])
m[:2] = b"XY"
n = mmap.mmap(f.fileno(), 0, offset=16384)
print(n[:], len(n))
told(mmap.mmap, f.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ, mmap.ACCESS_DEFAULT, 100)
told(mmap.mmap, f.fileno(), 20 * 4096)
told(mmap.mmap, f.fileno(), -1)
""",
    "flush_ranges": """
f = open("f", "r+b")
m = mmap.mmap(f.fileno(), 0)
m[0:4] = b"one1"
m[8192:8196] = b"two2"
told(m.flush, 0, 4096)
told(m.flush, 4096, 8192)
told(m.flush, 100, 100)
told(m.flush, 16384, 4)
told(m.flush, 16384, 400)
print(open("f", "rb").read()[8190:8200])
""",
    "advice": """
f = open("f", "r+b")
m = mmap.mmap(f.fileno(), 0)
m[4096:4100] = b"kept"
for name in ("NORMAL", "RANDOM", "SEQUENTIAL", "WILLNEED", "DONTNEED", "DONTFORK", "DOFORK"):
    print(name)
    told(m.madvise, getattr(mmap, "MADV_" + name))
    print(m[4094:4102])
told(m.madvise, mmap.MADV_DONTNEED, 4096, 4096)
print(m[4094:4102])
""",
    "children": """
f = open("f", "r+b")
m = mmap.mmap(f.fileno(), 0)
n = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_COPY)
n[:4] = b"mine"
for i in range(4):
    if os.fork() == 0:
        m[i * 4096 + 10] = 65 + i
        n[i * 4096] = 33
        assert n[:4] == (b"!ine" if i == 0 else b"mine"), n[:4]
        os._exit(0)
for i in range(4):
    assert os.wait()[1] == 0
print(m[10], m[4106], m[8202], m[12298], n[:4], n[4096])
""",
    "threads": """
import threading
f = open("f", "r+b")
f.truncate(256 * 4096)
m = mmap.mmap(f.fileno(), 0)
def fill(i):
    for at in range(i * 4096, 256 * 4096, 8 * 4096):
        m[at:at + 4096] = bytes([65 + i]) * 4096
        assert m[at:at + 4096] == bytes([65 + i]) * 4096
threads = [threading.Thread(target=fill, args=(i,)) for i in range(8)]
for t in threads: t.start()
for t in threads: t.join()
print(all(m[p * 4096] == 65 + p % 8 for p in range(256)))
""",
    "shared_memory_of_multiprocessing": """
import multiprocessing
from multiprocessing import heap
def work(i):
    with open("f", "r+b") as f, mmap.mmap(f.fileno(), 0) as m:
        m[i * 100:i * 100 + 5] = b"job%02d" % i
        return m[i * 100:i * 100 + 5]
with multiprocessing.get_context("fork").Pool(3) as pool:
    print(pool.map(work, range(12)))
""",
    "re_and_struct_on_a_mapping": """
import re, struct, zlib, hashlib, array
f = open("f", "r+b")
m = mmap.mmap(f.fileno(), 0)
struct.pack_into("<QI", m, 4090, 2**40, 7)
print(struct.unpack_from("<QI", m, 4090))
print([x.start() for x in re.finditer(b"[bc]{4096}", m)], re.search(b"dt", m).span())
print(zlib.crc32(m), hashlib.sha256(m).hexdigest())
array.array("B", m[:10]).tofile(open("g", "wb"))
open("h", "wb").write(m)
os.write(f.fileno(), m)
""",
}

NUMPY = {
    "modes": """
import numpy as np
a = np.memmap("n", dtype="f8", mode="w+", shape=(300, 40))
a[:] = np.arange(12000).reshape(300, 40)
a.flush()
r = np.memmap("n", dtype="f8", mode="r", shape=(300, 40))
print(r.sum(), r[::7, 3].sum(), np.array_equal(r, a))
told(r.__setitem__, (0, 0), 1.0)
c = np.memmap("n", dtype="f8", mode="c", shape=(300, 40))
c[10] = -1
print(c.sum(), r[10, 0], np.fromfile("n").sum())
p = np.memmap("n", dtype="f8", mode="r+", shape=(300, 40))
p[5, 5] = 1e6
print(r[5, 5], c[5, 5], a[5, 5])
p.flush()
o = np.memmap("n", dtype="f8", mode="r", offset=8 * 1000, shape=20)
print(o)
""",
    "save_and_load": """
import numpy as np
a = np.arange(100000, dtype="i4").reshape(1000, 100)
np.save("a.npy", a)
m = np.load("a.npy", mmap_mode="r+")
m[500:510] *= -1
m.flush()
print(np.load("a.npy").sum(), np.load("a.npy", mmap_mode="r")[505, :5])
w = np.lib.format.open_memmap("b.npy", mode="w+", dtype="u2", shape=(512, 512))
w[:] = np.add.outer(np.arange(512), np.arange(512))
w.T[:] = w + 1
del w
print(np.load("b.npy").sum())
""",
    "arithmetic_in_place_and_sort": """
import numpy as np
a = np.memmap("n", dtype="i8", mode="w+", shape=200000)
a[:] = np.random.default_rng(5).integers(0, 1 << 40, 200000)
a.sort()
a += 1
np.add(a[1:], a[:-1], out=a[1:])
print(a[::20000], a[np.array([1, 5, 199999])], (a % 2 == 0).sum())
a.tofile("copy")
""",
}


def run_plainly(script: str, top: Path) -> str:
    top.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=top, capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", SCRIPTS)
def test_python_mmap_is_as_on_an_ordinary_file_system(
    name: str, run_host: RunningHost, tmp_path: Path
) -> None:
    compare(name, PRELUDE + SCRIPTS[name], run_host, tmp_path)


@pytest.mark.parametrize("name", NUMPY)
def test_numpy_memmap_is_as_on_an_ordinary_file_system(
    name: str, run_host: RunningHost, tmp_path: Path
) -> None:
    compare(f"numpy_{name}", PRELUDE + NUMPY[name], run_host, tmp_path)


def compare(name: str, script: str, host: RunningHost, tmp_path: Path) -> None:
    expected = run_plainly(script, tmp_path / name)
    (host.source / name).mkdir()
    with host.serves():
        assert host.python("import os, sys\nos.chdir(sys.argv[1])\n" + script, name) == expected
    host.settled()
    assert contents(host.source / name) == contents(tmp_path / name)


@pytest.mark.parametrize("how", ["m[5 * 4096 + 3]", "m[4 * 4096:6 * 4096]", "bytes(m)", "m.find(b'nothing')"])
def test_slice_past_a_truncation_kills_python_and_is_reported(run_host: RunningHost, how: str) -> None:
    (run_host.mount / "t").write_bytes(b"x" * 4096 * 8)
    before = run_host.ask("status")["deaths"]
    script = (
        "import mmap, os\n"
        "f = open('t', 'r+b')\n"
        "m = mmap.mmap(f.fileno(), 0)\n"
        "assert m[7 * 4096] == 120\n"
        "os.truncate('t', 4 * 4096)\n"
    )
    run_host.python(script + how, status=-7)
    assert run_host.ask("status")["deaths"] == before + 1


def test_numpy_array_whose_file_is_truncated_is_reported(run_host: RunningHost) -> None:
    script = (
        "import numpy as np, os\n"
        "a = np.memmap('na', dtype='u1', mode='w+', shape=8 * 4096)\n"
        "a[:] = 1\n"
        "os.truncate('na', 2 * 4096)\n"
        "print(a[:2 * 4096].sum(), flush=True)\n"
        "a.sum()\n"
    )
    assert run_host.python(script, status=-7) == "8192\n"
