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
# By file id.  C holds the id and no reference, because a mapped C object outlives its File.
_fetches: dict[int, Callable[[int, int], None]] = {}


@ffi.def_extern(error=errno.EIO)  # type: ignore[untyped-decorator]
def daxfault_fetch(context: Any, offset: int, length: int) -> int:
    """Fetch bytes of a file into its backing file: the callback of df_file_fetch()."""
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
    """The errors of File.sync() that one user of a file has received."""

    def __init__(self, number: int) -> None:
        self.number: Any = ffi.new("uint64_t *", number)


@dataclasses.dataclass(frozen=True, slots=True)
class FileState:
    """A snapshot of a file; see struct df_file_state in abi/host.h for the units."""

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
        self.local = bool(state.local)  # fstat(2) of the backing file asks no server and cannot hang
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
        """The backing descriptor; this object still owns it."""
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
        """Set the size.  When it returns, no guest sees a byte past the new size, and pages that
        failed below it are readable again."""
        if size < 0:
            raise ValueError("a file's size is not negative")
        check(lib.df_file_truncate(self.handle, size), f"file {self.id}, truncating to {size}")

    def recheck(self) -> int:
        """Check the backing file for changes by other processes; -> CHANGED_SIZE | CHANGED_CONTENT."""
        return check(lib.df_file_recheck(self.handle), f"file {self.id}, fstat")

    def attributes_set(self) -> None:
        """Have recheck() ignore the new ctime, after a client's change of attributes."""
        lib.df_file_attributes_set(self.handle)

    def write_back(self) -> bool:
        """Write dirty pages of guests to the backing file; -> whether there were any."""
        return check(lib.df_file_write_back(self.handle), f"file {self.id}, writing back") > 0

    @property
    def unwritten(self) -> int:
        """Bytes of pages that may be dirty: writable by guests since the last write-back."""
        return int(lib.df_file_unwritten(self.handle))

    def sync(self, seen: SyncErrors | None = None, *, datasync: bool = False) -> None:
        """write_back(), then fsync(2) or fdatasync(2).

        OSError, also when another user's sync() has failed since `seen` was last passed to one:
        each user of the file gets each error once.  After an error the pages are dirty again.
        """
        seen = seen or self.sync_errors()
        check(lib.df_file_sync(self.handle, datasync, seen.number), f"file {self.id}, fsync")

    def sync_errors(self) -> SyncErrors:
        """For a new user of the file, which does not get earlier errors."""
        return SyncErrors(lib.df_file_sync_errors(self.handle))

    def heal(self) -> int:
        """Read every poisoned page again; -> the number of pages.

        Waits at most a second.  Pages that the page source delivers in that time are readable in
        the guests when this returns, later ones when they arrive.
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
        """Add a rule for faults in [start, start + length): fail with errno `error`, wait `delay`
        seconds, truncate the file to `truncate` bytes before the read, or several of these.

        It lets the first `after` faults pass and hits the next `count` (0: all), each with
        `probability`, from a generator seeded with `seed`; with `stores`, only stores.  Pages in the
        page cache cause no fault; `evict` drops the clean ones.  inject_remove() removes rules by a
        `tag` that is not 0, inject_clear() removes all.
        OSError EINVAL: misaligned, no effect, or a delay of more than an hour.
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
        """Remove the rules with this tag; ends their pending delays."""
        lib.df_file_inject_remove(self.handle, tag)

    def inject_clear(self) -> None:
        """Remove all rules; ends their pending delays."""
        lib.df_file_inject_clear(self.handle)

    def cache_fd(self, *, writable: bool, sized: bool = False) -> int:
        """A new descriptor of the page cache, for a guest to map; the caller closes it.

        `sized`: its i_size is the file's, so that the kernel itself fails accesses past the end;
        otherwise the host resolves such faults.  OSError EBUSY: a guest maps the other kind.
        """
        flags = (lib.DF_CACHE_WRITABLE if writable else 0) | (lib.DF_CACHE_SIZED if sized else 0)
        return check(lib.df_file_cache_fd(self.handle, flags), f"file {self.id}, page cache")

    def retire(self) -> bool:
        """write_back(), then release the page cache.

        OSError EBUSY: a guest maps the file; otherwise as write_back().  The page cache stays then.
        """
        return check(lib.df_file_retire(self.handle), f"file {self.id}, giving up its page cache") > 0

    def end(self) -> tuple[int, int]:
        """write_back(), then truncate the page cache to 0: every access by a guest raises SIGBUS.

        No store succeeds after the last write.  -> the number of bytes that could not be written,
        and the errno.  Only for a `sized` page cache.
        """
        lost = ffi.new("uint64_t *")
        error = lib.df_file_end(self.handle, lost)
        return int(lost[0]), -error

    def close(self) -> None:
        """Drop this object's reference.  The C object stays while guests map it or calls of other
        threads use it.  Safe to call twice."""
        self._file = None
        _fetches.pop(self.id, None)
