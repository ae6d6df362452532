# SPDX-License-Identifier: Apache-2.0
"""What a program with the preloaded library executes is followed: by its environment, or by the tracer."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from needs import require, require_root
from patience import PATIENCE
from program_host import ProgramHost, printed, program

from daxfault import native

# Stands for the tracer: says how it was called.  It is a script, and so are those that call it.
TRACER = """#!{python} -IS
import json, os, sys
print(json.dumps(sys.argv[1:]), flush=True)
"""
# Executed, it tells of its environment and arguments.
SHOW = """#!{python} -IS
import json, os, sys
environment = {{k: v for k, v in os.environ.items() if k not in ("LC_CTYPE", "PWD", "SHLVL", "_")}}
print(json.dumps([sys.argv[1:], environment]), flush=True)
"""
RAW = "int main(void) { return 42; }"
GO_NOTE = """
__asm__(".section .note.go.buildid,\\"a\\",@note\\n.long 4, 4, 4\\n.ascii \\"Go\\\\0\\\\0abcd\\"\\n.text");
"""
ARGUMENTS = """
libc.posix_spawn.argtypes = libc.posix_spawnp.argtypes = (
    [ctypes.c_void_p, ctypes.c_char_p] + [ctypes.c_void_p] * 4)
def strings(values):
    return (ctypes.c_char_p * (len(values) + 1))(*[os.fsencode(v) for v in values], None)
def child(function):
    '''What a child does, which had better not return.'''
    sys.stdout.flush()
    if not os.fork():
        function()
        print(errno.errorcode[ctypes.get_errno()], flush=True)
        os._exit(9)
    os.wait()
path = os.fsencode(sys.argv[1])
directory, name = os.path.split(path)
argv = strings(["the name", "one", ""])
envp = strings(["OWN=1", "PATH=/nowhere"])
environ = ctypes.c_void_p.in_dll(libc, "environ")
def with_environment(values):
    values = strings(values)
    environ.value = ctypes.addressof(values)
    return values
def spawn(function, what, environment):
    pid = ctypes.c_int()
    error = function(ctypes.addressof(pid), what, None, None, argv, environment)
    if error:
        print(errno.errorcode[error], flush=True)
    else:
        os.waitpid(pid.value, 0)
    os._exit(0)
NAME, ONE, EMPTY, END = b"the name", b"one", b"", ctypes.c_char_p()
def opened(path):
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    os.set_inheritable(fd, True)  # or no script could be read again
    return fd
os.environ["PATH"] = os.fsdecode(directory)
CALLS = {
    "execve": lambda: libc.execve(path, argv, envp),
    "execv": lambda: (with_environment(["OWN=1"]), libc.execv(path, argv)),
    "execvp": lambda: libc.execvp(name, argv),
    "execvpe": lambda: libc.execvpe(name, argv, envp),
    "execl": lambda: libc.execl(path, NAME, ONE, EMPTY, END),
    "execlp": lambda: libc.execlp(name, NAME, ONE, EMPTY, END),
    "execle": lambda: libc.execle(path, NAME, ONE, EMPTY, END, envp),
    "fexecve": lambda: libc.fexecve(opened(path), argv, envp),
    "execveat": lambda: libc.execveat(-100, path, argv, envp, 0),
    "execveat, of a directory": lambda: libc.execveat(opened(directory), name, argv, envp, 0),
    "execveat, of a descriptor": lambda: libc.execveat(opened(path), b"", argv, envp, 0x1000),
    "posix_spawn": lambda: spawn(libc.posix_spawn, path, envp),
    "posix_spawnp": lambda: spawn(libc.posix_spawnp, name, envp),
}
"""
# Each of them in a child; a line begins with its name.
EACH = (
    ARGUMENTS
    + """
for name_of_call, call in CALLS.items():
    print(name_of_call, end=": ")
    child(call)
