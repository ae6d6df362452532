# SPDX-License-Identifier: Apache-2.0
"""Several programs on one file at a time, and changes behind the mount, step by step.

The programs are of mapscript.c; what is behind them is the test itself, on the backing directory.
"""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mapscript import Mapper, compiled
from patience import looks
from run_host import RunningHost

from daxfault.vmm.programs.address_space import areas

PAGES = 8
MakeMapper = Callable[..., Mapper]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("mapper"))


@pytest.fixture
def backing(run_host: RunningHost) -> Path:
    """The file `f`, whose page n is of the letter a + n, behind the mount."""
    for old in run_host.source.glob("*"):
        (run_host.mount / old.name).unlink()
    path = run_host.source / "f"
    path.write_bytes(b"".join(bytes([97 + n]) * 4096 for n in range(PAGES)))
    return path


@pytest.fixture
def start(run_host: RunningHost, program: Path, backing: Path) -> Iterator[MakeMapper]:
    """Programs with `f` open as f and mapped at m, shared unless `private`."""
    running: list[Mapper] = []

    def begin(*, private: bool = False, pages: int = PAGES) -> Mapper:
        mapper = Mapper(run_host, program)
        running.append(mapper)
        assert mapper("open f f rw") == "0"
        assert mapper(f"map m f 0 {pages}p rw {'p' if private else 's'}") == "mapped"
        return mapper

    yield begin
    for mapper in running:
        mapper.close()


def sigbus(page: int) -> str:
    return f"SIGBUS code 2 at +{page * 4096}"


def test_two_programs_see_each_others_stores_at_once(start: MakeMapper) -> None:
    one, two = start(), start()
    for n in range(3):
        assert one(f"store m {n}p one{n}") == "4"
        assert two(f"load m {n}p 5") == f"[one{n}{chr(97 + n)}]"
        assert two(f"store m {n}p+4 two") == "3"
        assert one(f"load m {n}p 7") == f"[one{n}two]"
        assert one(f"read f {n}p 7") == f"[one{n}two]"
    assert two("write f 3p written") == "7"
    assert one("load m 3p 8") == "[writ*2 end]"


def test_truncation_by_one_program_is_sigbus_in_the_other_and_heals(start: MakeMapper) -> None:
    one, two = start(), start()
    assert two("load m 5p 1") == "[f]"
    assert two("store m 6p x") == "1"
    assert one("ftrunc f 3p") == "0"
    assert two("load m 5p 1") == sigbus(5)
    assert two("store m 6p x") == sigbus(6)
    assert two("load m 2p 1") == "[c]"
    assert one("append f zz") == "2"  # at offset 0, where this descriptor still is
    assert one("ftrunc f 7p") == "0"
    assert two("load m 5p 1") == "[\\0]"
    assert two("load m 6p 1") == "[\\0]"
    assert two("load m 7p 1") == sigbus(7)


def test_private_mapping_of_one_sees_the_others_stores_until_it_copies(start: MakeMapper) -> None:
    one, two = start(), start(private=True)
    one("store m 0 shared")
    assert two("load m 0 7") == "[shareda]"
    two("store m 0 own")
    one("store m 0 SHARED")
    assert two("load m 0 7") == "[ownreda]"
    assert one("load m 0 7") == "[SHAREDa]"


def test_truncation_behind_is_sigbus_and_growth_behind_heals(start: MakeMapper, backing: Path) -> None:
    one, two = start(), start()
    assert one("load m 5p 1") == "[f]"
    assert two("store m 6p gone") == "4"
    os.truncate(backing, 2 * 4096 + 10)
    assert one("await m 5p !") == "!"
    assert one("load m 5p 1") == sigbus(5)
    assert two("load m 6p 1") == sigbus(6)
    assert two("put m 5p 1") == "EFAULT"
    assert two("load m 2p+8 4") == "[c*2 \\0*2 ]"
    with open(backing, "r+b") as f:
        f.seek(5 * 4096)
        f.write(b"back" * 1024)
    assert one("await m 5p b") == "b"
    assert two("load m 5p 4") == "[back]"
    assert two("load m 4p 1") == "[\\0]"
    assert two("load m 6p 1") == sigbus(6)


