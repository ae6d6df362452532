/* SPDX-License-Identifier: Apache-2.0
 *
 * pages.c - a file's page cache: a memfd, and one bit a page for each of its states.
 * All of it under file->lock.  Must not know what the backing file holds (exposed.c).
 *
 * The host reads and writes the memfd with pread() and pwrite() and never maps it: writing 64 KiB
 * of new pages is twice as fast as faulting them in, and lack of memory is an errno, not a SIGBUS
 * in the host.
 *
 * The page states are kept here, not derived by SEEK_DATA: a guest that touches the memfd before it
 * registers its mapping creates a page of zeros there, which is not filled.  (Guests register for
 * MINOR faults too, so other guests never see such a page: it is filled before it is mapped.)
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cache.h"

static inline bool bit(const uint64_t *map, uint64_t i)
{
	return map[i / 64] >> (i % 64) & 1;
}

static inline uint64_t page_in_chunk(uint64_t offset)
{
	return (offset & (CHUNK_SIZE - 1)) / PAGE;
}

/* index of the first chunk that ends after `offset` */
static size_t find(const struct df_file *file, uint64_t offset)
{
	uint64_t index = offset / CHUNK_SIZE;
	size_t low = 0, high = file->nchunks;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (file->chunks[middle]->index < index)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

struct df_chunk *pages_chunk(struct df_file *file, uint64_t offset)
{
	size_t i = find(file, offset);

	return i < file->nchunks && file->chunks[i]->index == offset / CHUNK_SIZE ? file->chunks[i]
										  : NULL;
}

static struct df_chunk *make_chunk(struct df_file *file, uint64_t offset)
{
	struct df_chunk **grown, *chunk = pages_chunk(file, offset);
	size_t low = find(file, offset);

	if (chunk)
		return chunk;
	grown = realloc(file->chunks, (file->nchunks + 1) * sizeof(*grown));
	if (!grown)
		return NULL;
	file->chunks = grown;
	chunk = calloc(1, sizeof(*chunk));
	if (!chunk)
		return NULL;
	chunk->index = offset / CHUNK_SIZE;
	chunk->known = known_new(file->id, chunk->index, file->size);
	if (!chunk->known) {
		free(chunk);
		return NULL;
	}
	for (int state = 0; state < PAGE_STATES; state++)
		chunk->pages[state] = state == PAGE_EXPOSED ? chunk->known->exposed
							    : chunk->bits[state];
	memmove(grown + low + 1, grown + low, (file->nchunks - low) * sizeof(*grown));
	grown[low] = chunk;
	file->nchunks++;
	return chunk;
}

/* A guest with write access can also remove pages from the memfd, by ftruncate(2) or
 * FALLOC_FL_PUNCH_HOLE; they read as zeros then.  Drops those of a range that was read; ->
 * whether there were any. */
static bool lost(struct df_file *file, const char *bytes, uint64_t offset, uint64_t len)
{
	uint64_t end = offset + len, next;
	bool some = false;

	for (; offset < end; bytes += next - offset, offset = next) {
		next = PAGE_DOWN(offset) + PAGE < end ? PAGE_DOWN(offset) + PAGE : end;
		if (*bytes || memcmp(bytes, bytes + 1, next - offset - 1) ||
		    pages_present(file, PAGE_DOWN(offset)))
			continue;
		pages_drop(file, PAGE_DOWN(offset), PAGE_DOWN(offset) + PAGE);
		some = true;
	}
	return some;
}

int pages_read(struct df_file *file, char *to, uint64_t offset, uint64_t len)
{
	uint64_t done = 0;

	while (done < len) {
		ssize_t n = pread(file->cache, to + done, len - done, (off_t)(offset + done));

		if (n < 0)
			return -errno;
		if (!n) {
			pages_drop(file, PAGE_DOWN(offset + done), PAGE_UP(offset + len));
			file_fit(file);
			return -ESTALE;
		}
		done += (uint64_t)n;
	}
	return lost(file, to, offset, len) ? -ESTALE : 0;
}

int pages_write(struct df_file *file, const char *from, uint64_t offset, uint64_t len)
{
	while (len) {
		ssize_t n = pwrite(file->cache, from, len, (off_t)offset);

		if (n <= 0)
			return n < 0 ? -errno : -ENOSPC;
		from += n;
		offset += (uint64_t)n;
		len -= (uint64_t)n;
	}
	return 0;
}

bool pages_in(struct df_file *file, uint64_t offset, enum page_state state)
{
	const struct df_chunk *chunk = pages_chunk(file, offset);

	return chunk && bit(chunk->pages[state], page_in_chunk(offset));
}

bool pages_filled(struct df_file *file, uint64_t offset)
{
	return pages_in(file, offset, PAGE_FILLED);
}

bool pages_present(struct df_file *file, uint64_t offset)
{
	return lseek(file->cache, (off_t)offset, SEEK_DATA) == (off_t)offset;
}

bool pages_next(struct df_file *file, uint64_t *start, uint64_t *end, uint64_t most,
		enum page_state state)
{
	for (size_t c = find(file, *start); c < file->nchunks; c++) {
		const uint64_t *map = file->chunks[c]->pages[state];
		uint64_t base = file->chunks[c]->index * CHUNK_SIZE, i = 0;

		if (*start > base)
			i = page_in_chunk(*start);
		while (i < CHUNK_PAGES && !bit(map, i))
			i += i % 64 == 0 && !map[i / 64] ? 64 : 1;
		if (i >= CHUNK_PAGES)
			continue;
		*start = base + i * PAGE;
		while (i < CHUNK_PAGES && bit(map, i) && base + i * PAGE - *start < most)
			i++;
		*end = base + i * PAGE;
		return true;
	}
	return false;
}

/* Runs and marks go from chunk to chunk: a sparse file may be 8 EiB long, and the
 * lock is held. */
uint64_t pages_run(struct df_file *file, uint64_t offset, uint64_t end, bool *filled)
{
	uint64_t at = PAGE_DOWN(offset);

	*filled = pages_filled(file, at);
	for (size_t c = find(file, at); c < file->nchunks && at < end; c++) {
		const uint64_t *map = file->chunks[c]->pages[PAGE_FILLED];
		uint64_t base = file->chunks[c]->index * CHUNK_SIZE, next = base + CHUNK_SIZE;

		if (at < base && *filled)
			return at;
		if (at < base)
			at = base;
		while (at < next && at < end) {
			uint64_t i = page_in_chunk(at);

			if (bit(map, i) != *filled)
				return at;
			at += i % 64 == 0 && map[i / 64] + *filled == 0 ? 64 * PAGE : PAGE;
		}
	}
	return *filled && at < end ? at : end;
}

/* Sets or clears a bit for each page of [start, end); -> the number of bits that changed.  Only
 * filled pages can be exposed, and only exposed ones dirty; other pages are skipped. */
static uint64_t mark(struct df_file *file, uint64_t start, uint64_t end, enum page_state state,
		     bool value)
{
	uint64_t changed = 0;

	for (size_t c = find(file, start); c < file->nchunks && start < end; c++) {
		struct df_chunk *chunk = file->chunks[c];
		uint64_t base = chunk->index * CHUNK_SIZE, next = base + CHUNK_SIZE, stop;
		uint64_t *map = chunk->pages[state];

		if (start < base)
			start = base;
		stop = next < end ? next : end;
		for (; start < stop; start = start / (64 * PAGE) * (64 * PAGE) + 64 * PAGE) {
			uint64_t word = page_in_chunk(start) / 64, first = start / PAGE % 64;
			uint64_t pages = (stop - start + PAGE - 1) / PAGE,
				 mask = ~(uint64_t)0 << first;

			if (pages < 64 - first)
				mask &= ~(~(uint64_t)0 << (first + pages));
			mask &= value ? ~map[word] : map[word];
			if (value && state != PAGE_FILLED)
				mask &= chunk->pages[state == PAGE_DIRTY ? PAGE_EXPOSED
									 : PAGE_FILLED][word];
			map[word] ^= mask;
			changed += (unsigned)__builtin_popcountll(mask);
		}
		start = stop;
	}
	return changed;
}

/* Pages of all files, which evict.c compares with its limit. */
static atomic_uint_fast64_t resident;

uint64_t pages_resident(void)
{
	return atomic_load_explicit(&resident, memory_order_relaxed);
}

static void forget(struct df_file *file, uint64_t pages)
{
	file->resident -= pages;
	atomic_fetch_sub_explicit(&resident, pages, memory_order_relaxed);
}

int pages_fill(struct df_file *file, const char *from, uint64_t start, uint64_t end)
{
	uint64_t pages;
	int error;

	if (!make_chunk(file, start) || !make_chunk(file, end - 1))
		return -ENOMEM;
	error = pages_write(file, from, start, end - start);
	if (error)
		return error;
	pages = mark(file, start, end, PAGE_FILLED, true);
	file->resident += pages;
	atomic_fetch_add_explicit(&resident, pages, memory_order_relaxed);
	return 0;
}

void pages_mark(struct df_file *file, uint64_t start, uint64_t end, enum page_state state, bool value)
{
	mark(file, start, end, state, value);
}

/* Drop the pages of [start, end) and zap every guest's mapping of them:
 * shmem_fallocate(PUNCH_HOLE) is unmap_mapping_range() and a truncation of the
 * range (mm/shmem.c). */
void pages_drop(struct df_file *file, uint64_t start, uint64_t end)
{
	if (start >= end)
		return;
	forget(file, mark(file, start, end, PAGE_FILLED, false));
	for (enum page_state state = PAGE_FILLED + 1; state < PAGE_STATES; state++)
		mark(file, start, end, state, false);
	fallocate(file->cache, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)start,
		  (off_t)(end - start));
}

/* Zero bytes of one page; if it is not filled the source will have them zeroed. */
void pages_zero(struct df_file *file, uint64_t start, uint64_t end)
{
	static const char zeros[DF_PAGE_SIZE];

	if (start < end && pages_filled(file, start) && pages_write(file, zeros, start, end - start))
		pages_drop(file, PAGE_DOWN(start), PAGE_DOWN(start) + PAGE);
}

void pages_free(struct df_file *file)
{
	for (size_t c = 0; c < file->nchunks; c++) {
		known_free(file->chunks[c]->known);
		free(file->chunks[c]);
	}
	free(file->chunks);
	file->chunks = NULL;
	file->nchunks = 0;
	forget(file, file->resident);
}