"""
)


def each(host: ProgramHost, path: Path, **environment: str) -> dict[str, str]:
    """What executing `path` by each of the calls prints."""
    return dict(line.split(": ", 1) for line in printed(host, EACH, path, **environment))


def script(path: Path, text: str) -> Path:
    path.write_text(text.format(python=os.path.realpath(sys.executable)))
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An executable that LD_PRELOAD does not reach; it ends with 42."""
    directory = tmp_path_factory.mktemp("raw")
    (directory / "raw.c").write_text(RAW)
    done = subprocess.run(["cc", "-static", "raw.c", "-o", "raw"], cwd=directory, capture_output=True)
    require(done.returncode == 0, "a static libc")
    return directory / "raw"


@pytest.fixture
def tracer(tmp_path: Path) -> Path:
    return script(tmp_path / "tracer", TRACER)


def test_exec_with_an_environment_of_its_own_keeps_ours(program_host: ProgramHost, tmp_path: Path) -> None:
    show = script(tmp_path / "show", SHOW)
    ours = program_host.environment()
    del ours["PATH"]
    shown = each(program_host, show)
    assert len(shown) == 13
    for call, line in shown.items():
        arguments, environment = json.loads(line)
        assert arguments == ["one", ""], call
        assert {name: environment.get(name) for name in ours} == ours, call
        if call not in ("execvp", "execl", "execlp"):  # which have no other than the process's
            assert environment["OWN"] == "1", call


def test_exec_of_a_static_program_is_traced(program_host: ProgramHost, raw: Path, tracer: Path) -> None:
    for call, line in each(program_host, raw, DAXFAULT_TRACER=str(tracer)).items():
        assert json.loads(line) == ["--argv0", "the name", str(raw), "one", ""], call


def test_exec_of_nothing_fails_as_ever(program_host: ProgramHost, tmp_path: Path, tracer: Path) -> None:
    """Neither tracer nor library makes up another error."""
    plain, shell, missing = tmp_path / "plain", tmp_path / "shell", tmp_path / "missing"
    plain.write_bytes(b"\x7fELF" + bytes(100))
    shell.write_text("echo by a shell")
    shell.chmod(0o755)
    missing.symlink_to("nowhere")  # which can be opened as a path, unlike nothing at all
    for path in (plain, shell, missing, tmp_path):
        served = each(program_host, path, DAXFAULT_TRACER=str(tracer))
        assert served == each(program_host, path, DAXFAULT_SOCKET=""), path
        assert len(served) == 13
        assert served["execve"] == {shell: "ENOEXEC", missing: "ENOENT"}.get(path, "EACCES")
        assert served["execvp"] == {shell: "by a shell", missing: "ENOENT"}.get(path, "EACCES")


def test_exec_of_a_script_follows_its_interpreter(
    program_host: ProgramHost, tmp_path: Path, raw: Path, tracer: Path
) -> None:
    static = script(tmp_path / "static", f"#! {raw} -x\n")
    nested = script(tmp_path / "nested", f"#!{static}\n")
    endless = tmp_path / "endless"
    script(endless, f"#!{endless}\n")
    empty = script(tmp_path / "empty", "#!\n")
    text = ARGUMENTS + "for path in map_(sys.argv[1:]): child(lambda: libc.execve(path, argv, envp))"
    text = text.replace("map_(sys.argv[1:])", "[os.fsencode(p) for p in sys.argv[1:]]")
    lines = printed(program_host, text, static, nested, endless, empty, DAXFAULT_TRACER=os.fspath(tracer))
    assert [json.loads(line)[2] for line in lines[:2]] == [str(static), str(nested)]
    assert lines[2:] == ["ELOOP", "ENOEXEC"]


STATUS = (
    ARGUMENTS
    + """
def status(path):
    pid = os.fork()
    if not pid:
        libc.execve(os.fsencode(path), argv, envp)
        os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
print([status(path) for path in sys.argv[1:]])
"""
)


