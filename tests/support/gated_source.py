# SPDX-License-Identifier: Apache-2.0
"""A page source under a test's control: a directory served by a child process.

Owns a flat passthrough file system, to be used as the *backing* directory of the
mount under test, whose reads can be held at a gate, let through one by one, or
answered with an errno.  Nothing of it is cached (direct_io, no attribute timeout),
so every fill of the engine is one READ that the test can count and hold, and a
truncation is never stuck behind one that is held.  A read has its bytes before it
waits at the gate: it returns what the file held when the read began.

The child has a trio loop of its own and never waits for the test's process.  It
unmounts when its socket is closed; what is held then fails with ENOTCONN.
The socket carries one JSON list a line: [name, arguments...] -> answer.
"""

import contextlib
import errno
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import trio


class Gated:
    """`source`, a plain directory, served at `path`.  Files are made in `source`."""

    def __init__(self, source: Path, path: Path, process: trio.Process, stream: trio.SocketStream) -> None:
        self.source = source
        self.path = path
        self._process = process
        self._stream = stream
        self._lock = trio.Lock()
        self._rest = b""

    async def hold(self, name: str) -> None:
        """From now on reads of `name` wait at the gate."""
        await self._ask("hold", name)

    async def arrived(self, name: str, count: int = 1) -> list[list[int]]:
        """Wait until `count` reads are at the gate; -> their [offset, size]."""
        found: list[list[int]] = await self._ask("arrived", name, count)
        return found

    async def release(self, name: str) -> None:
        """Open the gate of `name`, for good."""
        await self._ask("release", name)

    async def release_one(self, name: str) -> None:
        """Let the read through that has waited longest; the gate stays shut."""
        await self._ask("release_one", name)

    async def fail(self, name: str, code: int, start: int = 0, end: int = 1 << 62) -> None:
        """Answer reads of `name` that touch [start, end) with an errno; with 0, no longer."""
        await self._ask("fail", name, code, start, end)

    async def lose(self, name: str, losing: bool) -> None:
        """Accept what is written to `name`, lose it, and fail fsync(2); or no longer."""
        await self._ask("lose", name, losing)

    async def vanish(self, name: str, code: int) -> None:
        """Answer everything asked of `name` with an errno; with 0, no longer."""
        await self._ask("vanish", name, code)

    async def reads(self, name: str) -> list[list[int]]:
        """[offset, size] of every read of `name` so far, held ones among them."""
        found: list[list[int]] = await self._ask("reads", name)
        return found

    def stop(self) -> None:
        """Stop the child: from now on no call is answered, stat(2) and close(2) among them."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let the child answer again."""
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End the child with SIGKILL: from now on everything is ENOTCONN."""
        self._process.send_signal(signal.SIGKILL)

    async def ended(self) -> None:
        await self._process.wait()

    async def _ask(self, *request: Any) -> Any:
        async with self._lock:
            await self._stream.send_all(json.dumps(request).encode() + b"\n")
            return await self.answer()

    async def answer(self) -> Any:
        while b"\n" not in self._rest:
            some = await self._stream.receive_some()
            assert some, "the gated file system's process ended"
            self._rest += some
        line, self._rest = self._rest.split(b"\n", 1)
        return json.loads(line)


@contextlib.asynccontextmanager
async def gated(top: Path) -> AsyncIterator[Gated]:
    """Serve `top`/source at `top`/gated while the body runs."""
    source, path = top / "source", top / "gated"
    source.mkdir()
    path.mkdir()
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, __file__, str(theirs.fileno()), str(source), str(path)]
        process = await trio.lowlevel.open_process(command, pass_fds=[theirs.fileno()], cwd="/")
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
    files = Gated(source, path, process, stream)
    try:
        await files.answer()
        yield files
    finally:
        with trio.CancelScope(shield=True):
            await stream.aclose()
            with trio.move_on_after(10):
                await process.wait()
            if process.returncode != 0:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await trio.run_process(["fusermount3", "-u", "-z", "-q", str(path)], check=False)
                await process.wait()


# ---- the child


class Gate:
    """What is to happen to the requests for one file."""

    def __init__(self) -> None:
        self.shut = False
        self.waiting: list[tuple[list[int], trio.Event]] = []
        self.reads: list[list[int]] = []
        self.failing: tuple[int, int, int] | None = None
        self.vanished = 0
        self.losing = False
        self.changed = trio.Event()

    async def read(self, offset: int, size: int) -> int:
        """Wait as long as the test says; -> the errno to answer, or 0."""
        self.reads.append([offset, size])
        if self.shut:
            event = trio.Event()
            self.waiting.append(([offset, size], event))
            self.changed.set()
            self.changed = trio.Event()
            await event.wait()
        if self.failing is not None and offset < self.failing[2] and offset + size > self.failing[1]:
            return self.failing[0]
        return self.vanished


async def _control(gates: dict[str, Gate], request: list[Any]) -> Any:
    do, name, *arguments = request
    gate = gates.setdefault(name, Gate())
    if do == "hold":
        gate.shut = True
    elif do == "arrived":
        while len(gate.waiting) < arguments[0]:
            await gate.changed.wait()
        return [read for read, _ in gate.waiting]
    elif do in ("release", "release_one"):
        gate.shut = do == "release_one"
        let = gate.waiting if do == "release" else gate.waiting[:1]
        gate.waiting = gate.waiting[len(let) :]
        for _, event in let:
            event.set()
    elif do == "fail":
        code, start, end = arguments
        gate.failing = (code, start, end) if code else None
    elif do == "vanish":
        (gate.vanished,) = arguments
    elif do == "lose":
        (gate.losing,) = arguments
    elif do == "reads":
        return gate.reads
    return None


async def _serve(talk: socket.socket, source: str, path: str) -> None:
    import pyfuse3

    gates: dict[str, Gate] = {}

    class Passthrough(pyfuse3.Operations):
        """One directory of regular files; an inode is the backing's st_ino and found by its first name."""

        supports_dot_lookup = False

        def __init__(self) -> None:
            super().__init__()
            self.names: dict[int, str] = {}
            self.fds: dict[int, int] = {}  # O_PATH, so that unlinked and renamed files still answer

        def attributes(self, st: os.stat_result, root: bool = False) -> pyfuse3.EntryAttributes:
            entry = pyfuse3.EntryAttributes()
            for field in ("mode", "nlink", "uid", "gid", "rdev", "size", "blocks"):
                setattr(entry, f"st_{field}", getattr(st, f"st_{field}"))
            for field in ("atime_ns", "mtime_ns", "ctime_ns"):
                setattr(entry, f"st_{field}", getattr(st, f"st_{field}"))
            entry.st_ino = pyfuse3.ROOT_INODE if root else st.st_ino
            entry.st_blksize = 4096
            entry.attr_timeout = entry.entry_timeout = 0
            return entry

        def gate(self, inode: int) -> Gate:
            return gates.setdefault(self.names[inode], Gate())

        def alive(self, inode: int) -> None:
            if inode != pyfuse3.ROOT_INODE and self.gate(inode).vanished:
                raise pyfuse3.FUSEError(self.gate(inode).vanished)

        def open_data(self, inode: int, flags: int) -> int:
            return os.open(f"/proc/self/fd/{self.fds[inode]}", flags)

        async def lookup(self, parent: int, name: bytes, ctx: Any) -> pyfuse3.EntryAttributes:
            if parent != pyfuse3.ROOT_INODE:
                raise pyfuse3.FUSEError(errno.ENOTDIR)
            try:
                fd = os.open(os.path.join(source, os.fsdecode(name)), os.O_PATH | os.O_NOFOLLOW)
            except OSError as e:
                raise pyfuse3.FUSEError(e.errno or errno.EIO) from e
            st = os.fstat(fd)
            if self.fds.setdefault(st.st_ino, fd) != fd:
                os.close(fd)
            self.names.setdefault(st.st_ino, os.fsdecode(name))
            self.alive(st.st_ino)
            return self.attributes(st)

        async def getattr(self, inode: int, ctx: Any) -> pyfuse3.EntryAttributes:
            if inode == pyfuse3.ROOT_INODE:
                return self.attributes(os.stat(source), root=True)
            self.alive(inode)
            return self.attributes(os.fstat(self.fds[inode]))

        async def setattr(self, inode: int, attr: Any, fields: Any, fh: Any, ctx: Any) -> Any:
            self.alive(inode)
            if fields.update_size:
                os.truncate(f"/proc/self/fd/{self.fds[inode]}", attr.st_size)
            return await self.getattr(inode, ctx)

        async def open(self, inode: int, flags: int, ctx: Any) -> pyfuse3.FileInfo:
            self.alive(inode)
            return pyfuse3.FileInfo(fh=inode, direct_io=True)

        async def read(self, fh: int, offset: int, size: int) -> bytes:
            fd = self.open_data(fh, os.O_RDONLY)
            data = os.pread(fd, size, offset)
            os.close(fd)
            failed = await self.gate(fh).read(offset, size)
            if failed:
                raise pyfuse3.FUSEError(failed)
            return data

        async def write(self, fh: int, offset: int, buf: bytes) -> int:
            self.alive(fh)
            if self.gate(fh).losing:
                return len(buf)
            fd = self.open_data(fh, os.O_WRONLY)
            written = os.pwrite(fd, buf, offset)
            os.close(fd)
            return written

        async def opendir(self, inode: int, ctx: Any) -> int:
            return inode

        async def readdir(self, fh: int, start_id: int, token: Any) -> None:
            return None

        async def statfs(self, ctx: Any) -> pyfuse3.StatvfsData:
            data = pyfuse3.StatvfsData()
            data.f_bsize = data.f_frsize = 4096
            data.f_namemax = 255
            return data

        async def flush(self, fh: int) -> None: ...

        async def fsync(self, fh: int, datasync: bool) -> None:
            if self.gate(fh).losing:
                raise pyfuse3.FUSEError(errno.EIO)

        async def release(self, fh: int) -> None: ...

    pyfuse3.init(Passthrough(), path, {"fsname=daxfault-gated"})
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(talk))
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pyfuse3.main)
            await stream.send_all(b"null\n")
            lines = b""
            async for some in stream:
                *requests, lines = (lines + some).split(b"\n")
                for request in requests:
                    answer = await _control(gates, json.loads(request))
                    await stream.send_all(json.dumps(answer).encode() + b"\n")
            nursery.cancel_scope.cancel()
    finally:
        # lazily: a reader that is held must get its ENOTCONN, not hold up the unmount
        await trio.run_process(["fusermount3", "-u", "-z", "-q", path], check=False)
        pyfuse3.close(unmount=False)


if __name__ == "__main__":
    trio.run(_serve, socket.socket(fileno=int(sys.argv[1])), sys.argv[2], sys.argv[3])
