/* SPDX-License-Identifier: Apache-2.0
 *
 * evict.c - the limit on the memory of all page caches: pages that nobody has stored to
 * go, first of the files that were filled longest ago.  Must not write back: what was
 * stored to stays, whatever the limit (df_cache_state() tells who should).
 *
 * A page that goes is zapped from its guests and read again when one touches it, which
 * costs a fault; so many go at a time, and within a file they go round like the hand of a
 * clock.
 */
#include "internal.h"

#define SLACK 16	/* of the limit, one part is freed at a time */

static atomic_uint_fast64_t limit;	/* pages; 0: none */
static atomic_uint_fast64_t fills;

void df_cache_limit(uint64_t bytes)
{
	atomic_store(&limit, (bytes + PAGE - 1) / PAGE);
}

void df_cache_state(struct df_cache_state *out)
{
	*out = (struct df_cache_state){ pages_resident() * PAGE, atomic_load(&limit) * PAGE };
}

/* Drop pages of one file, from its hand on and once around; -> how many. */
static uint64_t sweep(struct df_file *file, uint64_t most, uint64_t start, uint64_t end)
{
	struct { uint64_t from, to; } parts[] = {
		{ file->hand, CACHE_SIZE }, { 0, file->hand },
	};
	uint64_t dropped = 0;

	for (size_t i = 0; i < 2 && dropped < most; i++) {
		uint64_t at = parts[i].from;

		/* but not what was just filled: somebody waits for it */
		if (at < start)
			dropped += pages_drop_clean(file, &at, start < parts[i].to ? start : parts[i].to,
						    most - dropped);
		if (dropped < most && at < end)
			at = end;
		if (dropped < most && at < parts[i].to)
			dropped += pages_drop_clean(file, &at, parts[i].to, most - dropped);
		file->hand = at < CACHE_SIZE ? at : 0;
	}
	if (dropped < most)
		atomic_store(&file->used, NOTHING_CLEAN);
	return dropped;
}

void evict(struct df_file *file, uint64_t start, uint64_t end)
{
	uint64_t most = atomic_load_explicit(&limit, memory_order_relaxed), now, wanted;
	struct df_file *other;

	if (!most)
		return;
	atomic_store(&file->used, atomic_fetch_add(&fills, 1) + 1);
	now = pages_resident();
	if (now <= most)
		return;
	wanted = now - most + most / SLACK;
	while (wanted && (other = file_other_locked(file))) {
		wanted -= sweep(other, wanted, 0, 0);
		pthread_mutex_unlock(&other->lock);	/* nothing was released */
		df_file_put(other);
	}
	if (wanted)
		sweep(file, wanted, start, end);
}
