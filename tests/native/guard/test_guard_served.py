# SPDX-License-Identifier: Apache-2.0
"""daxfault.guard() in programs that `daxfault run` serves: the host's own record, poison that heals."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from failing_file import PRELUDE
from patience import PATIENCE
from program_host import ProgramHost
from program_host import program as served
from run_host import Place, require_programs

from daxfault import native

PAGE = native.PAGE_SIZE


def test_guard_that_does_not_catch_lets_the_preloaded_library_tell_the_host(
    program_host: ProgramHost,
) -> None:
    script = """
import daxfault
fd = os.open(sys.argv[1], os.O_RDWR)
at = map(fd)
byte(at)
with daxfault.guard():
    pass
print(at, os.getpid(), flush=True)
sys.stdin.read(1)
byte(at + PAGE)
"""
    file = program_host.file("file")
    command = [word for word in served(script, file) if word not in ("-I", "-S")]
    with subprocess.Popen(
        command, env=program_host.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        at, pid = (int(word) for word in process.stdout.readline().split())
        os.ftruncate(program_host.cache(file), PAGE)
        process.communicate("x", timeout=PATIENCE)
    assert process.returncode == -signal.SIGBUS
    (told,) = program_host.saying("sigbus")
    assert (told["address"], told["tid"]) == (at + PAGE, pid)


# A program on the mount, with its file `data` of four pages mapped.
RUN = (
    PRELUDE
    + """
from daxfault.vmm.programs import control
def inject(rule):
    return control.ask(os.environ["DAXFAULT_MOUNT"], "inject", rule=rule)
def remove(id):
    control.ask(os.environ["DAXFAULT_MOUNT"], "remove", id=id)
def show(e):
    print(e.errno, os.path.basename(e.filename), [(r.offset, r.pages, r.reason) for r in e.records])
"""
)


def run(tmp_path: Path, script: str) -> list[str]:
    require_programs()
    place = Place(tmp_path)
    ran = place.ran("env", "-C", place.mount, sys.executable, "-c", RUN + script, "data")
    assert ran.code == 0, ran.err
    return ran.out.splitlines()


def test_guard_in_a_served_program_names_the_file_that_was_cut_and_heals(tmp_path: Path) -> None:
    script = """
try:
    with daxfault.guard():
        bytes(array)
except daxfault.MappingError as e:
    show(e)
with open("data", "r+b") as file:
    file.seek(PAGE)
    file.write(b"y" * 3 * PAGE)
print(array[0], array[PAGE], array[-1])
array[2 * PAGE] = 7
with open("data", "rb") as file:
    print(file.read()[2 * PAGE])
"""
    assert run(tmp_path, script) == [f"14 data [({PAGE}, 3, 'eof')]", "120 121 121", "7"]


def test_guard_in_a_served_program_tells_the_hosts_error(tmp_path: Path) -> None:
    script = """
os.truncate("data", 64 * PAGE)
with open("data", "r+b") as file:
    array = mmap.mmap(file.fileno(), 0)
    file.write(b"z" * 64 * PAGE)
rule = inject("EIO,file=data,offset=32K-36K")
for _ in range(2):
    try:
        with daxfault.guard():
            array[8 * PAGE + 3]
    except daxfault.MappingError as e:
        show(e)
remove(rule)
while True:
    try:
        with daxfault.guard():
            print(array[8 * PAGE], array[9 * PAGE])
        break
    except daxfault.MappingError:
        pass  # until the page has healed
array[8 * PAGE] = 1
array.flush()
"""
    out = run(tmp_path, script)
    assert out == [f"5 data [({8 * PAGE + 3}, 1, 'io')]"] * 2 + ["122 122"]
    assert (tmp_path / "source" / "data").read_bytes() == b"z" * 8 * PAGE + b"\1" + b"z" * (56 * PAGE - 1)


def test_guard_in_a_served_program_and_its_forked_child_both_heal(tmp_path: Path) -> None:
    script = """
def read(word):
    try:
        with daxfault.guard():
            bytes(array)
    except daxfault.MappingError as e:
        os.write(1, f"{word} {len(e.records)}\\n".encode())
read("before")
pid = os.fork()
read("child" if not pid else "parent")
if pid:
    os.waitpid(pid, 0)
    os.truncate("data", 4 * PAGE)
    print(array[0], array[3 * PAGE])
else:
    os._exit(0)
"""
    before, *both, after = run(tmp_path, script)
    assert (before, sorted(both), after) == ("before 1", ["child 1", "parent 1"], "120 0")
