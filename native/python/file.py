# SPDX-License-Identifier: Apache-2.0
"""A file's data: its backing descriptor and, once a guest maps it, its page cache.

Owns the lifetime of the C object.  Must not know of FUSE or of guests.
"""

from __future__ import annotations

import dataclasses
import errno
import logging
import weakref
from collections.abc import Callable
from typing import Any

from daxfault.native._daxfault import ffi, lib
from daxfault.native.errors import check

CHANGED_SIZE: int = lib.DF_CHANGED_SIZE
CHANGED_CONTENT: int = lib.DF_CHANGED_CONTENT

log = logging.getLogger(__name__)

_files: weakref.WeakValueDictionary[int, File] = weakref.WeakValueDictionary()
# By file id.  A C object outlives its File while guests map it, so C holds the id and no reference.
_fetches: dict[int, Callable[[int, int], None]] = {}


@ffi.def_extern(error=errno.EIO)  # type: ignore[untyped-decorator]
def daxfault_fetch(context: Any, offset: int, length: int) -> int:
    """Bring bytes of a file to its backing file: the callback of df_file_fetch()."""
    id = int(ffi.cast("uintptr_t", context))
    fetch = _fetches.get(id)
    if fetch is None:
        return errno.ESHUTDOWN
    try:
        fetch(offset, length)
    except OSError as e:
        return e.errno or errno.EIO
    except Exception:
        log.exception("file %d, fetching %d bytes at %#x", id, length, offset)
        return errno.EIO
    return 0


class SyncErrors:
    """Which errors of File.sync() one user of a file knows."""

    def __init__(self, number: int) -> None:
        self.number: Any = ffi.new("uint64_t *", number)


@dataclasses.dataclass(frozen=True, slots=True)
class FileState:
    """A snapshot of a file; see struct df_file_state in engine.h for the units."""

    id: int
    size: int
    local: int
    known_size: int
    generation: int
    resident: int
    poisoned: int
    retrying: int
    mappings: int
    writable_mappings: int
    child_mappings: int
    fills: int
    waiting: int