def test_bytes_written_behind_replace_those_nobody_stored_to(start: MakeMapper, backing: Path) -> None:
    one = start()
    for n in range(4):
        assert one(f"load m {n}p 1") == f"[{chr(97 + n)}]"
    assert one("store m 3p stored") == "6"
    with open(backing, "r+b") as f:
        f.seek(4096)
        f.write(b"NEW")
        f.seek(3 * 4096)
        f.write(b"X" * 4096)
    assert one("await m 1p N") == "N"
    assert one("load m 1p 4") == "[NEWb]"
    assert one("load m 3p 7") == "[stored*2 ]"
    assert one("read f 1p 4") == "[NEWb]"


def test_stores_are_on_the_backing_file_after_msync_fsync_munmap_and_exit(
    run_host: RunningHost, start: MakeMapper, backing: Path
) -> None:
    def behind(page: int) -> bytes:
        return backing.read_bytes()[page * 4096 :][:4]

    one, two = start(), start()
    one("store m 1p msyn")
    assert one("msync m 0 8p s") == "0"
    assert behind(1) == b"msyn"
    one("store m 2p fsyn")
    assert two("fsync f") == "0"
    assert behind(2) == b"fsyn"
    two("unmap m 0 8p")
    one("store m 3p munm")
    one("unmap m 0 8p")
    run_host.settled()
    assert behind(3) == b"munm"
    three = start()
    three("store m 4p exit")
    assert three.end() == 0
    run_host.settled()
    assert behind(4) == b"exit"


def test_msync_writes_what_another_program_stored(start: MakeMapper, backing: Path) -> None:
    one, two = start(), start()
    one("store m 4p theirs")
    assert two("msync m 4p 1p s") == "0"
    assert backing.read_bytes()[4 * 4096 :].startswith(b"theirs")


def test_stores_reach_the_backing_file_without_anybody_asking(start: MakeMapper, backing: Path) -> None:
    one = start()
    one("store m 5p later")
    for _ in looks():  # every few seconds, as the kernel's flusher
        if backing.read_bytes()[5 * 4096 :].startswith(b"later"):
            break
    one("store m 5p again")
    assert one("msync m 5p 1p s") == "0"
    assert backing.read_bytes()[5 * 4096 :].startswith(b"again")


def test_children_that_outlive_their_parents_are_served_to_their_end(
    run_host: RunningHost, start: MakeMapper, backing: Path
) -> None:
    parents = [start(), start()]
    for n, parent in enumerate(parents):
        parent(f"store m {n}p parent")
        parent.send("fork")
        assert parent(f"load m {n}p 6") == "[parent]"  # by the child, which reads what we say from now on
        os.kill(parent.pid, signal.SIGKILL)
        parent.process.wait()
    for n, child in enumerate(parents):
        assert child("load m 5p 1") == "[f]"
        assert child(f"store m {n + 2}p child") == "5"
        assert child("open g f rw") == "0"
        assert child("map n g 4p 1p rw s") == "mapped"
        assert child(f"store n {n * 100} new") == "3"
        assert run_host.ask("status")["busy"]
    for child in parents:
        child.process.communicate()  # the end of what it reads is its end
    run_host.freed()
    data = backing.read_bytes()
    assert data[: 4096 * 2].count(b"parent") == 2
    assert data[2 * 4096 :].startswith(b"childc")
    assert data[3 * 4096 :].startswith(b"childd")
    assert data[4 * 4096 :].startswith(b"newe")
    assert data[4 * 4096 + 100 :].startswith(b"newe")


