# SPDX-License-Identifier: Apache-2.0
"""What a program cannot tell of the tracer: how it starts, is signalled, stops, and ends."""

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from needs import require
from patience import PATIENCE, within
from program_host import ProgramHost, program
from tracing import run_traced, static, traced, traced_host

from daxfault import native


@pytest.fixture
def host() -> Iterator[ProgramHost]:
    with traced_host() as made:
        yield made


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return static("traced", tmp_path_factory.mktemp("static"))


def alone(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=PATIENCE)


@pytest.mark.parametrize(
    "script",
    [
        "ls -la /usr | sort | md5sum",
        "exit 7",
        "kill -TERM $$",
        "kill -KILL $$",
        "(exit 3) & wait $!; echo $?",
        "echo out; echo err >&2; exec 1>&-; echo lost",
        "trap 'echo usr1' USR1; kill -USR1 $$; echo after",
        "(for i in 1 2 3 4 5 6 7 8 9; do echo $i | cat & done; wait; echo done) | sort",
        "seq 100000 | head -3",
        "ulimit -n 7; cat /dev/null && echo $(ulimit -n)",
        "ls /proc/self/fd | wc -l",
        "nosuchcommand",
        "/etc",
    ],
)
def test_shell_script_does_as_alone(host: ProgramHost, script: str) -> None:
    plain, done = alone("/bin/sh", "-c", script), run_traced(host, "/bin/sh", "-c", script)
    assert (done.returncode, done.stdout, done.stderr) == (plain.returncode, plain.stdout, plain.stderr)


def test_python_with_threads_and_children_does_as_alone(host: ProgramHost) -> None:
    script = """
import os, subprocess, threading, multiprocessing
def work(i): return subprocess.run(["sh", "-c", f"exit {i}"]).returncode
found = []
threads = [threading.Thread(target=lambda i=i: found.append(work(i))) for i in range(16)]
for t in threads: t.start()
for t in threads: t.join()
with multiprocessing.get_context("fork").Pool(3) as pool:
    print(sorted(found), pool.map(work, range(6)))
"""
    plain, done = alone(sys.executable, "-c", script), run_traced(host, sys.executable, "-c", script)
    assert (done.returncode, done.stdout, done.stderr) == (0, plain.stdout, "")


def test_program_is_the_process_that_was_started(host: ProgramHost) -> None:
    """Its id, its parent, its group; no child that it did not make; signals and mask as they were."""
    script = """
status = dict(line.split(":\\t") for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
def child():
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | 0x40000000)
    except ChildProcessError:
        return None
print([os.getpid(), os.getppid(), os.getpgrp(), os.getsid(0), child(), os.getcwd(), os.umask(0)],
      [status[x] for x in ("SigPnd", "ShdPnd", "SigBlk", "SigIgn", "FDSize")])
"""
    command = traced("--argv0", "name", *program(script))
    end = subprocess.Popen(command, env=host.environment(), stdout=subprocess.PIPE, text=True)
    out, _ = end.communicate(timeout=PATIENCE)
    plain = subprocess.Popen(program(script), stdout=subprocess.PIPE, text=True)
    expected, _ = plain.communicate(timeout=PATIENCE)
    assert out == expected.replace(f"[{plain.pid},", f"[{end.pid},")


def test_argv0_is_the_name_that_is_given(host: ProgramHost) -> None:
    done = run_traced(host, "--argv0", "another", "/bin/sh", "-c", "echo $0; tr '\\0' ' ' </proc/$$/cmdline")
    assert done.stdout.startswith("another\nanother -c")


def test_program_that_is_not_there_is_127_and_named(host: ProgramHost) -> None:
    done = run_traced(host, "/nonexistent/program")
    assert (done.returncode, done.stderr) == (
        127,
        "daxfault-tracer: /nonexistent/program: No such file or directory\n",
    )
    assert run_traced(host, "/etc/passwd").returncode == 126


@pytest.mark.parametrize("missing", ["DAXFAULT_SOCKET", "DAXFAULT_DEVICE"])
def test_tracer_without_its_environment_says_so(host: ProgramHost, missing: str) -> None:
    done = subprocess.run(
        traced("/bin/true"), env=host.environment(**{missing: ""}), capture_output=True, text=True
    )
    assert done.returncode == 125
    assert missing in done.stderr


def test_pipe_ends_when_the_program_closes_it(host: ProgramHost) -> None:
    """The tracer holds none of its descriptors."""
    with subprocess.Popen(
        traced("/bin/sh", "-c", "exec cat <&3 >&- 3<&-"),
        env=host.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        preexec_fn=lambda: os.dup2(0, 3) and None,
    ) as end:
        assert end.stdin is not None
        assert end.stdout is not None
        assert select.select([end.stdout], [], [], PATIENCE)[0]
        assert end.stdout.read() == b""
        end.stdin.close()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGWINCH"])
