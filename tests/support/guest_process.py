# SPDX-License-Identifier: Apache-2.0
"""A guest's process under a test's control, which breaks any rule; or a process that is no guest.

Owns the child and its commands.  Its accesses are system calls on the mapping: they return EFAULT
or a short count where a load would get SIGBUS, so that the child can report it.  Only `load` is a
load, and a SIGBUS ends the child.

The child reads one JSON list a line, [command, arguments...], and answers each with
one JSON value, {"errno": n} when the command raised OSError.
"""

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any

import trio

PAGE = 4096


class Died(Exception):
    """The child ended before it answered; `code` is negative for a signal."""

    def __init__(self, code: int) -> None:
        super().__init__(f"the child ended: {code}")
        self.code = code


class GuestProcess:
    """A running child.  Make one with `guest_process()`."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self._lines = b""

    async def do(self, command: str, *arguments: Any) -> Any:
        """Run one command.  Raises OSError as the child did, Died when it has."""
        await self.begin(command, *arguments)
        return await self.answer()

    async def begin(self, command: str, *arguments: Any) -> None:
        assert self.process.stdin is not None
        await self.process.stdin.send_all(json.dumps([command, *arguments]).encode() + b"\n")

    async def answer(self) -> Any:
        assert self.process.stdout is not None
        while b"\n" not in self._lines:
            some = await self.process.stdout.receive_some()
            if not some:
                raise Died(await self.process.wait())
            self._lines += some
        line, self._lines = self._lines.split(b"\n", 1)
        answer = json.loads(line)
        if isinstance(answer, dict):
            raise OSError(answer["errno"], os.strerror(answer["errno"]))
        return answer

    async def died(self) -> int:
        """Wait for its end; -> the exit code, negative for a signal."""
        return await self.process.wait()


@contextlib.asynccontextmanager
async def guest_process(sock: socket.socket | None = None) -> AsyncIterator[GuestProcess]:
    """A child, with `sock` (taken over) as its connection to a host; killed at the end."""
    number = -1 if sock is None else sock.fileno()
    try:
        process = await trio.lowlevel.open_process(
            [sys.executable, __file__, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[number] if number >= 0 else [],
            cwd="/",
        )
    finally:
        if sock is not None:
            sock.close()
    try:
        yield GuestProcess(process)
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await process.wait()
            for stream in (process.stdin, process.stdout):
                assert stream is not None
                await stream.aclose()


# ---- the child


def _child(number: int) -> None:
    import cffi
    import messages
    import raw_guest

    from daxfault import native
    from daxfault.native.uffd import Mode, Uffd

    ffi = cffi.FFI()
    ffi.cdef(
        """
        void *mmap(void *addr, size_t length, int prot, int flags, int fd, int64_t offset);
        int munmap(void *addr, size_t length);
        int madvise(void *addr, size_t length, int advice);
        int fallocate(int fd, int mode, int64_t offset, int64_t len);
        """
    )
    libc = ffi.dlopen(None)
    window_len = messages.WINDOW_LEN
    fixed, private, shared, anonymous, reserve = 0x10, 2, 1, 0x20, 0x4000

    def checked(failed: bool) -> None:
        if failed:
            raise OSError(ffi.errno, os.strerror(ffi.errno))

    def mmap(address: int, length: int, prot: int, flags: int, fd: int = -1, offset: int = 0) -> int:
        got = libc.mmap(ffi.cast("void *", address), length, prot, flags, fd, offset)
        checked(int(ffi.cast("intptr_t", got)) == -1)
        return int(ffi.cast("uintptr_t", got))

    class Child:
        def __init__(self) -> None:
            raw = mmap(0, window_len + messages.RANGE, 0, private | anonymous | reserve)
            self.window = (raw + messages.RANGE - 1) // messages.RANGE * messages.RANGE
            self.sock = socket.socket(fileno=number) if number >= 0 else None
            self.caches: list[int] = []
            self.seq = 0

        def address(self) -> int:
            return self.window

        # -- the wire

        def hello(self, track: bool = False, forks: bool = False) -> int:
            """-> the features that were granted."""
            features = raw_guest.FEATURES
            if forks:
                features |= 1 << 1  # EVENT_FORK
            if track:
                features |= 1 << 0 | 1 << 12 | 1 << 13  # FLAG_WP, WP_HUGETLBFS_SHMEM, WP_UNPOPULATED
            self.track = track
            self.uffd = Uffd(features)
            self.area = raw_guest.area()
            self.slots = mmap(0, raw_guest.AREA, 3, shared, self.area)
            request = messages.hello(window=self.window, window_len=window_len)
            data = self._ask(request, [self.uffd.fileno(), self.area]).data
            return int(messages.HELLO.unpack(data)[-1])

        def open(self, path: str, flags: int) -> int:
            fd = os.open(path, flags | os.O_CLOEXEC)
            try:
                reply = self._ask(messages.opening(), [fd])
            finally:
                os.close(fd)  # what is mapped stays
            return reply.word()

        def setup(self, fh: int, foffset: int, length: int, moffset: int, flags: int, how: str) -> int:
            """Ask for a mapping, then map the file ("file"), the file but not registered
            ("unregistered"), other memory ("private", "shared"), or nothing at all ("nothing");
            -> which of the cache descriptors this is."""
            fds = self._ask(messages.setup(fh, foffset, length, moffset, flags)).fds
            self.caches += fds
            write = bool(flags & messages.WRITE)
            at, prot = self.window + moffset, 3 if write else 1
            kind = shared if write else private
            if how in ("file", "unregistered"):
                mmap(at, length, prot, fixed | kind | reserve, fds[0], foffset)
            elif how in ("private", "shared"):
                mmap(at, length, 3, fixed | anonymous | reserve | (shared if how == "shared" else private))
            if how in ("file", "shared"):
                self.register(moffset, length, write and self.track, True)
            elif how == "private":
                self.register(moffset, length, False, False)
            return len(self.caches) - 1

        def register(self, moffset: int, length: int, protect: bool, minor: bool) -> None:
            modes = Mode.MISSING | (Mode.WP if protect else 0) | (Mode.MINOR if minor else 0)
            self.uffd.register(self.window + moffset, length, modes)

        def anonymous(self, moffset: int, length: int) -> None:
            """Register memory that the host did not map."""
            mmap(self.window + moffset, length, 3, fixed | anonymous | private | reserve)
            self.register(moffset, length, False, False)

        def fork(self, fh: int = 0) -> int:
            """The parent gives back its mapping at 0 and `fh`, if there is one, and ends; its child goes on
            in its place; -> its process id."""
            if os.fork():
                if fh:
                    self._ask(messages.remove((0, messages.RANGE)))
                    self._ask(messages.release(fh))
                os._exit(0)
            return os.getpid()

        def hang_up(self) -> None:
            assert self.sock is not None
            self.sock.close()

        def _ask(self, request: bytes, fds: Sequence[int] = ()) -> messages.Reply:
            assert self.sock is not None
            self.sock.sendmsg([request], messages.rights(fds))
            reply = messages.received(*self.sock.recvmsg(messages.MOST, socket.CMSG_SPACE(64))[:2])
            if reply.error == messages.GONE:
                raise ConnectionResetError(104, "the host hung up")
            if reply.error:
                raise OSError(reply.error, os.strerror(reply.error))
            return reply

        # -- memory

        def plain(self, path: str, length: int) -> None:
            """Map a file of a native file system at the start of the window."""
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            mmap(self.window, length, 3, fixed | shared, fd)
            os.close(fd)

        def unmap(self) -> None:
            checked(libc.munmap(ffi.cast("void *", self.window), window_len) != 0)

        def peek(self, offset: int, length: int) -> str:
            """write(2) from the window; -> what came out, in hex: less than asked for before a fault."""
            fd = os.memfd_create("peek")
            try:
                n = os.write(fd, self._memory(offset, length))
                return os.pread(fd, n, 0).hex()
            finally:
                os.close(fd)

        def poke(self, offset: int, data: str) -> int:
            """read(2) into the window; -> bytes done."""
            wanted = bytes.fromhex(data)
            fd = os.memfd_create("poke")
            try:
                os.pwrite(fd, wanted, 0)
                return os.readv(fd, [self._memory(offset, len(wanted))])
            finally:
                os.close(fd)

        def load(self, offset: int) -> int:
            return int(ffi.cast("unsigned char *", self.window + offset)[0])

        def dontneed(self, offset: int, length: int) -> None:
            checked(libc.madvise(ffi.cast("void *", self.window + offset), length, 4) != 0)

        def punch(self, cache: int, offset: int, length: int) -> None:
            checked(libc.fallocate(self.caches[cache], 3, offset, length) != 0)

        def cache_write(self, cache: int, offset: int, data: str) -> int:
            return os.pwrite(self.caches[cache], bytes.fromhex(data), offset)

        def cache_truncate(self, cache: int, length: int) -> None:
            os.ftruncate(self.caches[cache], length)

        def _memory(self, offset: int, length: int) -> Any:
            return ffi.buffer(ffi.cast("char *", self.window + offset), length)

        # -- the event area and its signal

        def slot(self) -> None:
            """Ask for errors, in slot 0, for this thread."""
            slot = native.ffi.cast("struct df_slot *", int(ffi.cast("uintptr_t", self.slots)))
            slot.tid = threading.get_native_id()
            slot.state = native.CpuState.IF
            slot.msr_en = native.lib.DF_MSR_SEND_ERROR

        def signal(self, what: str) -> None:
            """Set the action of the event signal."""
            number = native.lib.DF_APF_EXCEPTION
            if what == "block":
                signal.pthread_sigmask(signal.SIG_BLOCK, [number])
            elif what == "ignore":
                signal.signal(number, signal.SIG_IGN)
            else:
                signal.signal(number, lambda *_: None)

        def scribble(self, seed: int, keep: bool) -> None:
            """Write nonsense into the event area, for ever; `keep` leaves thread numbers and what is
            enabled as they are, so that the host goes on using it."""
            import random

            noise = random.Random(seed)
            view = ffi.buffer(ffi.cast("char *", self.slots), raw_guest.AREA)
            size = native.ffi.sizeof("struct df_slot")
            kept = native.ffi.offsetof("struct df_slot", "tid")

            def scribbling() -> None:
                while True:
                    for at in range(0, raw_guest.AREA, size):
                        view[at : at + kept] = noise.randbytes(kept)
                        if not keep:
                            view[at + kept : at + size] = noise.randbytes(size - kept)

            threading.Thread(target=scribbling, daemon=True).start()

        def area_truncate(self, length: int) -> None:
            os.ftruncate(self.area, length)

        def area_punch(self) -> None:
            checked(libc.fallocate(self.area, 3, 0, raw_guest.AREA) != 0)

        def blocking(self) -> None:
            """Make the shared userfaultfd block: a host that reads it would too."""
            flags = fcntl.fcntl(self.uffd.fileno(), fcntl.F_GETFL)
            fcntl.fcntl(self.uffd.fileno(), fcntl.F_SETFL, flags & ~os.O_NONBLOCK)

        def unregister(self, moffset: int, length: int) -> None:
            self.uffd.unregister(self.window + moffset, length)

        def close_uffd(self) -> None:
            self.uffd.close()

    child = Child()
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        try:
            answer = getattr(child, command)(*arguments)
        except OSError as e:
            answer = {"errno": e.errno}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _child(int(sys.argv[1]))
