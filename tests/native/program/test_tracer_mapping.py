# SPDX-License-Identifier: Apache-2.0
"""Mappings of statically linked programs, and of any program under the tracer, are served."""

import errno
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from patience import PATIENCE
from program_host import PAGE, ProgramHost, hang_up, program, refuse
from test_preload_mapping import ANSWERS, REQUESTS
from tracing import run_traced, static, traced_host


@pytest.fixture
def host() -> Iterator[ProgramHost]:
    with traced_host() as made:
        yield made


@pytest.fixture(params=[True, False], ids=["forks told by the kernel", "forks not told"])
def either_host(request: pytest.FixtureRequest) -> Iterator[ProgramHost]:
    with traced_host(children=request.param) as made:
        yield made


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return static("traced", tmp_path_factory.mktemp("static"))


@pytest.fixture(scope="module")
def map_from(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return static("map_from", tmp_path_factory.mktemp("static"))


@pytest.mark.parametrize("device", [True, False], ids=["device lent", "system call"])
def test_static_program_sees_the_page_cache(binary: Path, device: bool) -> None:
    with traced_host(device=device) as host:
        done = run_traced(host, binary, "bytes", host.file("file"))
        assert (done.stdout, done.stderr, done.returncode) == ("bytes 1 2 3 4\n", "", 0)
        assert [m["len"] for m in host.saying("mapped")] == [4 * PAGE]


def test_static_program_stores_into_the_page_cache_and_syncs_it(host: ProgramHost, binary: Path) -> None:
    file = host.file("file")
    assert run_traced(host, binary, "store", file, 77).returncode == 0
    assert os.pread(host.cache(file), 1, 0) == b"M"
    (sync,) = host.saying("msync")
    (mapped,) = host.saying("mapped")
    assert (sync["start"], sync["len"]) == (mapped["start"], 4 * PAGE)


def test_msync_fails_with_the_hosts_errno(host: ProgramHost, binary: Path) -> None:
    host.next("msync", refuse(errno.ENOSPC))
    done = run_traced(host, binary, "store", host.file("file"), 77)
    assert (done.returncode, done.stderr) == (1, "msync: No space left on device\n")


def test_msync_fails_when_the_host_hangs_up(host: ProgramHost, binary: Path) -> None:
    host.next("msync", hang_up)
    done = run_traced(host, binary, "store", host.file("file"), 77)
    assert (done.returncode, done.stderr) == (1, "msync: Input/output error\n")


def test_threads_that_map_at_the_same_time_are_served(host: ProgramHost, binary: Path) -> None:
    done = run_traced(host, binary, "threads", host.file("file"), 8)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(host.saying("mapped")) == 8 * 20
    assert len(host.saying("attach")) == 1


def test_thread_that_outlives_the_first_is_served(host: ProgramHost, binary: Path) -> None:
    done = run_traced(host, binary, "leaderless", host.file("file"))
    assert (done.stdout, done.returncode) == ("read\n", 7)


def test_forked_children_are_served(either_host: ProgramHost, binary: Path) -> None:
    done = run_traced(either_host, binary, "fork", either_host.file("file"))
    lines = [f"{who} 1 2 3 4" for who in ("child", "grandchild", "own", "parent")]
    assert (done.stdout.splitlines(), done.returncode) == (lines, 3)


@pytest.mark.parametrize("refused", ["attach", "serve", "mapped"])
def test_forked_child_that_cannot_be_served_gets_no_zeros(binary: Path, refused: str) -> None:
    with traced_host(children=False) as host:
        host.next(refused, lambda reply, fds: (reply, fds))  # its parent's
        host.next(refused, refuse(errno.EHOSTDOWN))
        done = run_traced(host, binary, "fork", host.file("file"))
        # its parent takes its death for the exit status 0, and reads all of it
        assert (done.stdout, done.returncode) == ("parent 1 2 3 4\n", 0)
        assert host.saying("sigbus")


def test_program_executed_by_another_thread_is_served(host: ProgramHost, binary: Path) -> None:
    file = host.file("file")
    done = run_traced(host, binary, "exec", file, binary, "bytes", file)
    assert (done.stdout, done.returncode) == ("bytes 1 2 3 4\n", 0)
    assert len(host.saying("attach")) == 2


def test_dynamic_program_executed_by_a_static_one_is_served_once(host: ProgramHost, binary: Path) -> None:
    file = host.file("file")
    script = "at = map(os.open(sys.argv[1], os.O_RDWR))\nprint(byte(at), caches(), os.environ)"
    done = run_traced(host, binary, "exec", file, *program(script, file))
    assert done.stdout.startswith("1 1 ")
    assert "libdaxfault" not in done.stdout
    assert len(host.saying("attach")) == 2


@pytest.mark.parametrize("mode", ["signals", "vfork", "_Fork", "cancel", "threads"])
def test_mapping_where_it_is_awkward_is_served(either_host: ProgramHost, map_from: Path, mode: str) -> None:
    done = run_traced(either_host, map_from, mode, either_host.file("file"))
    assert (done.returncode, done.stderr) == (0, "")


def test_mmap_of_any_request_fails_as_the_kernels_own(host: ProgramHost) -> None:
    file = host.file("file")
    command = program(REQUESTS + ANSWERS, file)
    alone = subprocess.run(command, capture_output=True, check=True, timeout=PATIENCE)
    expected = json.loads(alone.stdout)
    answers = json.loads(run_traced(host, *command).stdout)
    # where it is not validated, tmpfs ignores it, and ext4 does not
    del expected["sync without validation"]
    assert answers.pop("sync without validation") == "ENOTSUP"
    # tmpfs knows no MAP_SYNC; ext4 looks at the rights first
    del expected["validate, sync, to be written, read-only"]
    assert answers.pop("validate, sync, to be written, read-only") == "EACCES"
    assert answers == expected
    assert host.saying("mapped")


@pytest.mark.parametrize("refused", ["attach", "serve", "mmap", "mapped"])
def test_mmap_that_the_host_refuses_fails_with_its_errno(
    host: ProgramHost, binary: Path, refused: str
) -> None:
    host.next(refused, refuse(errno.EHOSTDOWN))
    done = run_traced(host, binary, "bytes", host.file("file"))
    assert (done.returncode, done.stderr) == (1, "mmap: Host is down\n")


def test_mmap_without_a_host_is_enodev_and_the_program_goes_on(host: ProgramHost, binary: Path) -> None:
    file = host.file("file")
    host.path.unlink()
    done = run_traced(host, binary, "bytes", file)
    assert (done.returncode, done.stderr) == (1, "mmap: No such device\n")


def test_mapping_opened_read_only_cannot_be_made_writable(host: ProgramHost) -> None:
    """Wherever it has been moved to, and what is left of it; others can."""
    script = """
fd = os.open(sys.argv[1], os.O_RDONLY)
shared, private = map(fd, prot=READ), map(fd, prot=READ, flags=PRIVATE)
writable = map(os.open(sys.argv[1], os.O_RDWR), prot=READ)
def protect(at, pages=1):
    return failing(lambda: checked(libc.mprotect(at, pages * PAGE, READ | WRITE)))
print(protect(shared), protect(private), protect(writable))
room = map(-1, 4 * PAGE, NONE, PRIVATE | ANONYMOUS)
moved = checked(libc.mremap(shared, 4 * PAGE, 4 * PAGE, 3, room))
libc.munmap(moved + PAGE, PAGE)
print(protect(moved), protect(moved + 3 * PAGE), byte(moved))
print(map(fd, PAGE, READ | WRITE, PRIVATE | FIXED, addr=moved) == moved, protect(moved))
sys.stdout.flush()
pid = os.fork()
if not pid:
    print(protect(moved + 3 * PAGE), flush=True)
    os._exit(0)
os.waitpid(pid, 0)
"""
    done = run_traced(host, *program(script, host.file("file")))
    assert done.stdout.splitlines() == ["EACCES None None", "EACCES EACCES 1", "True None", "EACCES"]


def test_populate_has_what_the_file_has(host: ProgramHost) -> None:
    script = """
fd = os.open(sys.argv[1], os.O_RDWR)
print([byte(map(fd, flags=SHARED | 0x8000) + i * PAGE) for i in range(4)])
"""
    done = run_traced(host, *program(script, host.file("file")))
    assert done.stdout == "[1, 2, 3, 4]\n"


def test_sigbus_that_kills_is_told(host: ProgramHost, binary: Path) -> None:
    file = host.file("file")
    script = """
fd = os.open(sys.argv[1], os.O_RDWR)
at = map(fd, 8 * PAGE)
byte(at + 5 * PAGE)
"""
    done = run_traced(host, *program(script, file))
    assert done.returncode == -signal.SIGBUS
    (told,) = host.saying("sigbus")
    (mapped,) = host.saying("mapped")
    assert told["address"] == mapped["start"] + 5 * PAGE
    assert (told["code"], told["nframes"]) == (2, 0)


def test_go_program_is_served(host: ProgramHost, tmp_path: Path) -> None:
    go = shutil.which("go")
    if go is None:  # 300 MB that set-up does not install: no feature of the machine, so never required
        pytest.skip("missing: go (golang-go)")
    assert go is not None
    source = tmp_path / "main.go"
    source.write_text(GO)
    home = {"HOME": os.fspath(tmp_path), "GO111MODULE": "off", "GOCACHE": os.fspath(tmp_path / "cache")}
    subprocess.run(
        [go, "build", "-o", tmp_path / "main", source], env=os.environ | home, check=True, timeout=300
    )
    done = run_traced(host, tmp_path / "main", host.file("file"))
    assert (done.stdout, done.stderr, done.returncode) == ("1600\n", "", 0)


GO = """
package main

import ("fmt"; "os"; "sync"; "syscall")

func read(path string) (sum int) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil { panic(err) }
	defer f.Close()
	b, err := syscall.Mmap(int(f.Fd()), 0, 4*4096, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil { panic(err) }
	for i := 0; i < 4; i++ { sum += int(b[i*4096]) }
	if err := syscall.Munmap(b); err != nil { panic(err) }
	return
}

func main() {
	var wait sync.WaitGroup
	var lock sync.Mutex
	total := 0
	for i := 0; i < 8; i++ {
		wait.Add(1)
		go func() {
			defer wait.Done()
			for n := 0; n < 20; n++ {
				sum := read(os.Args[1])
				lock.Lock(); total += sum; lock.Unlock()
			}
		}()
	}
	wait.Wait()
	fmt.Println(total)
}
"""
