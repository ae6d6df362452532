# SPDX-License-Identifier: Apache-2.0
"""System calls that can touch a mapping, each with many arguments on many kinds of mapping, as scripts
of mapscript.c.

Owns the table of cases.  Must not know what a call should answer: a file system of the kernel's does.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

# How mapping m, of four pages, comes to be: in the midst of memory that nobody may access, so that a call
# for too much meets nothing that the program needs.  FILE has four pages and 100 bytes.
_ROOM = "map z - 0 128p - pa"
_AT = "z 32p"
MAPPINGS = {
    "shared": f"open f FILE rw|map m f 0 4p rw sf {_AT}",
    "readonly": f"open f FILE r|map m f 0 4p r sf {_AT}",
    "private": f"open f FILE rw|map m f 0 4p rw pf {_AT}",
    "stored": f"open f FILE rw|map m f 0 4p rw sf {_AT}|store m 1p stored|store m 3p+4000 stored",
    "holed": f"open f FILE rw|map m f 0 4p rw sf {_AT}|unmap m 2p 1p",
    "end": f"open f FILE rw|map m f 2p 4p rw sf {_AT}",
    "mixed": f"open f FILE rw|map m - 0 4p rw paf {_AT}|map n f 0 2p rw sf m 2p",
    "locked": f"open f FILE rw|map m f 0 4p rw sf {_AT}|lock m 0 4p",
    "none": f"open f FILE rw|map m f 0 4p - sf {_AT}",
}
ALL = tuple(MAPPINGS)
USUAL = "shared", "readonly", "stored", "private"

# first and length
RANGES = {
    "whole": ("m", "4p"),
    "middle": ("m+1p", "2p"),
    "odd length": ("m+1p", "1p+1"),
    "unaligned": ("m+1", "1p"),
    "empty": ("m", "0"),
    "wrapped": ("m", "-4096"),
    "beyond": ("m+1p", "64p"),
}
SOUND = "whole", "middle"

ADVICE = {"unknown": 99, "guard_install": 102, "guard_remove": 103}
ADVICE |= zip(("normal", "random", "sequential", "willneed", "dontneed"), itertools.count(0))
ADVICE |= zip(("free", "remove", "dontfork", "dofork", "mergeable", "unmergeable"), itertools.count(8))
ADVICE |= zip(
    ("hugepage", "nohugepage", "dontdump", "dodump", "wipeonfork", "keeponfork"), itertools.count(14)
)
ADVICE |= zip(("cold", "pageout", "populate_read", "populate_write"), itertools.count(20))
ADVICE |= zip(("dontneed_locked", "collapse"), itertools.count(24))
_THOROUGHLY = "remove", "dontneed", "populate_read", "populate_write", "dodump", "guard_install"


_MARK = "----"


@dataclasses.dataclass(frozen=True)
class Case:
    """`steps` are separated by "|"; WAY in them is the way into the kernel."""

    name: str
    steps: str


def _ranged(
    call: str,
    *more: str,
    mappings: tuple[str, ...] = USUAL,
    ranges: tuple[str, ...] = tuple(RANGES),
    called: str = "",
) -> Iterator[Case]:
    """The call with each range of the first of `mappings`, and with sound ranges of the others."""
    for mapping in mappings:
        for range in ranges if mapping == mappings[0] else SOUND:
            first, length = RANGES[range]
            name = f"{called or ' '.join((call, *more))} {range}"
            yield _case(name, mapping, f"call WAY {call} {first} {length} {' '.join(more)}")


def _case(name: str, mapping: str, *steps: str) -> Case:
    """Afterwards every page of m is looked at, and the file."""
    looks = [f"load m {page}p 2" for page in range(4)]
    looks += ["store m 1p+8 x", *(f"read f {page}p 12" for page in range(5)), "size f"]
    return Case(f"{mapping}: {name}", "|".join([_ROOM, MAPPINGS[mapping], *steps, *looks]))


def _advice() -> Iterator[Case]:
    for name, value in ADVICE.items():
        mappings = ALL if name in _THOROUGHLY else USUAL
        yield from _ranged("madvise", str(value), mappings=mappings, called=f"madvise {name}")
        yield _case(
            f"process_madvise {name}", "stored", f"call WAY process_madvise pidfd vec:m+1p:2p 1 {value} 0"
        )


def _protection() -> Iterator[Case]:
    for prot in (0, 1, 2, 3, 4, 5, 7, 8):
        yield from _ranged("mprotect", str(prot), mappings=ALL if prot in (1, 3) else USUAL)
        yield from _ranged("pkey_mprotect", str(prot), "-1", mappings=("shared", "readonly"), ranges=SOUND)
    yield _case("pkey_mprotect with a key nobody has", "shared", "call WAY pkey_mprotect m 4p 3 9")
    yield _case("mprotect with stack flags", "shared", "call WAY mprotect m 4p 0x01000003")


def _locking() -> Iterator[Case]:
    for call, more in (
        ("mlock", ()),
        ("mlock2", ("0",)),
        ("mlock2", ("1",)),
        ("mlock2", ("2",)),
        ("munlock", ()),
    ):
        yield from _ranged(call, *more, mappings=ALL)
    for flags in (0, 1, 2, 3, 4, 5, 7, 8):
        yield _case(
            f"mlockall {flags}", "shared", f"call WAY mlockall {flags}", "map o f 0 2p rw s", "load o 1p 2"
        )
        yield _case(
            f"mlockall {flags}, then longer", "stored", f"call WAY mlockall {flags}", "remap m 0 4p 5p m"
        )
    yield _case("munlockall", "locked", "call WAY munlockall")
    for call in ("mlock m 4p", "mlock2 m 4p 0", "mlock2 m 4p 1"):
        yield _case(f"{call}, then longer", "shared", f"call WAY {call}", "remap m 0 4p 5p m", "load m 4p 2")


def _syncing() -> Iterator[Case]:
    for flags in (0, 1, 2, 3, 4, 5, 6, 7, 8):
        yield from _ranged("msync", str(flags), mappings=ALL if flags == 4 else USUAL)
    yield _case("msync shows behind", "stored", "call WAY msync m 4p 4", "open g @FILE r", "read g 1p 8")
    for call in ("fsync fd:f", "fdatasync fd:f", "sync_file_range fd:f 0 4p 7"):
        behind = ("open g @FILE r", "read g 1p 8") if call[0] == "f" else ()
        yield _case(call, "stored", f"call WAY {call}", *behind)


def _mapping() -> Iterator[Case]:
    for prot, flags in itertools.product((0, 1, 2, 3), (1, 2, 3, 0x8001, 0x2001, 0x4002, 0x80003, 0x1001)):
        for mode in ("r", "rw", "w"):
            name = f"mmap {prot} {flags:#x} of a file opened {mode}"
            yield _case(
                name,
                "shared",
                f"open o FILE {mode}",
                f"call WAY mmap>n 0 2p {prot} {flags} fd:o 1p",
                "load n 0 2",
                "store n 1p+100 n",
            )
    odd = {
        "an odd offset": "0 2p 3 1 fd:f 1",
        "no length": "0 0 3 1 fd:f 0",
        "no kind": "0 2p 3 0 fd:f 0",
        "a negative offset": "0 2p 3 1 fd:f -4096",
        "an offset that overflows": "0 2p 3 1 fd:f 0x7ffffffffffff000",
        "no descriptor": "0 2p 3 1 -1 0",
        "a closed descriptor": "0 2p 3 1 999 0",
        "too long": "0 -4096 3 1 fd:f 0",
        "far past the end": "0 2p 3 1 fd:f 0x10000000",
        "a hint": "m+1 2p 3 1 fd:f 0",
        "MAP_FIXED": "m+1p 2p 3 0x11 fd:f 0",
        "MAP_FIXED, unaligned": "m+1 2p 3 0x11 fd:f 0",
        "MAP_FIXED_NOREPLACE": "m+1p 2p 3 0x100001 fd:f 0",
        "private over shared": "m+1p 2p 3 0x12 fd:f 0",
        "anonymous over it": "m+1p 2p 3 0x32 -1 0",
        "MAP_GROWSDOWN": "0 2p 3 0x101 fd:f 0",
        "MAP_GROWSDOWN private": "0 2p 3 0x102 fd:f 0",
        "MAP_HUGETLB": "0 2p 3 0x40001 fd:f 0",
        "MAP_32BIT": "0 2p 3 0x41 fd:f 0",
        "MAP_STACK": "0 2p 3 0x20001 fd:f 0",
        "MAP_SYNC": "0 2p 3 0x80001 fd:f 0",
        "validated unknown flags": "0 2p 3 0x40000003 fd:f 0",
        "unknown flags": "0 2p 3 0x40000001 fd:f 0",
        "MAP_DENYWRITE": "0 2p 3 0x801 fd:f 0",
        "MAP_DROPPABLE": "0 2p 3 8 fd:f 0",
        "PROT_SEM": "0 2p 11 1 fd:f 0",
    }
    for name, arguments in odd.items():
        yield _case(f"mmap with {name}", "shared", f"call WAY mmap>n {arguments}", "load m 1p 2")
    yield _case("mmap of an O_PATH descriptor", "shared", "open o FILE rP", "call WAY mmap>n 0 2p 1 1 fd:o 0")


def _moving() -> Iterator[Case]:
    for mapping in ALL:
        for flags, name in ((0, "in place"), (1, "anywhere"), (5, "MREMAP_DONTUNMAP"), (8, "unknown flags")):
            for old, new in (
                ("4p", "8p"),
                ("4p", "2p"),
                ("4p", "4p"),
                ("2p", "6p"),
                ("0", "4p"),
                ("4p", "0"),
            ):
                if mapping not in USUAL and (old, new) != ("4p", "8p"):
                    continue
                yield _case(
                    f"mremap {old} to {new} {name}",
                    mapping,
                    f"call WAY mremap>n m {old} {new} {flags}",
                    "load n 1p 2",
                    "load n 3p 2",
                )
        yield _case(
            "mremap to a place",
            mapping,
            "map o - 0 8p rw pa",
            "call WAY mremap>n m+1p 2p 2p 3 o+2p",
            "load o 2p 2",
        )
        grown = "call WAY mremap>n m 4p 8p 0", "load n 3p 2", "load n 4p 2", "load n 5p 2"
        yield _case("mremap in place, into a hole", mapping, "unmap z 36p 16p", *grown)
        yield _case("mremap onto itself", mapping, "call WAY mremap>n m 4p 4p 3 m+1p")
        yield from _ranged(
            "munmap", mappings=(mapping,), ranges=tuple(RANGES) if mapping == "shared" else SOUND
        )
    yield _case("mremap of an unaligned address", "shared", "call WAY mremap>n m+1 4p 8p 1")
    yield _case("mremap of what is not mapped", "holed", "call WAY mremap>n m+2p 1p 2p 1")


def _looking() -> Iterator[Case]:
    for mapping in ALL:
        # what is present is the page cache's own affair
        yield _case("mincore", mapping, "call WAY mincore m 4p buffer")
        yield _case("process_vm_readv", mapping, "call WAY process_vm_readv pid vec:buffer:4p 1 vec:m:4p 1 0")
        yield _case(
            "process_vm_writev", mapping, "call WAY process_vm_writev pid vec:buffer:2p 1 vec:m+1p:2p 1 0"
        )
        yield _case("remap_file_pages", mapping, "call WAY remap_file_pages m 2p 0 1 0")
        for call in (
            "readv fd:f vec:m+1p:1p 1",
            "writev fd:f vec:m+1p:1p 1",
            "pread fd:f m+2p 2p 0",
            "pwrite fd:f m+2p 2p 0",
            "getrandom m+1p 0 0",
            "preadv2 fd:f vec:m+1p:1p 1 0 0 0",
        ):
            yield _case(call, mapping, f"call WAY {call}")
        for call in (
            "mbind m 4p 0 0 0 0",
            "mbind m 4p 1 0 0 1",
            "move_pages 0 1 vec:m:0 0 buffer 0",
            "mseal m 4p 0",
            "mseal m+1p 1p 0",
            "userfaultfd 1",
        ):
            yield _case(call, mapping, f"call WAY {call}")
        if mapping != "none":
            yield _case(
                "mseal, then munmap", mapping, "call WAY mseal m 4p 0", "unmap m 1p 1p", "protect m 0 4p r"
            )
    yield _case("shmat over it", "shared", "call WAY shmat 0 m 0")
    yield _case("ftruncate", "stored", "call WAY ftruncate fd:f 1p+10")
    yield _case("fallocate, punch", "stored", "call WAY fallocate fd:f 3 1p 1p")


def _direct() -> Iterator[Case]:
    for mapping in USUAL:
        opened = "open d FILE rwD"
        yield _case("O_DIRECT read into it", mapping, opened, "call WAY pread fd:d m+1p 2p 0")
        yield _case("O_DIRECT write from it", mapping, opened, "call WAY pwrite fd:d m 2p 2p")
        yield _case("O_DIRECT write onto itself", mapping, opened, "call WAY pwrite fd:d m 4p 0")
        yield _case(
            "O_DIRECT sees stores", mapping, opened, "store m 2p here", "call WAY pread fd:d buffer 1p 2p"
        )
        yield _case("O_DIRECT write is seen", mapping, opened, "call WAY pwrite fd:d buffer 1p 1p")


def _ring() -> Iterator[Case]:
    for mapping in USUAL:
        yield _case("io_uring read into it", mapping, "ring read m 1p 1p f 0")
        yield _case("io_uring write from it", mapping, "ring write m 0 2p f 2p")
        yield _case("io_uring fixed buffer", mapping, "ringbuffer m 0 4p")
        for name in ("willneed", "dontneed", "remove", "cold", "populate_read", "normal"):
            yield _case(f"io_uring madvise {name}", mapping, f"ring madvise m 1p 2p {ADVICE[name]}")


def _children() -> Iterator[Case]:
    for mapping in ("shared", "private", "stored"):
        for how in ("fork", "clone", "clone3"):
            yield _case(f"child by {how}", mapping, f"child WAY {how}")
        for how in ("_Fork", "clone_vm"):
            yield _case(f"child by {how}", mapping, f"child libc {how}")
        yield _case("ptrace of touched pages", mapping, "peek touched")
        for how in ("spawn", "vfork"):
            yield _case(how, mapping, f"{how} open f FILE rw,map m f 0 4p rw s,load m 1p 2,store m 2p {how}")


def cases() -> list[Case]:
    """All of them, in an order that stays."""
    kinds = _advice, _protection, _locking, _syncing, _mapping, _moving, _looking, _direct, _ring, _children
    return [case for kind in kinds for case in kind()]


def script(all: list[Case], way: str) -> str:
    """Each case in a child of its own, with a file of its own: c0, c1, ..."""
    lines = []
    for number, case in enumerate(all):
        steps = case.steps.replace("WAY", way).replace("FILE", f"c{number}")
        lines += [f"say {_MARK}", "fork", *steps.split("|"), "end"]
    return "\n".join(lines) + "\n"


def answers(all: list[Case], output: str) -> list[list[str]]:
    """The lines of each case."""
    found = [part.splitlines() for part in output.split(_MARK + "\n")[1:]]
    assert len(found) == len(all), f"the program ended at {all[len(found) - 1].name}: {found[-1]}"
    return found