def test_signal_reaches_the_program_with_its_sender(host: ProgramHost, name: str) -> None:
    script = """
wanted = getattr(signal, sys.argv[1])
signal.pthread_sigmask(signal.SIG_BLOCK, [wanted])
print("ready", flush=True)
info = signal.sigwaitinfo([wanted])
print(info.si_pid, info.si_code)
"""
    with subprocess.Popen(
        traced(*program(script, name)), env=host.environment(), stdout=subprocess.PIPE, text=True
    ) as end:
        assert end.stdout is not None
        assert end.stdout.readline() == "ready\n"
        end.send_signal(getattr(signal, name))
        assert end.stdout.readline() == f"{os.getpid()} 0\n"


def test_stopped_program_is_seen_to_stop_and_goes_on(host: ProgramHost) -> None:
    # the kernel ignores SIGTSTP and SIGTTIN in an orphaned process group, as this one may be
    end = subprocess.Popen(traced("/bin/cat"), env=host.environment(), stdin=subprocess.PIPE, process_group=0)
    try:
        for stop in (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN):
            os.kill(end.pid, stop)
            with within(what=f"a stop by {stop.name}"):
                seen = os.waitid(os.P_PID, end.pid, os.WSTOPPED)
            assert seen is not None
            assert (seen.si_code, seen.si_status) == (os.CLD_STOPPED, stop)
            os.kill(end.pid, signal.SIGCONT)
            with within(what="SIGCONT"):
                seen = os.waitid(os.P_PID, end.pid, os.WCONTINUED)
            assert seen is not None
            assert seen.si_code == os.CLD_CONTINUED
        assert end.stdin is not None
        end.stdin.close()
        assert end.wait(PATIENCE) == 0
    finally:
        end.kill()
        end.wait()


def test_job_control_of_a_terminal_is_the_programs_own(host: ProgramHost) -> None:
    """^Z stops it, fg goes on, ^C ends it; the shell says so as without a tracer."""
    require(Path("/bin/bash").exists(), "bash")
    pid, terminal = pty.fork()
    if not pid:
        os.execve("/bin/bash", ["bash", "--norc", "-i"], host.environment() | {"PS1": "$ ", "LD_PRELOAD": ""})
    said = b""

    def until(text: bytes) -> None:
        nonlocal said
        while text not in said:
            assert select.select([terminal], [], [], PATIENCE)[0], said
            said += os.read(terminal, 4096)
        said = said.split(text, 1)[1]

    try:
        until(b"$ ")
        os.write(
            terminal, f"{native.tracer()} /bin/sh -c 'echo begun; read x; echo got-$x; read y'\n".encode()
        )
        until(b"\nbegun")
        os.write(terminal, b"\x1a")
        until(b"Stopped")
        os.write(terminal, b"fg\n")
        until(b"read y'")
        os.write(terminal, b"line\n")
        until(b"got-line")
        os.write(terminal, b"\x03")
        until(b"$ ")
        os.write(terminal, b"echo status-$?\n")
        until(b"\nstatus-130")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)


def test_signals_and_stops_amid_mmap_are_all_delivered_once(host: ProgramHost, binary: Path) -> None:
    """Queued signals keep value, sender and order; a timer and SIGSTOP/SIGCONT come in between."""
    done = run_traced(host, binary, "storm", host.file("file"), 500)
    assert (done.stdout, done.stderr, done.returncode) == ("500 0 0 ticks\n", "", 0)


def test_program_killed_at_any_moment_is_gone_and_so_is_its_tracer(host: ProgramHost, binary: Path) -> None:
    """The host sees every connection end, however far an mmap() had come."""
    file = host.file("file")
    for n in (1, 2, 3, 4, 5, 7, 10, 14, 20, 20, 20):
        end = subprocess.Popen(traced(binary, "threads", file, "4"), env=host.environment())

        def has_come_far(n: int = n, pid: int = end.pid) -> bool:
            return sum(said.pid == pid for said in host.said) >= n

        host.wait(has_come_far)
        end.kill()
        assert end.wait(PATIENCE) == -signal.SIGKILL
    host.wait(lambda: len(host.ended) == len({s.connection for s in host.said}))


def test_program_without_its_tracer_does_not_go_on(host: ProgramHost) -> None:
    """A mapping that nobody served would be the kernel's own."""
    # the kernel ignores SIGTSTP and SIGTTIN in an orphaned process group, as this one may be
    end = subprocess.Popen(traced("/bin/cat"), env=host.environment(), stdin=subprocess.PIPE, process_group=0)
    try:
        while not (tracer := _tracer_of(end.pid)):
            os.sched_yield()
        os.kill(tracer, signal.SIGKILL)
        assert end.wait(PATIENCE) == -signal.SIGKILL
    finally:
        with contextlib.suppress(ProcessLookupError):
            end.kill()
        end.wait()


def _tracer_of(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("TracerPid:"):
            return int(line.split()[1])
    return 0
