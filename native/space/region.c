/* SPDX-License-Identifier: Apache-2.0
 *
 * region.c - which addresses of a guest show which bytes of which file: a sorted
 * array a guest, searched in logarithmic time.  Must not touch the guest's memory.
 * Callers hold guest->lock, for writing where the table changes.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/internal.h"

/* index of the first region that ends after `address` */
static size_t find(const struct df_guest *guest, uint64_t address)
{
	size_t low = 0, high = guest->nregions;

	while (low < high) {
		size_t middle = low + (high - low) / 2;
		const struct df_region *region = guest->regions[middle];

		if (region->start + region->len <= address)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

struct df_region *region_find(struct df_guest *guest, uint64_t address)
{
	size_t i = find(guest, address);

	if (i < guest->nregions && guest->regions[i]->start <= address)
		return guest->regions[i];
	return NULL;
}

struct df_region *region_next(struct df_guest *guest, uint64_t address)
{
	size_t i = find(guest, address);

	return i < guest->nregions ? guest->regions[i] : NULL;
}

static void link_file(struct df_region *region)
{
	struct df_file *file = region->file;

	file_get(file);
	pthread_mutex_lock(&file->lock);	/* nothing is released: no file_unlock() */
	region->next = file->mappings;
	file->mappings = region;
	file->nmappings++;
	file->nwritable += region->writable;
	pthread_mutex_unlock(&file->lock);
}

static void unlink_file(struct df_region *region, uint64_t start, uint64_t end)
{
	struct df_file *file = region->file;

	pthread_mutex_lock(&file->lock);
	for (struct df_region **p = &file->mappings; *p; p = &(*p)->next)
		if (*p == region) {
			*p = region->next;
			break;
		}
	fill_leave(region);
	poison_forget(file, region->guest, start, end);
	file->nmappings--;
	file->nwritable -= region->writable;
	pthread_mutex_unlock(&file->lock);
}

int region_add(struct df_guest *guest, uint64_t start, uint64_t len, struct df_file *file,
	       uint64_t offset, bool writable)
{
	struct df_region *region;
	size_t i;

	if (!len || (start | len | offset) % PAGE || start + len < start || offset + len < offset ||
	    offset + len > CACHE_SIZE)
		return -EINVAL;
	i = find(guest, start);
	if (i < guest->nregions && guest->regions[i]->start < start + len)
		return -EEXIST;
	if (guest->nregions == guest->room) {
		size_t room = guest->room ? guest->room * 2 : 16;
		struct df_region **grown = realloc(guest->regions, room * sizeof(*grown));

		if (!grown)
			return -ENOMEM;
		guest->regions = grown;
		guest->room = room;
	}
	region = calloc(1, sizeof(*region));
	if (!region)
		return -ENOMEM;
	region->guest = guest;
	region->start = start;
	region->len = len;
	region->file = file;
	region->offset = offset;
	region->writable = writable;
	region->around = 16 * PAGE;
	region->expected = start;
	region->tracked = writable && guest->tracks;
	region->store_around = PAGE;
	region->store_expected = start;
	memmove(guest->regions + i + 1, guest->regions + i,
		(guest->nregions - i) * sizeof(*guest->regions));
	guest->regions[i] = region;
	guest->nregions++;
	link_file(region);
	return 0;
}

/* Forget [start, end); what is left of a region on either side stays. */
void region_remove(struct df_guest *guest, uint64_t start, uint64_t end)
{
	size_t i;

	while ((i = find(guest, start)) < guest->nregions && guest->regions[i]->start < end) {
		struct df_region *region = guest->regions[i];
		uint64_t region_end = region->start + region->len;
		struct df_file *file = region->file;

		memmove(guest->regions + i, guest->regions + i + 1,
			(guest->nregions - i - 1) * sizeof(*guest->regions));
		guest->nregions--;
		/* There is room for one, and the two sides are disjoint: neither can
		 * fail but for memory.  The file has them before it loses the whole,
		 * or a write-back would not know that somebody may store to them. */
		if (region->start < start)
			region_add(guest, region->start, start - region->start, file,
				   region->offset, region->writable);
		if (region_end > end)
			region_add(guest, end, region_end - end, file,
				   region->offset + (end - region->start), region->writable);
		unlink_file(region, start, end);
		free(region);
		program_unmapped(guest, file);
		df_file_put(file);
	}
}

/* Show in `to` at `start` what `region` shows from `at` on, poison and all. */
static int add_like(struct df_guest *to, uint64_t start, uint64_t len,
		    const struct df_region *region, uint64_t at)
{
	int error = region_add(to, start, len, region->file, region->offset + (at - region->start),
			       region->writable);

	if (!error) {
		pthread_mutex_lock(&region->file->lock);
		poison_copy(region, region_find(to, start));
		pthread_mutex_unlock(&region->file->lock);
	}
	return error;
}

/* mremap(): [from, from + len) now lies at `to`. */
int region_move(struct df_guest *guest, uint64_t from, uint64_t to, uint64_t len)
{
	uint64_t at = from, end;
	int error = 0;
	size_t i;

	region_remove(guest, to, to + len);
	for (; at < from + len && (i = find(guest, at)) < guest->nregions &&
	       guest->regions[i]->start < from + len; at = end) {
		const struct df_region *region = guest->regions[i];
		int e;

		if (at < region->start)
			at = region->start;
		end = region->start + region->len;
		if (end > from + len)
			end = from + len;
		e = add_like(guest, at - from + to, end - at, region, at);
		if (e && !error)
			error = e;
	}
	region_remove(guest, from, from + len);
	return error;
}

int region_copy(struct df_guest *to, struct df_guest *from)
{
	for (size_t i = 0; i < from->nregions; i++) {
		const struct df_region *region = from->regions[i];
		int error = add_like(to, region->start, region->len, region, region->start);

		if (error)
			return error;
	}
	return 0;
}
