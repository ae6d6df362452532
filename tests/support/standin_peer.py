# SPDX-License-Identifier: Apache-2.0
"""A host played by a test, for the guest stand-in to talk to.

Owns the stand-in's process and the other end of its socket.
"""

import json
import os
import socket
import struct
import subprocess
from pathlib import Path

import pytest
from needs import require
from patience import PATIENCE

HEADER = struct.Struct("=IIQiI")  # type, len, seq, error, pad
HELLO = struct.Struct("=IIQiIIiQQII")  # and version, pid, window, window_len, abi, cpuid
DF_HELLO, DF_REPLY = 1, 1000
CPUID = 0x44010  # ASYNC_PF, ASYNC_PF_INT, ERROR
ABI_REPORT = 5
RANGE = 2 << 20


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
        message, self.fds, flags, _ = socket.recv_fds(self.socket, 4096, 8)
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
        self.say(answer(hello))
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


def answer(hello: tuple[int, ...], **changed: int) -> bytes:
    """A good reply to HELLO but for what is changed."""
    names = ("type", "len", "seq", "error", "pad", "version", "pid", "window", "window_len", "abi", "cpuid")
    fields = dict(zip(names, hello, strict=True)) | {"type": DF_HELLO + DF_REPLY} | changed
    return HELLO.pack(*fields.values())
