/* SPDX-License-Identifier: Apache-2.0
 *
 * region.c - the regions of a guest, each a range of addresses that maps a range of a file: a
 * sorted array per guest, with binary search.  Must not touch the guest's memory.  Callers hold
 * space->lock, for writing where the table changes.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "space.h"

/* index of the first region that ends after `address` */
static size_t find(const struct df_space *space, uint64_t address)
{
	size_t low = 0, high = space->nregions;

	while (low < high) {
		size_t middle = low + (high - low) / 2;
		const struct df_region *region = space->regions[middle];

		if (region->start + region->len <= address)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

struct df_region *region_find(struct df_space *space, uint64_t address)
{
	size_t i = find(space, address);

	if (i < space->nregions && space->regions[i]->start <= address)
		return space->regions[i];
	return NULL;
}

struct df_region *region_next(struct df_space *space, uint64_t address)
{
	size_t i = find(space, address);

	return i < space->nregions ? space->regions[i] : NULL;
}

static void link_file(struct df_region *region)
{
	struct df_file *file = region->file;
	struct file_mappings *mappings = file->mappings;

	file_get(file);
	GUARD(&file->lock);
	region->next = mappings->first;
	mappings->first = region;
	mappings->n++;
	mappings->nwritable += region->writable;
}

static void unlink_file(struct df_region *region, uint64_t start, uint64_t end)
{
	struct df_file *file = region->file;
	struct file_mappings *mappings = file->mappings;

	GUARD(&file->lock);
	for (struct df_region **p = &mappings->first; *p; p = &(*p)->next)
		if (*p == region) {
			*p = region->next;
			break;
		}
	poison_forget(file, region->space, start, end);
	mappings->n--;
	mappings->nwritable -= region->writable;
	if (!mappings->n) {
		free(mappings->poisons); /* empty, because each poisoned page is inside a region */
		mappings->poisons = NULL;
		mappings->poison_slots = 0;
	}
}

int region_add(struct df_space *space, uint64_t start, uint64_t len, struct df_file *file,
	       uint64_t offset, bool writable)
{
	struct df_region *region;
	size_t i;

	if (!len || (start | len | offset) % PAGE || start + len < start || offset + len < offset ||
	    offset + len > CACHE_SIZE)
		return -EINVAL;
	i = find(space, start);
	if (i < space->nregions && space->regions[i]->start < start + len)
		return -EEXIST;
	if (space->nregions == space->room) {
		size_t room = space->room ? space->room * 2 : 16;
		struct df_region **grown = realloc(space->regions, room * sizeof(*grown));

		if (!grown)
			return -ENOMEM;
		space->regions = grown;
		space->room = room;
	}
	region = calloc(1, sizeof(*region));
	if (!region)
		return -ENOMEM;
	region->space = space;
	region->start = start;
	region->len = len;
	region->file = file;
	region->offset = offset;
	region->writable = writable;
	region->around = 16 * PAGE;
	region->expected = start;
	region->tracked = writable && space->tracks;
	region->store_around = PAGE;
	region->store_expected = start;
	memmove(space->regions + i + 1, space->regions + i,
		(space->nregions - i) * sizeof(*space->regions));
	space->regions[i] = region;
	space->nregions++;
	link_file(region);
	return 0;
}

static bool shows_file(const struct df_space *space, const struct df_file *file)
{
	for (size_t i = 0; i < space->nregions; i++)
		if (space->regions[i]->file == file)
			return true;
	return false;
}

/* Remove [start, end); the parts of a region on either side stay. */
void region_remove(struct df_space *space, uint64_t start, uint64_t end, struct df_region **removed)
{
	size_t i;

	while ((i = find(space, start)) < space->nregions && space->regions[i]->start < end) {
		struct df_region *region = space->regions[i];
		uint64_t region_end = region->start + region->len;

		memmove(space->regions + i, space->regions + i + 1,
			(space->nregions - i - 1) * sizeof(*space->regions));
		space->nregions--;
		/* There is room for one, and the two sides are disjoint: they can fail only for
		 * lack of memory.  They are added before the whole is removed, so that a
		 * write-back never misses a writable mapping. */
		if (region->start < start)
			region_add(space, region->start, start - region->start, region->file,
				   region->offset, region->writable);
		if (region_end > end)
			region_add(space, end, region_end - end, region->file,
				   region->offset + (end - region->start), region->writable);
		unlink_file(region, start, end);
		region->last = !shows_file(space, region->file);
		region->next = *removed;
		*removed = region;
	}
}

void region_free(struct df_region *region)
{
	file_put(region->file);
	free(region);
}

/* Add a region in `to` at `start` that maps what `region` maps from `at` on, with its poison. */
static int add_like(struct df_space *to, uint64_t start, uint64_t len,
		    const struct df_region *region, uint64_t at, struct df_poison **retry)
{
	int error = region_add(to, start, len, region->file, region->offset + (at - region->start),
			       region->writable);

	if (!error) {
		GUARD(&region->file->lock);
		poison_copy(region, region_find(to, start), retry);
	}
	return error;
}

/* mremap(): [from, from + len) is now at `to`. */
void region_move(struct df_space *space, uint64_t from, uint64_t to, uint64_t len,
		 struct df_region **removed, struct df_poison **retry)
{
	uint64_t at = from, end;
	size_t i;

	region_remove(space, to, to + len, removed);
	for (; at < from + len && (i = find(space, at)) < space->nregions &&
	       space->regions[i]->start < from + len;
	     at = end) {
		const struct df_region *region = space->regions[i];

		if (at < region->start)
			at = region->start;
		end = region->start + region->len;
		if (end > from + len)
			end = from + len;
		add_like(space, at - from + to, end - at, region, at, retry);
	}
	region_remove(space, from, from + len, removed);
}

int region_copy(struct df_space *to, struct df_space *from, struct df_poison **retry)
{
	for (size_t i = 0; i < from->nregions; i++) {
		const struct df_region *region = from->regions[i];
		int error = add_like(to, region->start, region->len, region, region->start, retry);

		if (error)
			return error;
	}
	return 0;
}
