# SPDX-License-Identifier: Apache-2.0
"""A host of programs played by a test: real page caches and a real userfaultfd, and any reply forced.

Owns the files of one directory, which stands for the mount: any file on its file system is
served from a memfd, page by page as it is touched.  Each reply is the right one unless the
test has said what the next of its kind is to be.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import errno
import functools
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from needs import require
from patience import PATIENCE
from process_maps import areas, lives

from daxfault import native
from daxfault.native import ffi, lib
from daxfault.vmm.host.uffd_features import bits

PAGE = native.PAGE_SIZE
ALL = 1 << 47
_FEATURES = bits("EVENT_REMOVE", "EVENT_REMAP", "MISSING_SHMEM", "THREAD_ID", "EXACT_ADDRESS")
_FORK = bits("EVENT_FORK")
_NAMES = {
    lib.DF_ATTACH: "attach",
    lib.DF_SERVE: "serve",
    lib.DF_MMAP: "mmap",
    lib.DF_MAPPED: "mapped",
    lib.DF_MSYNC: "msync",
    lib.DF_SIGBUS: "sigbus",
}
_HEADER = ffi.sizeof("struct df_header")

Reply = tuple[bytes, list[int]]
# The right reply and its descriptors -> what is sent instead; None: nothing, and the connection ends.
Answer = Callable[[bytes, list[int]], Reply | None]


def hang_up(_reply: bytes, _fds: list[int]) -> None:
    return None


def refuse(error: int) -> Answer:
    def answer(reply: bytes, _fds: list[int]) -> Reply:
        return _changed(reply[:_HEADER], error=error, len=_HEADER), []

    return answer


def garble(**fields: int) -> Answer:
    """The right reply but for these fields of its header."""
    return lambda reply, fds: (_changed(reply, **fields), fds)


def cut(length: int) -> Answer:
    """Its first bytes, with a header that says so."""
    return lambda reply, fds: (_changed(reply, len=length)[:length], fds)


def carry(*fds: int) -> Answer:
    """The right bytes with other descriptors, which stay the caller's."""
    return lambda reply, _fds: (reply, list(fds))


class Gate:
    """A reply that is held back until the test opens it."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def __call__(self, reply: bytes, fds: list[int]) -> Reply:
        self.reached.set()
        assert self.opened.wait(PATIENCE)
        return reply, fds


def _changed(reply: bytes, **fields: int) -> bytes:
    data = ffi.new("char[]", reply)
    header = ffi.cast("struct df_header *", data)
    for name, value in fields.items():
        setattr(header, name, value)
    return bytes(ffi.buffer(data, len(reply)))


@dataclasses.dataclass(frozen=True)
class Said:
    """A message as it came; `connection` counts them."""

    connection: int
    pid: int
    what: str
    values: dict[str, Any]


class _Given(native.Uffd):
    """A userfaultfd that a program has opened."""

    def __init__(self, fd: int) -> None:
        self._fd = fd


@dataclasses.dataclass
class _Peer:
    """A program's connection."""

    pid: int = 0
    uffd: native.Uffd | None = None


