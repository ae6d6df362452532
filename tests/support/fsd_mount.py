# SPDX-License-Identifier: Apache-2.0
"""A mount for tests, served by a child process.

Owns starting, asking and ending it.  A child, because a thread of the test
process could be waited for by a call that holds the GIL (os.DirEntry.stat does),
and nobody would answer.  The child unmounts when its socket is closed, so a test
process that is killed leaves nothing mounted.

The socket carries one JSON object a line: {"do": name, ...} -> {"is": answer}.
"""

import errno
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from needs import require, require_root

PATIENCE = 10.0  # seconds; for a machine that is busy with other things


class FsdMount:
    """A directory `source`, mounted at `path`."""

    def __init__(self, source: Path, path: Path, *, allow_other: bool = False, **options: object) -> None:
        self.source = source
        self.path = path
        ours, theirs = socket.socketpair()
        ours.settimeout(PATIENCE)
        arguments = json.dumps({"allow_other": allow_other, "options": options})
        with theirs:
            self._child = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno()), source, path, arguments],
                pass_fds=[theirs.fileno()],
                stderr=subprocess.PIPE,
                cwd="/",
            )
        self._socket = ours
        self._lines = ours.makefile("rb")
        self.log = ""
        try:
            self.device: int = self._answer()
        except BaseException:
            self.close()
            raise

    def ask(self, do: str, **arguments: object) -> Any:
        """Have the child do one thing (Served), and return what it answers."""
        self._socket.sendall(json.dumps({"do": do, **arguments}).encode() + b"\n")
        return self._answer()

    def _answer(self) -> Any:
        line = self._lines.readline()
        if not line:
            self.close()
            raise AssertionError(f"the mount's process ended:\n{self.log}")
        return json.loads(line)["is"]

    def close(self) -> str:
        """Unmount; -> what the child logged."""
        self._lines.close()
        self._socket.close()
        try:
            _, log = self._child.communicate(timeout=PATIENCE)
            self.log += log.decode()
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.communicate()
            raise
        except ValueError:  # closed before: the log was read then
            pass
        finally:
            if self._child.returncode != 0:
                subprocess.run(["fusermount3", "-u", "-z", "-q", self.path], check=False)
        return self.log


def eventually(condition: Callable[[], Any], what: str) -> Any:
    """Wait until `condition` is true: for what the kernel or the server does after it has answered
    (RELEASE and FORGET have no reply, a change behind the mount is noticed a little later)."""
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.002)
    return found


def drop_caches() -> None:
    """Have the kernel forget the names and inodes it only caches (proc(5), drop_caches)."""
    require_root()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("2")
    except OSError as exc:
        require(False, f"/proc/sys/vm/drop_caches: {exc}")


def errno_of(call: Callable[..., Any], *args: Any, **kwargs: Any) -> str | None:
    """The name of the errno that `call` fails with, None when it succeeds."""
    try:
        call(*args, **kwargs)
    except OSError as exc:
        return errno.errorcode[exc.errno]
    return None


def as_user(uid: int, gid: int, at: Path, call: Callable[[], Any], groups: list[int] | None = None) -> str:
    """Run `call` as another user with `at` as its directory, which that user need not be able to reach;
    -> "" or the name of the errno it failed with."""
    here = os.open(at, os.O_RDONLY | os.O_DIRECTORY)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.fchdir(here)
            os.setgroups(groups or [])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            os.umask(0o022)
            os.write(writing, (errno_of(call) or "").encode())
            os._exit(0)
        except BaseException as exc:
            os.write(writing, repr(exc).encode())
        finally:
            os._exit(1)
    os.close(writing)
    os.close(here)
    with open(reading, "rb") as answer:
        text = answer.read().decode()
    os.waitpid(pid, 0)
    return text


# ---- the child