class File:
    """One regular file: its data, for reads, writes and mappings.

    Every method releases the GIL and may be called from any thread.  Sizes and
    offsets are bytes.  Errors are OSError with the errno of the backing file.
    """

    def __init__(self, fd: int, *, writable: bool) -> None:
        """Take over `fd`, a regular file opened without O_APPEND, O_DIRECT and O_TRUNC."""
        out = ffi.new("struct df_file **")
        check(lib.df_file_new(fd, writable, out), f"descriptor {fd}")
        self._file: Any = ffi.gc(out[0], lib.df_file_put)
        self.writable = writable
        state = self.state()
        self.id: int = state.id
        self.local = bool(state.local)  # looking at the backing file asks no server, and cannot hang
        _files[self.id] = self

    @classmethod
    def by_id(cls, id: int) -> File | None:
        """The open File with this id."""
        file = _files.get(id)
        return None if file is None or file.closed else file

    @property
    def handle(self) -> Any:
        """The C object, for the engine."""
        if self._file is None:
            raise ValueError(f"file {self.id} is closed")
        return self._file

    @property
    def closed(self) -> bool:
        return self._file is None

    def fileno(self) -> int:
        """The backing descriptor; it stays this object's."""
        return int(lib.df_file_fd(self.handle))

    def state(self) -> FileState:
        out = ffi.new("struct df_file_state *")
        lib.df_file_state(self.handle, out)
        return FileState(*(getattr(out, f.name) for f in dataclasses.fields(FileState)))

    @property
    def size(self) -> int:
        return self.state().size

    @property
    def mapped(self) -> bool:
        """Some guest has a mapping of this file."""
        return self.state().mappings > 0

    @property
    def mapped_by_children(self) -> bool:
        """A forked child of some guest has a mapping of this file."""
        return self.state().child_mappings > 0

    @property
    def mapped_writable(self) -> bool:
        """Some guest may store to this file."""
        return self.state().writable_mappings > 0

    def fetch_by(self, fetch: Callable[[int, int], None]) -> None:
        """Call `fetch(offset, length)` before a page is first read from the backing file.

        `fetch` writes those bytes to the backing file, or raises OSError, with whose errno the fault
        fails.  It runs in a thread of the engine and may block.  Call this before a guest maps the file,
        whose size must not change.
        """
        _fetches[self.id] = fetch
        lib.df_file_fetch(self.handle, lib.daxfault_fetch, ffi.cast("void *", self.id))

    def upgrade(self, fd: int) -> None:
        """Take over `fd`, a writable descriptor of the same file, in place of the first."""
        check(lib.df_file_upgrade(self.handle, fd), f"descriptor {fd}")
        self.writable = True

    def read(self, offset: int, size: int, *, nowait: bool = False) -> memoryview:
        """Up to `size` bytes at `offset`; fewer only at the end of the file.

        With `nowait`, BlockingIOError instead of waiting for a disk (preadv2(2), RWF_NOWAIT).
        """
        buffer = bytearray(size)
        n = check(
            lib.df_file_read(self.handle, ffi.from_buffer(buffer), offset, size, nowait),
            f"file {self.id}, reading {size} bytes at {offset}",
        )
        return memoryview(buffer)[:n]

    def write(self, offset: int, data: bytes | bytearray | memoryview, *, nowait: bool = False) -> int:
        """Write at `offset`, to the backing file and to what guests see; -> bytes written.

        With `nowait`, BlockingIOError if the backing file is not local, or another call is changing it.
        """
        return check(
            lib.df_file_write(self.handle, ffi.from_buffer(data), offset, len(data), nowait),
            f"file {self.id}, writing {len(data)} bytes at {offset}",
        )

    def truncate(self, size: int) -> None:
        """Set the size.  When it returns, no guest sees a byte past it, and bytes that it has
        restored are readable again."""
        if size < 0:
            raise ValueError("a file's size is not negative")
        check(lib.df_file_truncate(self.handle, size), f"file {self.id}, truncating to {size}")

    def recheck(self) -> int:
        """Check the backing file; -> CHANGED_SIZE | CHANGED_CONTENT, when another process changed it."""
        return check(lib.df_file_recheck(self.handle), f"file {self.id}, fstat")

    def attributes_set(self) -> None:
        """Attributes were just changed for a client: recheck() does not take the new ctime for a change."""
        lib.df_file_attributes_set(self.handle)

    def write_back(self) -> bool:
        """Write the stores of guests to the backing file; -> whether there were any."""
        return check(lib.df_file_write_back(self.handle), f"file {self.id}, writing back") > 0

    @property
    def unwritten(self) -> int:
        """Bytes of pages that guests may have stored to since they were last written back."""
        return int(lib.df_file_unwritten(self.handle))

    def sync(self, seen: SyncErrors | None = None, *, datasync: bool = False) -> None:
        """write_back(), then fsync(2) or fdatasync(2).

        OSError, also when a sync() of somebody else has failed since `seen` was last passed to one: each
        user of the file gets each error once.  What was written is dirty again after one.
        """
        seen = seen or self.sync_errors()
        check(lib.df_file_sync(self.handle, datasync, seen.number), f"file {self.id}, fsync")

    def sync_errors(self) -> SyncErrors:
        """For a new user of the file, to whom errors until now are no news."""
        return SyncErrors(lib.df_file_sync_errors(self.handle))

    def heal(self) -> int:
        """Read every poisoned page again; -> how many there were.

        Waits for a second at most.  Pages that the page source delivers in that time are readable in
        the guests when this returns, later ones soon after they arrive.
        """
        return check(lib.df_file_heal(self.handle), f"file {self.id}, healing")

    def inject(
        self,
        start: int,
        length: int,
        *,
        error: int = 0,
        delay: float = 0.0,
        truncate: int | None = None,
        after: int = 0,
        count: int = 0,
        probability: float = 1.0,
        seed: int = 0,
        stores: bool = False,
        evict: bool = False,
        tag: int = 0,
    ) -> None:
        """Make the page source answer faults in [start, start + length) with errno `error`, or `delay`
        seconds late, or truncate the file to `truncate` bytes before the read, or all of these.

        The first `after` faults pass, the next `count` are injected, 0: all of them, each with
        `probability`, from a generator that `seed` starts; with `stores` only stores.  Pages that are in
        the page cache cause no fault; `evict` drops the clean ones.  inject_remove() removes it by its
        `tag`, if that is not 0, as inject_clear() does.
        OSError EINVAL: misaligned, without an effect, or a delay of more than an hour.
        """
        wanted: Any = ffi.new("struct df_inject_options *")
        wanted.start, wanted.len, wanted.error, wanted.delay_ns = start, length, error, round(delay * 1e9)
        wanted.after, wanted.count, wanted.seed, wanted.tag = after, count, seed, tag
        wanted.chance = 0 if probability >= 1.0 else max(1, round(probability * 2**32))
        wanted.flags = lib.DF_INJECT_STORES * stores | lib.DF_INJECT_EVICT * evict
        if truncate is not None:
            wanted.flags |= lib.DF_INJECT_TRUNCATE
            wanted.truncate = truncate
        check(
            lib.df_file_inject(self.handle, wanted),
            f"file {self.id}, injecting into {length:#x} bytes at {start:#x}",
        )

    def inject_remove(self, tag: int) -> None:
        """Remove the inject() with this tag; its delays under way end."""
        lib.df_file_inject_remove(self.handle, tag)

    def inject_clear(self) -> None:
        """Remove every inject(); delays under way end."""
        lib.df_file_inject_clear(self.handle)

    def cache_fd(self, *, writable: bool, sized: bool = False) -> int:
        """A fresh descriptor of the page cache, for a guest to map; the caller's to close.

        `sized`: its i_size is the file's, so that the kernel itself fails accesses past the end; otherwise
        the host decides each such fault.  OSError EBUSY: a guest maps the other kind.
        """
        flags = (lib.DF_CACHE_WRITABLE if writable else 0) | (lib.DF_CACHE_SIZED if sized else 0)
        return check(lib.df_file_cache_fd(self.handle, flags), f"file {self.id}, page cache")

    def retire(self) -> bool:
        """write_back(), then release the page cache.

        OSError EBUSY: a guest maps the file; else that of write_back().  The page cache stays then.
        """
        return check(lib.df_file_retire(self.handle), f"file {self.id}, giving up its page cache") > 0

    def end(self) -> tuple[int, int]:
        """write_back(), then take the page cache away: an access by a guest is SIGBUS from then on.

        No store succeeds after the last write.  -> the bytes that could not be written, and the errno of
        that.  Only for a `sized` page cache.
        """
        lost = ffi.new("uint64_t *")
        error = lib.df_file_end(self.handle, lost)
        return int(lost[0]), -error

    def close(self) -> None:
        """Let go.  The C object lives on while guests map it, and until calls of other threads that
        use it have returned: each holds a reference to it.  Safe to call twice."""
        self._file = None
        _fetches.pop(self.id, None)