class ProgramHost:
    """Serves programs whose environment is environment(), until close()."""

    def __init__(self, directory: Path, *, children: bool = True, device: bool = True) -> None:
        require(os.access("/dev/userfaultfd", os.R_OK | os.W_OK), "/dev/userfaultfd")
        self.directory = directory
        self.path = directory / "host.socket"
        self.said: list[Said] = []
        self.faults: list[int] = []
        self.ended: set[int] = set()  # connections that the program's side has closed
        self.children = children
        self._device = device
        self._answers: dict[str, collections.deque[Answer]] = collections.defaultdict(collections.deque)
        self._told = threading.Condition()
        self._caches: dict[tuple[int, int], tuple[int, int]] = {}  # file -> its cache, an open file of it
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(os.fspath(self.path))
        self._listener.listen()
        self._stop = os.eventfd(0)
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def environment(self, **more: str) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "LD_PRELOAD": os.fspath(native.preload()),
            "DAXFAULT_SOCKET": os.fspath(self.path),
            "DAXFAULT_DEVICE": str(self.directory.stat().st_dev),
        } | more

    def file(self, name: str, pages: int = 4) -> Path:
        """A file in which each page is full of its number, counted from 1."""
        path = self.directory / name
        path.write_bytes(b"".join(bytes([i + 1]) * PAGE for i in range(pages)))
        return path

    def cache(self, path: Path) -> int:
        """The descriptor of a file's page cache; KeyError when nobody has mapped it."""
        status = path.stat()
        return self._caches[status.st_dev, status.st_ino][0]

    def next(self, what: str, answer: Answer) -> None:
        """Answer the next message of this kind with `answer`, the one after it with the next one given."""
        with self._told:
            self._answers[what].append(answer)

    def wait(self, condition: Callable[[], object]) -> None:
        """Until something that was said, or an end, makes it true."""
        with self._told:
            assert self._told.wait_for(condition, PATIENCE), self.said

    def saying(self, what: str) -> list[dict[str, Any]]:
        with self._told:
            return [said.values for said in self.said if said.what == what]

    def close(self) -> None:
        os.eventfd_write(self._stop, 1)
        while self._threads:
            self._threads.pop().join(PATIENCE)
        self._listener.close()
        os.close(self._stop)
        for cache, file in self._caches.values():
            os.close(cache)
            os.close(file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, function: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=function, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _readable(self, fd: int) -> bool:
        """Wait; false when it is time to stop."""
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.register(self._stop, select.POLLIN)
        return self._stop not in (ready for ready, _ in poll.poll())

    # ---- messages

    def _accept(self) -> None:
        for number in range(sys.maxsize):
            if not self._readable(self._listener.fileno()):
                return
            self._start(self._converse, number, self._listener.accept()[0])

    def _converse(self, number: int, sock: socket.socket) -> None:
        peer = _Peer()
        # a program may be killed amid a request
        with sock, contextlib.suppress(ConnectionError, ProcessLookupError, FileNotFoundError):
            while self._readable(sock.fileno()):
                message, fds, flags, _ = socket.recv_fds(sock, 4096, 4)
                assert not flags & socket.MSG_CTRUNC
                if not message:
                    break
                header = ffi.cast("struct df_header *", ffi.from_buffer(message))
                what = _NAMES[header.type]
                m = ffi.cast(f"struct df_{what} *", ffi.from_buffer(message))
                assert header.len == len(message) == ffi.sizeof(f"struct df_{what}")
                assert len(fds) == (what == "serve")
                values = _values(m, what)
                try:
                    reply, sent = getattr(self, "_" + what)(m, fds, peer)
                except OSError:
                    if lives(peer.pid):
                        raise
                    break  # it was killed meanwhile
                with self._told:
                    self.said.append(Said(number, peer.pid, what, values))
                    self._told.notify_all()
                    answer = self._answers[what].popleft() if self._answers[what] else None
                data = bytes(ffi.buffer(reply))
                given = answer(data, sent) if answer else (data, sent)
                for fd in fds:
                    os.close(fd)
                if given is None:
                    break
                socket.send_fds(sock, [given[0]], given[1])
        with self._told:
            self.ended.add(number)
            self._told.notify_all()

    def _attach(self, m: Any, _fds: list[int], peer: _Peer) -> tuple[Any, list[int]]:
        peer.pid = m.pid
        reply = _reply("struct df_attach", m, version=lib.DF_WIRE_VERSION, pid=os.getpid())
        return reply, [self._uffd_device] if self._device else []

    @functools.cached_property
    def _uffd_device(self) -> int:
        return os.open("/dev/userfaultfd", os.O_RDWR | os.O_CLOEXEC)

    def _serve(self, m: Any, fds: list[int], peer: _Peer) -> tuple[Any, list[int]]:
        peer.uffd = _Given(fds.pop())
        error = lib.df_uffd_api(peer.uffd.fileno(), _FEATURES | (_FORK if self.children else 0))
        assert not error, os.strerror(-error)
        self._start(self._resolve, peer.uffd)
        return _reply("struct df_serve", m, flags=lib.DF_SERVE_CHILDREN if self.children else 0), []

    def _mmap(self, m: Any, _fds: list[int], _peer: _Peer) -> tuple[Any, list[int]]:
        table = f"/proc/{m.tid}"  # a tracer speaks for another process
        file = f"{table}/fd/{m.fd}"
        status = os.stat(file)
        key = status.st_dev, status.st_ino
        if key not in self._caches:
            cache = os.memfd_create(f"daxfault:{len(self._caches) + 1}")
            os.ftruncate(cache, -(-status.st_size // PAGE) * PAGE)
            self._caches[key] = cache, os.open(file, os.O_RDONLY)
        writable = _access(f"{table}/fdinfo/{m.fd}") == os.O_RDWR and m.flags & 0xF != 2
        reply = _reply("struct df_mmap", m, offset=m.offset, len=m.len, private=not writable)
        return reply, [self._caches[key][0]]

    def _mapped(self, m: Any, _fds: list[int], peer: _Peer) -> tuple[Any, list[int]]:
        assert peer.uffd is not None
        for area in areas(peer.pid):
            start, end = max(area.start, m.start), min(area.end, m.start + m.len)
            if area.is_cache and start < end:
                peer.uffd.register(start, end - start, native.Mode.MISSING)
        return _reply("struct df_header", m), []

    def _msync(self, m: Any, _fds: list[int], _peer: _Peer) -> tuple[Any, list[int]]:
        return _reply("struct df_header", m), []

    _sigbus = _msync

    # ---- faults

    def _resolve(self, uffd: native.Uffd) -> None:
        with uffd:
            while self._readable(uffd.fileno()):
                for event in uffd.events():
                    if event.kind == native.EventKind.FORK:
                        self._start(self._resolve, _Given(event.fd))
                    elif event.kind == native.EventKind.PAGEFAULT:
                        self._install(uffd, event)

    def _install(self, uffd: native.Uffd, event: native.Event) -> None:
        page = event.address & -PAGE
        self.faults.append(event.address)
        try:
            uffd.copy(page, self._content(event.tid, page))
        except (FileExistsError, BlockingIOError):  # it is there; or there are events to be read first
            uffd.wake(page, PAGE)
        except (ProcessLookupError, FileNotFoundError):
            pass  # it is gone, or has unmapped it

    def _content(self, tid: int, page: int) -> bytes:
        for area in areas(tid):
            if area.start <= page < area.end:
                file = next(f for c, f in self._caches.values() if os.fstat(c).st_ino == area.inode)
                return os.pread(file, PAGE, area.offset + page - area.start).ljust(PAGE, b"\0")
        raise ProcessLookupError(errno.ESRCH, "unmapped meanwhile")


def _access(fdinfo: str) -> int:
    fields = dict(line.split(":", 1) for line in Path(fdinfo).read_text().splitlines())
    return int(fields["flags"], 8) & os.O_ACCMODE


def _values(m: Any, what: str) -> dict[str, Any]:
    fields = [name for name, _ in ffi.typeof(f"struct df_{what}").fields if name not in ("h", "pad")]
    values = {name: getattr(m, name) for name in fields}
    if "frames" in values:
        values["frames"] = list(values["frames"][0 : m.nframes])
    return values


def _reply(kind: str, request: Any, **fields: int) -> Any:
    reply = ffi.new(kind + " *", fields)
    header = ffi.cast("struct df_header *", reply)
    header.type = request.h.type + lib.DF_REPLY
    header.seq = request.h.seq
    header.len = ffi.sizeof(kind)
    return reply


# What every program run below begins with.
PRELUDE = """
import ctypes, errno, os, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.mremap.restype = libc.mmap64.restype = ctypes.c_void_p
libc.mmap.argtypes = libc.mmap64.argtypes = (
    [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_int64])
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.msync.argtypes = libc.mprotect.argtypes
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
NONE, READ, WRITE, EXEC = 0, 1, 2, 4
SHARED, PRIVATE, VALIDATE, FIXED, ANONYMOUS = 1, 2, 3, 0x10, 0x20
PAGE = 4096
def checked(result):
    if result in (-1, 2**64 - 1):
        raise OSError(ctypes.get_errno(), "")
    return result
def map(fd, length=4 * PAGE, prot=READ | WRITE, flags=SHARED, offset=0, addr=None):
    return checked(libc.mmap(addr, length, prot, flags, fd, offset))
def failing(function, *arguments, **named):
    try:
        function(*arguments, **named)
    except OSError as e:
        return errno.errorcode.get(e.errno, e.errno)
    return None
def byte(address):
    return ctypes.c_ubyte.from_address(address).value
def store(address, value):
    ctypes.c_ubyte.from_address(address).value = value
def caches():
    return sum("/memfd:daxfault:" in line for line in open("/proc/self/maps"))
def descriptors():
    return {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
            if os.path.lexists(f"/proc/self/fd/{fd}")}
"""


def program(script: str, *arguments: object) -> list[str]:
    """The command of a Python program; sys.argv[1:] are the arguments."""
    return [sys.executable, "-I", "-S", "-c", PRELUDE + script, *map(str, arguments)]


def run(
    host: ProgramHost, script: str, *arguments: object, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; what it prints is what the test looks at."""
    return subprocess.run(
        program(script, *arguments),
        env=host.environment(**environment),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def printed(host: ProgramHost, script: str, *arguments: object, **environment: str) -> list[str]:
    """The lines that a program prints, which ends well and says nothing on standard error."""
    done = run(host, script, *arguments, **environment)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout.splitlines()
