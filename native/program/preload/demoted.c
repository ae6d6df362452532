/* SPDX-License-Identifier: Apache-2.0
 *
 * demoted.c - mappings that are private only because we made them so.
 *
 * A program maps a file that it opened read-only MAP_SHARED; the page cache is mapped
 * MAP_PRIVATE in its place (abi.h, struct df_mmap).  The kernel would let mprotect() make
 * that writable, and every store would be lost.  Owns a table of those mappings, and the
 * calls that it takes: mprotect() and pkey_mprotect(), which fail with EACCES, and mremap(),
 * which takes them elsewhere.
 *
 * munmap() is not ours, and much is unmapped behind any library's back.  So the table says
 * only where to look: what counts is whether a private mapping of a page cache is there now.
 */
#include <errno.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "program/cache_maps.h"
#include "preload.h"

#define PAGE_MASK ((uint64_t)DF_PAGE_SIZE - 1)

struct range {
	uint64_t start, end;		/* end 0: free */
};

enum {
	FIRST_ROOM = 64,
	PATIENCE = 1 << 20,		/* of yields; whoever holds the lock has signals blocked */
};

static struct range first_room[FIRST_ROOM];
static struct range *table = first_room;
static size_t room = FIRST_ROOM;
static atomic_size_t used;		/* entries before this may be in use */
static atomic_bool held;

/* For a few instructions, and by a process that may have been cloned while it was held. */
void demoted_hold(void)
{
	int n;

	for (n = 0; atomic_exchange(&held, true) && n < PATIENCE; n++)
		sched_yield();
}

void demoted_release(void)
{
	atomic_store(&held, false);
}

static bool overlaps(const struct range *r, uint64_t start, uint64_t end)
{
	return r->end && r->start < end && start < r->end;
}

static struct range *grow(void)
{
	size_t more = room * 4;
	long at = syscall(SYS_mmap, NULL, more * sizeof(*table), PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct range *old = table;
	size_t i;

	if (at == -1)
		return NULL;
	table = (struct range *)at;
	for (i = 0; i < room; i++)
		table[i] = old[i];
	if (old != first_room)
		syscall(SYS_munmap, old, room * sizeof(*old));
	i = room;
	room = more;
	return &table[i];
}

/* Without memory for it, it is forgotten, and mprotect() allows what it should not. */
static void add(uint64_t start, uint64_t end)
{
	struct range *free = NULL;
	size_t i;

	for (i = 0; i < room && !free; i++)
		if (!table[i].end)
			free = &table[i];
	if (!free)
		free = grow();
	if (!free)
		return;
	*free = (struct range){ start, end };
	if ((size_t)(free - table) >= used)
		used = (size_t)(free - table) + 1;
}

static void remove_range(uint64_t start, uint64_t end)
{
	size_t i, n = used;

	for (i = 0; i < n; i++) {
		struct range was = table[i];

		if (!overlaps(&was, start, end))
			continue;
		table[i].end = 0;
		if (was.start < start)
			add(was.start, start);
		if (end < was.end)
			add(end, was.end);
	}
	while (used && !table[used - 1].end)
		used--;
}

void demoted_set(uint64_t start, uint64_t end, bool demoted)
{
	uint64_t mask;

	if (!demoted && !used)
		return;
	mask = signals_block();
	demoted_hold();
	remove_range(start, end);
	if (demoted)
		add(start, end);
	demoted_release();
	signals_restore(mask);
}

/* The part of [start, end) that begins first in a demoted mapping, if there is one. */
static bool find(uint64_t start, uint64_t end, struct range *out)
{
	uint64_t mask = signals_block();
	bool found = false;
	size_t i;

	demoted_hold();
	for (i = 0; i < used; i++) {
		if (!overlaps(&table[i], start, end) || (found && table[i].start >= out->start))
			continue;
		*out = table[i];
		found = true;
	}
	demoted_release();
	signals_restore(mask);
	if (found && out->start < start)
		out->start = start;
	if (found && out->end > end)
		out->end = end;
	return found;
}

/* Where in [start, end) making it writable must fail, or `end`. */
static uint64_t first_denied(uint64_t start, uint64_t end)
{
	struct range r;
	uint64_t at;

	while (start < end && find(start, end, &r)) {
		/* -errno: /proc cannot be read, and the table has to do */
		if (cache_maps_private(MAPS_SELF, r.start, r.end, 0, &at))
			return at;
		start = r.end;
	}
	return end;
}

static int protect_raw(void *addr, size_t len, int prot, int pkey)
{
	if (pkey == -1)
		return (int)syscall(SYS_mprotect, addr, len, prot);
	return (int)syscall(SYS_pkey_mprotect, addr, len, prot, pkey);
}

static int protect(void *addr, size_t len, int prot, int pkey)
{
	uint64_t start = (uint64_t)addr, end = start + len, denied = end;
	int error = errno;

	if (prot & PROT_WRITE && used && end > start && !(start & PAGE_MASK))
		denied = first_denied(start, end);
	if (denied == end) {
		errno = error;
		return protect_raw(addr, len, prot, pkey);
	}
	/* the kernel goes from mapping to mapping, and leaves changed what it has changed */
	if (denied > start && protect_raw(addr, denied - start, prot, pkey))
		return -1;
	errno = EACCES;
	return -1;
}

EXPORT int mprotect(void *addr, size_t len, int prot)
{
	return protect(addr, len, prot, -1);
}

EXPORT int pkey_mprotect(void *addr, size_t len, int prot, int pkey)
{
	return protect(addr, len, prot, pkey);
}

EXPORT void *mremap(void *addr, size_t old_len, size_t new_len, int flags, ...)
{
	uint64_t start = (uint64_t)addr, mask;
	void *to = NULL;
	struct range r;
	bool demoted;
	va_list args;
	long at;

	if (flags & (MREMAP_FIXED | MREMAP_DONTUNMAP)) {
		va_start(args, flags);
		to = va_arg(args, void *);
		va_end(args);
	}
	if (!used)
		return (void *)syscall(SYS_mremap, addr, old_len, new_len, flags, to);
	/* a mapping is one or the other from end to end */
	demoted = find(start, start + (old_len ? old_len : 1), &r);
	at = syscall(SYS_mremap, addr, old_len, new_len, flags, to);
	if (at == -1)
		return MAP_FAILED;
	mask = signals_block();
	demoted_hold();
	if (demoted && at != (long)addr && old_len && !(flags & MREMAP_DONTUNMAP))
		remove_range(start, (start + old_len + PAGE_MASK) & ~PAGE_MASK);
	remove_range((uint64_t)at, ((uint64_t)at + new_len + PAGE_MASK) & ~PAGE_MASK);
	if (demoted)
		add((uint64_t)at, ((uint64_t)at + new_len + PAGE_MASK) & ~PAGE_MASK);
	demoted_release();
	signals_restore(mask);
	return (void *)at;
}
