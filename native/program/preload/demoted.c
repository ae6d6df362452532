/* SPDX-License-Identifier: Apache-2.0
 *
 * demoted.c - records demoted mappings: MAP_SHARED requests that were mapped MAP_PRIVATE.
 *
 * If the file was opened read-only, its page cache is mapped MAP_PRIVATE in place of MAP_SHARED
 * (abi.h, struct df_mmap).  mprotect() must not make that writable: calls.c.  Owns the table of
 * those mappings, and moves its entries at mremap().
 *
 * munmap() is not interposed, and libc also unmaps by internal calls.  So the table shows only
 * where to look; /proc/self/maps shows whether a private mapping of a page cache is there now.
 */
#include <errno.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "program/cache_maps.h"
#include "preload.h"

struct range {
	uint64_t start, end; /* end 0: free */
};

enum {
	FIRST_ROOM = 64,
	PATIENCE = 1 << 20, /* yields; the holder of the lock has signals blocked */
};

static struct range first_room[FIRST_ROOM];
static struct range *table = first_room;
static size_t room = FIRST_ROOM;
static atomic_size_t used; /* entries before this may be in use */
static atomic_bool held;

/* The lock is held for a few instructions.  A cloned process may inherit it held, hence the bound. */
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

/* If there is no memory for the entry, mprotect() may make the mapping writable. */
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

/* -> whether a part of [start, end) is demoted; then *out is the first such part. */
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

bool demoted_any(void)
{
	return used;
}

uint64_t demoted_first(uint64_t start, uint64_t end)
{
	struct range r;
	uint64_t at;

	while (start < end && find(start, end, &r)) {
		/* -errno: /proc cannot be read, so rely on the table */
		if (cache_maps_private(MAPS_SELF, r.start, r.end, 0, &at))
			return at;
		start = r.end;
	}
	return end;
}

long demoted_remap(uint64_t from, uint64_t old_len, uint64_t new_len, int flags, uint64_t to)
{
	/* a mapping is demoted as a whole or not at all */
	struct range r;
	bool demoted = used && find(from, from + (old_len ? old_len : 1), &r);
	long at = syscall(SYS_mremap, from, old_len, new_len, flags, to);
	uint64_t start = (uint64_t)at, end = (start + new_len + IN_PAGE) & ~IN_PAGE, mask;

	if (at == -1)
		return -errno;
	if (!used)
		return at;
	mask = signals_block();
	demoted_hold();
	if (demoted && start != from && old_len && !(flags & MREMAP_DONTUNMAP))
		remove_range(from, (from + old_len + IN_PAGE) & ~IN_PAGE);
	remove_range(start, end);
	if (demoted)
		add(start, end);
	demoted_release();
	signals_restore(mask);
	return at;
}