class Served:
    """What a test may ask of the file system in the child."""

    def __init__(self, fs: Any) -> None:
        self.fs = fs
        self.gate = threading.Event()

    def lookups(self) -> dict[int, int]:
        return {inode.nodeid: inode.lookups for inode in self.fs.inodes}

    def descriptors(self) -> int:
        return int(self.fs.inodes.open_descriptors())

    def files(self) -> int:
        return len(list(self.fs.in_use))

    def break_attributes(self, times: int) -> None:
        """Make the next `times` attribute replies fail in a way that no one foresaw."""
        whole = self.fs.replies.attributes

        def broken(*args: Any) -> Any:
            nonlocal times
            if times:
                times -= 1
                raise RuntimeError("broken by a test")
            return whole(*args)

        self.fs.replies.attributes = broken

    def make_when_looked_up(self, name: str, text: str) -> None:
        """Make the file `name` in the root after the kernel was told, once, that there is none."""
        whole = self.fs.lookup

        async def lookup(*args: Any) -> Any:
            self.fs.lookup = whole
            try:
                return await whole(*args)
            finally:
                Path(self.fs.backing, name).write_text(text)  # noqa: ASYNC240 - it is to happen right here

        self.fs.lookup = lookup

    def map_writable(self, nodeid: int) -> None:
        """As if a guest had begun to map the file, which is open, for writing."""
        inode = self.fs.inodes.get(nodeid)
        whole = type(inode.file)
        inode.file.__class__ = type("Mapped", (whole,), {"mapped_writable": True})
        self.fs.mapping_changed(nodeid)

    def block_reads(self, nodeid: int) -> None:
        """Make reads of the file, which is open, wait until let_reads: as storage that is slow."""
        file = self.fs.inodes.get(nodeid).file
        whole, gate = type(file), self.gate

        class Blocked(whole):  # type: ignore[misc, valid-type]
            def read(self, offset: int, size: int, *, nowait: bool = False) -> memoryview:
                if nowait and not gate.is_set():
                    raise BlockingIOError
                assert gate.wait(PATIENCE)
                return whole.read(self, offset, size)

        file.__class__ = Blocked

    def let_reads(self) -> None:
        self.gate.set()

    def count_reads(self) -> None:
        whole, self.counted = self.fs.read, 0

        async def read(*args: Any) -> Any:
            self.counted += 1
            return await whole(*args)

        self.fs.read = read

    def reads(self) -> int:
        """Read requests since count_reads."""
        return self.counted

    def never_answer_getattr(self) -> None:
        """Take in GETATTR requests from now on, and never answer one."""
        self.waiting = 0

        async def getattr(*args: Any) -> Any:
            import trio

            self.waiting += 1
            await trio.sleep_forever()

        self.fs.getattr = getattr

    def waiting_for_getattr(self) -> int:
        """GETATTR requests taken in since never_answer_getattr."""
        return self.waiting

    def writes_in_threads(self) -> None:
        """As if storage had just been slow."""
        self.fs.files.storage_slow_until = float("inf")

    def no_watches_left(self) -> None:
        """As if the system's inotify watches were used up."""

        def add_watch(*args: Any) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        self.fs.watch._inotify.add_watch = add_watch

    def look_at(self, files: int) -> None:
        """Have this many watched files looked at in a turn."""
        from daxfault.fsd import watch

        watch.POLL_MOST = files


MakeMount = Callable[..., FsdMount]


async def _serve() -> None:
    import trio

    from daxfault import fsd

    talk = socket.socket(fileno=int(sys.argv[1]))
    arguments = json.loads(sys.argv[4])
    fs = fsd.Filesystem(sys.argv[2], **arguments["options"])
    served = Served(fs)
    async with fsd.mounted(fs, sys.argv[3], allow_other=arguments["allow_other"]):
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(talk))
        await stream.send_all(json.dumps({"is": fs.device}).encode() + b"\n")
        lines = b""
        async for some in stream:
            lines += some
            while b"\n" in lines:
                line, lines = lines.split(b"\n", 1)
                request = json.loads(line)
                answer = getattr(served, request.pop("do"))(**request)
                await stream.send_all(json.dumps({"is": answer}).encode() + b"\n")


if __name__ == "__main__":
    import logging

    import trio

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    trio.run(_serve)