# What makes a program's system calls: the libc, which LD_PRELOAD gets between, or the program.
KINDS = {
    "static": (["-static"], "", True),
    "static, at any address": (["-static-pie"], "", True),
    "dynamic": ([], "", False),
    "dynamic, at one address": (["-no-pie"], "", False),
    "dynamic, of Go": ([], GO_NOTE, True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_program_is_traced_where_a_library_cannot_reach_it(
    program_host: ProgramHost, tmp_path: Path, tracer: Path, kind: str
) -> None:
    flags, more, traced = KINDS[kind]
    source, binary = tmp_path / "source.c", tmp_path / "binary"
    source.write_text(more + RAW)
    done = subprocess.run(["cc", *flags, source, "-o", binary], capture_output=True)
    require(done.returncode == 0, f"cc {' '.join(flags)}")
    lines = printed(program_host, STATUS, binary, DAXFAULT_TRACER=str(tracer))
    assert lines[-1] == ("[0]" if traced else "[42]")
    assert len(lines) == 1 + traced


def test_dynamic_loader_called_by_its_name_is_not_traced(program_host: ProgramHost, tracer: Path) -> None:
    """It has no interpreter either, and hears LD_PRELOAD."""
    headers = subprocess.run(
        ["readelf", "-l", "/bin/true"], capture_output=True, text=True, check=True
    ).stdout
    loader = headers.split("interpreter: ")[1].split("]")[0]
    text = (
        ARGUMENTS
        + """
child(lambda: libc.execve(path, strings(["ld.so", "/bin/echo", "hello"]), envp))
"""
    )
    assert printed(program_host, text, loader, DAXFAULT_TRACER=str(tracer)) == ["hello"]


def test_child_of_vfork_that_executes_is_followed(
    program_host: ProgramHost, tmp_path: Path, raw: Path, tracer: Path
) -> None:
    """Python's own subprocess, which shares its parent's memory until then."""
    show = script(tmp_path / "show", SHOW)
    text = """
import subprocess
assert subprocess._USE_VFORK
for path in sys.argv[1:]:
    subprocess.run([path, "one", ""], env={"OWN": "1"}, close_fds=False)
"""
    shown, traced = printed(program_host, text, show, raw, DAXFAULT_TRACER=str(tracer))
    arguments, environment = json.loads(shown)
    assert (arguments, environment["LD_PRELOAD"]) == (["one", ""], str(native.preload()))
    assert json.loads(traced) == ["--argv0", str(raw), str(raw), "one", ""]


def test_privileged_program_is_not_traced(
    program_host: ProgramHost, tmp_path: Path, raw: Path, tracer: Path
) -> None:
    """The kernel takes its privileges away when it is: it is better off with plain mappings."""
    paths = []
    for mode in (0o4755, 0o2755):
        paths.append(tmp_path / f"raw{mode:o}")
        paths[-1].write_bytes(raw.read_bytes())
        paths[-1].chmod(mode)
    if os.geteuid() == 0:
        paths.append(tmp_path / "capable")
        paths[-1].write_bytes(raw.read_bytes())
        paths[-1].chmod(0o755)
        # VFS_CAP_REVISION_2 with CAP_CHOWN permitted (linux/capability.h)
        os.setxattr(paths[-1], "security.capability", bytes.fromhex("000000020100000000000000" + "00" * 8))
    (line,) = printed(program_host, STATUS, *paths, DAXFAULT_TRACER=os.fspath(tracer))
    assert line == str([42] * len(paths))


def test_program_that_may_not_be_read_is_executed_all_the_same(program_host: ProgramHost, raw: Path) -> None:
    require_root()
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        tracer = script(Path(directory, "tracer"), TRACER)
        secret = Path(directory, "secret")
        secret.write_bytes(raw.read_bytes())
        secret.chmod(0o711)
        text = "os.setresuid(65534, 65534, 65534)\n" + STATUS
        assert printed(program_host, text, secret, DAXFAULT_TRACER=str(tracer)) == ["[42]"]


@pytest.mark.parametrize("tracer", [None, "/nonexistent/tracer"])
def test_static_program_without_a_tracer_is_executed(
    program_host: ProgramHost, raw: Path, tracer: str | None
) -> None:
    environment = {} if tracer is None else {"DAXFAULT_TRACER": tracer}
    assert printed(program_host, STATUS, raw, **environment) == ["[42]"]


def test_static_program_of_a_traced_process_is_left_to_its_tracer(
    program_host: ProgramHost, raw: Path, tracer: Path
) -> None:
    """There can be but one."""
    text = (
        ARGUMENTS
        + """
pid = os.fork()
if not pid:
    libc.ptrace(0, 0, None, None)  # PTRACE_TRACEME
    libc.execve(path, argv, envp)
    os._exit(99)
while True:
    status = os.waitpid(pid, 0)[1]
    if not os.WIFSTOPPED(status):
        break
    libc.ptrace(7, pid, None, None)  # PTRACE_CONT
print(os.waitstatus_to_exitcode(status))
"""
    )
    assert printed(program_host, text, raw, DAXFAULT_TRACER=os.fspath(tracer)) == ["42"]


@pytest.mark.parametrize("preload", ["/a/b.so:/c/d.so", "/a/b.so {}", "{}:/a/b.so", "", "{}x"])
def test_exec_with_another_preload_keeps_both(
    program_host: ProgramHost, tmp_path: Path, preload: str
) -> None:
    show = script(tmp_path / "show", SHOW)
    own = str(native.preload())
    text = (
        ARGUMENTS
        + """
child(lambda: libc.execve(path, argv, strings(["LD_PRELOAD=" + sys.argv[2], "DAXFAULT_SOCKET=other"])))
"""
    )
    given = preload.format(own)
    done = subprocess.run(
        program(text, show, given),
        env=program_host.environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    _, environment = json.loads(done.stdout)  # ld.so complains on standard error
    has = own in given.replace(" ", ":").split(":")
    assert environment["LD_PRELOAD"] == (given if has else f"{own}:{given}" if given else own)
    assert environment["DAXFAULT_SOCKET"] == "other"  # a host within ours: not ours to judge


def test_exec_with_arguments_too_many_for_the_stack_is_the_same(
    program_host: ProgramHost, tmp_path: Path, raw: Path, tracer: Path
) -> None:
    show = script(tmp_path / "show", SHOW)
    text = (
        ARGUMENTS
        + """
many = [f"argument {i}" for i in range(20000)]
variables = [f"VARIABLE{i}={i}" for i in range(9000)]
for path in sys.argv[1:]:
    child(lambda: libc.execve(os.fsencode(path), strings(["name", *many]), strings(variables)))
"""
    )
    shown, traced = printed(program_host, text, show, raw, DAXFAULT_TRACER=os.fspath(tracer))
    arguments, environment = json.loads(shown)
    assert len(arguments) == 20000
    assert (environment["VARIABLE8999"], environment["LD_PRELOAD"]) == ("8999", str(native.preload()))
    assert json.loads(traced)[3:] == arguments


def test_shell_of_a_program_that_cleared_its_environment_is_followed(
    program_host: ProgramHost, tmp_path: Path
) -> None:
    show = script(tmp_path / "show", SHOW)
    text = (
        ARGUMENTS
        + """
libc.popen.restype = ctypes.c_void_p
libc.pclose.argtypes = [ctypes.c_void_p]
for _ in range(2):
    kept = with_environment(["OWN=1"])
    libc.system(path)
    kept = with_environment(["LD_PRELOAD=", "OWN=1"])
    libc.pclose(libc.popen(path, b"w"))
"""
    )
    lines = printed(program_host, text, show)
    ours = program_host.environment()
    del ours["PATH"]
    assert len(lines) == 4
    for line in lines:
        assert json.loads(line)[1] == ours | {"OWN": "1"}


def test_mapping_of_what_was_executed_is_served(program_host: ProgramHost, tmp_path: Path) -> None:
    """From one program to the next, each with an attachment of its own."""
    file = program_host.file("file")
    reader = script(
        tmp_path / "reader",
        "#!{python} -IS\nimport mmap, sys\nwith open(sys.argv[1]) as f:\n"
        "    print(mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)[5000])\n",
    )
    text = (
        ARGUMENTS
        + """
map(os.open(sys.argv[2], os.O_RDWR))
child(lambda: libc.execve(path, strings(["reader", sys.argv[2]]), strings([])))
libc.execve(path, strings(["reader", sys.argv[2]]), strings([]))
"""
    )
    assert printed(program_host, text, reader, file) == ["2", "2"]
    assert len(program_host.saying("attach")) == 3