def test_debugger_reads_and_writes_pages_that_are_there_and_gets_eio_for_others(start: MakeMapper) -> None:
    """The kernel lets /proc/PID/mem wait for no userfaultfd (mm/memory.c, __access_remote_vm(): the page is
    asked for without FAULT_FLAG_ALLOW_RETRY); process_vm_readv(2) does."""
    one = start(pages=32)
    one("ftrunc f 32p")
    (area,) = [area for area in areas(one.pid) if area.file is not None]
    with open(f"/proc/{one.pid}/mem", "r+b", buffering=0) as memory:
        with pytest.raises(OSError, match="Input/output error"):
            os.pread(memory.fileno(), 3, area.start + 3 * 4096)
        assert one("load m 3p 1") == "[d]"
        assert os.pread(memory.fileno(), 3, area.start + 3 * 4096) == b"ddd"
        assert one("store m 4p x") == "1"
        assert os.pwrite(memory.fileno(), b"poked", area.start + 4 * 4096) == 5
    assert one("load m 4p 6") == "[pokede]"
    assert one("read f 4p 6") == "[pokede]"


def test_sparse_file_of_a_tebibyte_is_mapped_at_its_far_end(
    run_host: RunningHost, start: MakeMapper, backing: Path
) -> None:
    one = start()
    far = (1 << 40) // 4096
    assert one(f"ftrunc f {far}p") == "0"
    assert one(f"map n f {far - 4}p 8p rw s") == "mapped"
    assert one("load n 1p 2") == "[\\0*2 ]"
    assert one("store n 3p+4090 tHeEnD") == "6"
    assert one("load n 4p 1") == sigbus(4)
    assert one(f"read f {far - 1}p+4088 8") == "[\\0*2 tHeEnD]"
    assert one.end() == 0
    run_host.settled()
    with open(backing, "rb") as f:
        f.seek(-6, os.SEEK_END)
        assert f.read() == b"tHeEnD"
    assert backing.stat().st_size == 1 << 40
    assert backing.stat().st_blocks * 512 < 1 << 20


def test_thousand_mappings_of_one_file_are_each_served(run_host: RunningHost, backing: Path) -> None:
    script = (
        "import mmap\n"
        "f = open('f', 'r+b')\n"
        "maps = [mmap.mmap(f.fileno(), 4096, offset=n % 8 * 4096) for n in range(1000)]\n"
        "assert all(m[7] == 97 + n % 8 for n, m in enumerate(maps))\n"
        "for n, m in enumerate(maps):\n"
        "    m[n // 8 * 30] = 65 + n % 8\n"
        "for m in maps[::2]: m.close()\n"
        "assert all(m[n // 4 * 30] == 65 + m[1] - 97 for n, m in enumerate(maps[1::2]))\n"
    )
    run_host.python(script)
    data = (run_host.settled() / "f").read_bytes()
    assert all(data[n % 8 * 4096 + n // 8 * 30] == 65 + n % 8 for n in range(1000))


def test_file_replaced_by_rename_leaves_the_old_ones_mapping_alone(
    run_host: RunningHost, start: MakeMapper
) -> None:
    one = start()
    one("store m 0 old")
    (run_host.mount / "new").write_bytes(b"N" * 4096 * PAGES)
    two = start()
    assert two("rename new f") == "0"
    assert two("open g f rw") == "0"
    assert two("map n g 0 8p rw s") == "mapped"
    assert two("store n 0 new") == "3"
    assert one("load m 0 4") == "[olda]"
    assert two("load m 0 4") == "[olda]"
    assert one("store m 1p last") == "4"
    assert two("load m 1p 4") == "[last]"
    assert two("load n 1p 1") == "[N]"
    for mapper in (one, two):
        assert mapper.end() == 0
    assert (run_host.settled() / "f").read_bytes()[:5] == b"newNN"


def test_msync_of_a_forked_child_is_of_what_it_has_inherited(run_host: RunningHost) -> None:
    """The child's own connection, which is made for the msync, has mapped nothing."""
    (run_host.source / "inherited").write_bytes(bytes(3 * 4096))
    run_host.python(
        """
import mmap, os, sys
with open("inherited", "r+b") as file:
    m = mmap.mmap(file.fileno(), 0)
if os.fork() == 0:
    m[5000:5005] = b"child"
    m.flush()
    with open(sys.argv[1], "rb") as backing:
        os._exit(backing.read()[5000:5005] != b"child")
_, status = os.wait()
sys.exit(os.waitstatus_to_exitcode(status))
""",
        str(run_host.source / "inherited"),
    )
