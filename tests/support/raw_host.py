# SPDX-License-Identifier: Apache-2.0
"""A host played by the test to the last event: it has the guest's userfaultfd, area and doorbell.

Owns reading faults, installing pages, writing slots and sending the two signals, each when the test
says so and never by itself: so every order of events can be forced.
"""

import collections
import ctypes
import json
import mmap
import os
import queue
import random
import select
import socket
import subprocess
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self

import pytest
from messages import HELLO, MOST, RANGE, answer
from needs import require
from patience import PATIENCE, until

from daxfault import native
from daxfault.native import ffi, lib

PAGE = native.PAGE_SIZE
ALL = lib.DF_TOKEN_ALL
SYS_TGKILL = 234
PATTERN = random.Random(42).randbytes(RANGE)  # what the one file of the guest holds
IF, KERNEL, SYSCALL = lib.DF_CPU_IF, lib.DF_CPU_KERNEL, lib.DF_CPU_SYSCALL
ABIS = ["mainline", "rfc-v1", "june-2020", "gone", "retry", "report"]
IN_KERNEL = ["rfc-v1", "gone", "report"]  # who sets SEND_ALWAYS
EFAULT = 14
WORK = "work 60000"  # for ever, as far as a test is concerned: it is killed
_libc = ctypes.CDLL(None, use_errno=True)


class _Given(native.Uffd):
    """A userfaultfd that somebody else opened."""

    def __init__(self, fd: int) -> None:
        self._fd = fd


