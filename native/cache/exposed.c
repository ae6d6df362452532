/* SPDX-License-Identifier: Apache-2.0
 *
 * exposed.c - pages that guests can store to, and the known contents of the backing file for each.
 * All of it under file->lock.  Must not write to the backing file, nor decide when to.
 *
 * An exposed page need not be dirty: a guest stored to it, or to an adjacent page, or DMA to it may
 * still be in progress.  So a hash of the backing file's page is kept from before the page is
 * exposed until it is dropped.  A page with the same hash is clean: it is not written back, which
 * could overwrite another process's bytes, and it can be dropped and read again.
 *
 * Bytes past EOF are not part of the file: they count as zeros.
 */
#include <stdlib.h>
#include <string.h>

#include "cache.h"

#define BATCH ((uint64_t)16 * PAGE)

static uint64_t *slot(struct df_file *file, uint64_t offset)
{
	struct df_chunk *chunk = pages_chunk(file, offset);

	return chunk ? &chunk->known->hashes[offset / PAGE % CHUNK_PAGES] : NULL;
}

static void keep(struct df_file *file, uint64_t offset, uint64_t hash)
{
	uint64_t *known = slot(file, offset);

	if (known)
		*known = hash;
}

static bool needs_hash(struct df_file *file, uint64_t offset)
{
	return pages_filled(file, offset) && !pages_in(file, offset, PAGE_EXPOSED);
}

static void take_hashes(struct df_file *file, uint64_t start, uint64_t end)
{
	char bytes[BATCH];

	if (pages_read(file, bytes, start, end - start)) {
		/* Some were removed from the memfd: hash each page alone. */
		for (; end - start > PAGE; start += PAGE)
			take_hashes(file, start, start + PAGE);
		keep(file, start, HASH_UNKNOWN);
		return;
	}
	for (uint64_t at = start; at < end; at += PAGE)
		keep(file, at, known_hash(bytes + (at - start), at, file->size));
}

void exposed_begin(struct df_file *file, uint64_t start, uint64_t end)
{
	for (uint64_t at = start, next; at < end; at = next) {
		next = at + PAGE;
		if (!needs_hash(file, at))
			continue;
		while (next < end && next - at < BATCH && needs_hash(file, next))
			next += PAGE;
		take_hashes(file, at, next);
	}
	pages_mark(file, start, end, PAGE_EXPOSED, true);
	pages_mark(file, start, end, PAGE_DIRTY, true);
}

bool exposed_differs(struct df_file *file, const char *page, uint64_t offset)
{
	const uint64_t *known = slot(file, offset);

	return !known || *known == HASH_UNKNOWN || *known != known_hash(page, offset, file->size);
}

void exposed_written(struct df_file *file, const char *bytes, uint64_t offset, uint64_t len)
{
	for (uint64_t at = offset, end = offset + len; at < end; at += PAGE) {
		bool whole = at + PAGE <= end || end >= file->size;

		keep(file, at,
		     whole ? known_hash(bytes + (at - offset), at, file->size) : HASH_UNKNOWN);
	}
}

/* What the backing file holds of a page of which the page cache's bytes are `page`, as far as it is
 * known, once `len` bytes at `from` have become `bytes`, or zeros. */
static void replaced(struct df_file *file, char *page, uint64_t offset, const char *bytes,
		     uint64_t from, uint64_t len, uint64_t size)
{
	bool known = len == PAGE || !exposed_differs(file, page, offset);

	if (bytes)
		memcpy(page + (from - offset), bytes, len);
	else
		memset(page + (from - offset), 0, len);
	keep(file, offset, known ? known_hash(page, offset, size) : HASH_UNKNOWN);
}

void exposed_overwritten(struct df_file *file, const char *bytes, uint64_t offset, uint64_t len)
{
	char page[DF_PAGE_SIZE];

	for (uint64_t at = offset, end = offset + len, next; at < end; at = next) {
		uint64_t first = PAGE_DOWN(at);

		next = first + PAGE < end ? first + PAGE : end;
		if (!pages_in(file, first, PAGE_EXPOSED))
			continue;
		if (next - at < PAGE && pages_read(file, page, first, PAGE))
			keep(file, first, HASH_UNKNOWN);
		else
			replaced(file, page, first, bytes + (at - offset), at, next - at, file->size);
	}
}

void exposed_cut(struct df_file *file, uint64_t size)
{
	uint64_t left = size % PAGE, first = size - left;
	char page[DF_PAGE_SIZE];

	if (!left || !pages_in(file, first, PAGE_EXPOSED))
		return;
	if (pages_read(file, page, first, PAGE))
		keep(file, first, HASH_UNKNOWN);
	else
		replaced(file, page, first, NULL, size, PAGE - left, size);
}

void exposed_unwritten(struct df_file *file, uint64_t start, uint64_t end)
{
	pages_mark(file, start, end, PAGE_EXPOSED, true);
	pages_mark(file, start, end, PAGE_DIRTY, true);
	for (; start < end; start += PAGE)
		keep(file, start, HASH_UNKNOWN);
}

void exposed_sync_failed(struct df_file *file)
{
	for (uint64_t at = 0, end; pages_next(file, &at, &end, CHUNK_SIZE, PAGE_UNSYNCED); at = end)
		exposed_unwritten(file, at, end);
}

/* An exposed page may have changed without a fault: by DMA to pages that were pinned before they
 * were write-protected. */
static bool is_clean(struct df_file *file, uint64_t offset)
{
	char page[DF_PAGE_SIZE];

	if (pages_in(file, offset, PAGE_DIRTY))
		return false;
	if (!pages_in(file, offset, PAGE_EXPOSED))
		return true;
	if (pages_read(file, page, offset, PAGE))
		return false; /* it was removed, or cannot be compared now */
	if (exposed_differs(file, page, offset))
		pages_mark(file, offset, offset + PAGE, PAGE_DIRTY, true);
	return !pages_in(file, offset, PAGE_DIRTY);
}

uint64_t exposed_drop_clean(struct df_file *file, uint64_t *at, uint64_t end, uint64_t most)
{
	uint64_t dropped = 0, stop;

	while (dropped < most && pages_next(file, at, &stop, CHUNK_SIZE, PAGE_FILLED) && *at < end) {
		uint64_t from = *at;

		stop = stop < end ? stop : end;
		if ((stop - from) / PAGE > most - dropped)
			stop = from + (most - dropped) * PAGE;
		while (*at < stop && is_clean(file, *at))
			*at += PAGE;
		pages_drop(file, from, *at);
		dropped += (*at - from) / PAGE;
		if (*at < stop)
			*at += PAGE;
	}
	if (dropped < most)
		*at = end;
	return dropped;
}