class Peer:
    """The stand-in with a host played by the test, which holds `socket`."""

    def __init__(self, standin: Path, *arguments: str) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(PATIENCE)
        self.process = subprocess.Popen(
            [standin, "--fd", str(theirs.fileno()), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        self.fds: list[int] = []
        self.doorbell: socket.socket | None = None

    def hello(self) -> tuple[int, ...]:
        message, self.fds, flags, _ = socket.recv_fds(self.socket, MOST, 8)
        if not message:
            _, stderr = self.process.communicate(timeout=PATIENCE)
            if b"no window served by userfaultfd" in stderr:
                require(False, "userfaultfd with kernel-mode faults")
            pytest.fail(stderr.decode())
        assert not flags & socket.MSG_CTRUNC
        assert len(message) == HELLO.size
        return HELLO.unpack(message)

    def welcome(self) -> tuple[int, ...]:
        hello = self.hello()
        self.say(welcome(hello))
        return hello

    def say(self, reply: bytes) -> None:
        """Answer the hello, with a doorbell."""
        theirs, self.doorbell = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with theirs:
            socket.send_fds(self.socket, [reply], [theirs.fileno()])

    def run(self, script: bytes) -> tuple[int, list[dict], str]:
        """Feeds a script to its end: exit code, events, standard error."""
        stdout, stderr = self.process.communicate(script, timeout=PATIENCE)
        events = [json.loads(line) for line in stdout.splitlines()]
        return self.process.returncode, events, stderr.decode()

    def close(self) -> None:
        self.socket.close()
        if self.doorbell is not None:
            self.doorbell.close()
        for fd in self.fds:
            os.close(fd)
        self.process.kill()
        self.process.wait(PATIENCE)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if not stream.closed:
                stream.close()


def welcome(hello: tuple[int, ...], **changed: int) -> bytes:
    """A good reply to HELLO but for what is changed."""
    names = ("type", "len", "seq", "error", "pad", "version", "pid", "window", "window_len", "abi", "cpuid")
    fields = dict(zip(names, hello, strict=True)) | {"type": lib.DF_HELLO + lib.DF_REPLY} | changed
    return HELLO.pack(*fields.values())


class RawHost(Peer):
    """A guest with RANGE bytes mapped for writing at the start of its window, none of them present."""

    def __init__(self, standin: Path, *arguments: str, abi: str = "report") -> None:
        self.abi = abi
        super().__init__(standin, "--abi", abi, *arguments)
        self.events: collections.deque[dict[str, Any]] = collections.deque()
        self._lines: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._faults: collections.deque[native.Event] = collections.deque()

    def __enter__(self) -> Self:
        try:
            hello = self.welcome()
            self.window = hello[7]
            self.cpuid = hello[10]
            self.uffd = _Given(self.fds.pop(0))
            self._memory = mmap.mmap(self.fds[0], lib.DF_AREA_SIZE)
            self._area = ffi.from_buffer("struct df_slot[]", self._memory, require_writable=True)
            self._reader = threading.Thread(target=self._read, daemon=True)
            self._reader.start()
            assert self.doorbell is not None
            self.doorbell.settimeout(PATIENCE)
            self.event("ready")
            self._map_file()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self.uffd.close()
        self._reader.join(PATIENCE)
        del self._area
        self._memory.close()

    def close(self) -> None:
        # whose thread reads stdout must see its end before the stream may be closed
        self.process.kill()
        if hasattr(self, "_reader"):
            self._reader.join(PATIENCE)
        super().close()

    # ---- the console

    def say_line(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def event(self, kind: str) -> dict[str, Any]:
        """The next event of this kind; others are kept for later calls."""
        for found in self.events:
            if found["event"] == kind:
                self.events.remove(found)
                return found
        while (got := self._lines.get(timeout=PATIENCE)) is not None:
            if got["event"] == kind:
                return got
            self.events.append(got)
        raise EOFError(f"no {kind!r}: the stand-in ended, {self.process.wait(PATIENCE)}")

    def done(self, count: int = 1) -> dict[int, dict[str, Any]]:
        """`count` accesses that end: task -> what it got, of one vCPU."""
        return {got["task"]: got for got in (self.event("done") for _ in range(count))}

    def stat(self, vcpu: int = 0) -> dict[str, Any]:
        self.say_line("stat")
        return next(v for v in self.event("stat")["vcpus"] if v["vcpu"] == vcpu)

    def states(self, vcpu: int = 0) -> dict[int, str]:
        return {t["task"]: t["state"] for t in self.stat(vcpu)["tasks"]}

    # ---- faults and pages

    def fault(self) -> native.Event:
        """The next fault the guest takes."""
        if not self._faults:
            poll = select.poll()
            poll.register(self.uffd.fileno(), select.POLLIN)
            assert poll.poll(PATIENCE * 1000), "no fault came"
            self._faults.extend(self.uffd.events())
        return self._faults.popleft()

    def faulting(self, page: int, vcpu: int = 0) -> native.Event:
        """The next fault, which must be this vCPU's on this page of the window."""
        got = self.fault()
        assert (got.address & -PAGE, got.tid) == (self.window + page * PAGE, self.slot(vcpu).tid)
        return got

    def install(self, page: int) -> None:
        try:
            self.uffd.copy(self.window + page * PAGE, content(page))
        except FileExistsError:
            self.uffd.wake(self.window + page * PAGE, PAGE)

    # ---- the shared area

    def slot(self, vcpu: int = 0) -> Any:
        return self._area[vcpu]

    def signal(self, number: int, vcpu: int = 0) -> None:
        if _libc.syscall(SYS_TGKILL, self.process.pid, self.slot(vcpu).tid, number):
            raise OSError(ctypes.get_errno(), "tgkill")

    def not_present(self, token: int, vcpu: int = 0) -> None:
        slot = self.slot(vcpu)
        slot.cr2 = token
        if self.abi == "rfc-v1":
            slot.apf.rfc_v1.reason = lib.DF_APF_REASON_NOT_PRESENT
        else:
            slot.apf.mainline.flags = lib.DF_APF_NOT_PRESENT
        self.signal(lib.DF_APF_EXCEPTION, vcpu)

    def park(self, text: str, page: int, token: int, task: int = 0, vcpu: int = 0) -> None:
        """Begin an access of a task, and have it sleep at this page."""
        self.say_line(f"vcpu {vcpu}.{task} {text}")
        self.faulting(page, vcpu)
        self.not_present(token, vcpu)
        until(lambda: self.states(vcpu)[task] == "parked", f"task {task} parked")

    def ready(self, token: int, vcpu: int = 0, *, error: int = 0, **fields: int) -> None:
        """ "Ready", or with `error` the ABI's error, for a token; -> when the guest has taken it."""
        slot = self.slot(vcpu)
        if self.abi == "rfc-v1":
            reason = lib.DF_APF_REASON_ERROR if error else lib.DF_APF_REASON_READY
            slot.apf.rfc_v1.faulting_gva = fields.get("gva", 0)
            slot.cr2 = token
            slot.apf.rfc_v1.reason = reason
            self.signal(lib.DF_APF_EXCEPTION, vcpu)
            self.rung(lambda: slot.apf.rfc_v1.reason == 0)
            return
        if self.abi in ("june-2020", "gone", "report"):
            slot.apf.june_2020.ready_flags = 1 if error else 0
        if self.abi == "report":
            slot.apf.report.ready_error = error
            slot.apf.report.ready_gva = fields.get("gva", 0)
            slot.apf.report.ready_reason = fields.get("reason", 0)
            slot.apf.report.ready_attempts = fields.get("attempts", 0)
        self.raise_interrupt(token, vcpu)
        self.rung(lambda: slot.apf.mainline.token == 0)

    def raise_interrupt(self, token: int, vcpu: int = 0) -> bool:
        """Write the token and raise the interrupt; -> whether it was sent and not left pending."""
        slot = self.slot(vcpu)
        assert slot.apf.mainline.token == 0
        slot.apf.mainline.token = token
        slot.irr = 1
        if slot.state & (IF | SYSCALL) != IF:
            return False
        self.signal(lib.DF_APF_INTERRUPT, vcpu)
        return True

    def rung(self, condition: Callable[[], Any]) -> None:
        """Wait for the doorbell until the condition is true."""
        assert self.doorbell is not None
        while not condition():
            self.doorbell.recv(1)

    # ---- starting

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(json.loads(line))
        self._lines.put(None)

    def _map_file(self) -> None:
        self.say_line("open f /dev/null rw")
        message, fds, _, _ = socket.recv_fds(self.socket, MOST, 8)
        os.close(fds[0])
        self.socket.send(answer(message))
        self.event("open")
        self.say_line(f"map f 0 {RANGE} 0 w")
        message = self.socket.recv(MOST)
        cache = os.memfd_create("cache", os.MFD_CLOEXEC)
        try:
            os.ftruncate(cache, RANGE)
            socket.send_fds(self.socket, [answer(message)], [cache])
        finally:
            os.close(cache)
        self.event("map")


def content(page: int) -> bytes:
    return PATTERN[page * PAGE :][:PAGE]


def tokens(count: int, vcpu: int = 0) -> Iterable[int]:
    """As alloc_apf_token() (arch/x86/kvm/mmu/mmu.c) gives them."""
    return ((i << 12 | vcpu) for i in range(1, count + 1))


Start = Callable[..., RawHost]
