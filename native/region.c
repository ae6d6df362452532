/* SPDX-License-Identifier: Apache-2.0
 *
 * region.c - which addresses of a guest show which bytes of which file: a sorted
 * array a guest, searched in logarithmic time.  Must not touch the guest's memory.
 * Callers hold guest->lock, for writing where the table changes.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

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

static void unlink_file(struct df_region *region)
{
	struct df_file *file = region->file;

	pthread_mutex_lock(&file->lock);
	for (struct df_region **p = &file->mappings; *p; p = &(*p)->next)
		if (*p == region) {
			*p = region->next;
			break;
		}
	fill_leave(region);
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
		uint64_t offset = region->offset;

		unlink_file(region);
		memmove(guest->regions + i, guest->regions + i + 1,
			(guest->nregions - i - 1) * sizeof(*guest->regions));
		guest->nregions--;
		/* There is room for one, and the two sides are disjoint: the first
		 * cannot fail but for memory, nor the second but for memory. */
		if (region->start < start)
			region_add(guest, region->start, start - region->start, file, offset,
				   region->writable);
		if (region_end > end)
			region_add(guest, end, region_end - end, file,
				   offset + (end - region->start), region->writable);
		free(region);
		df_file_put(file);
	}
}

/* mremap(): [from, from + len) now lies at `to`. */
int region_move(struct df_guest *guest, uint64_t from, uint64_t to, uint64_t len)
{
	struct {
		struct df_file *file;
		uint64_t start, len, offset;
		bool writable;
	} *moved = NULL;
	size_t first = find(guest, from), n = 0;
	int error = 0;

	for (size_t i = first; i < guest->nregions && guest->regions[i]->start < from + len; i++)
		n++;
	if (!n)
		return 0;
	moved = calloc(n, sizeof(*moved));
	if (!moved)
		return -ENOMEM;
	for (size_t i = 0; i < n; i++) {
		struct df_region *region = guest->regions[first + i];
		uint64_t start = region->start > from ? region->start : from;
		uint64_t end = region->start + region->len;

		if (end > from + len)
			end = from + len;
		moved[i].file = region->file;
		moved[i].start = start - from + to;
		moved[i].len = end - start;
		moved[i].offset = region->offset + (start - region->start);
		moved[i].writable = region->writable;
		file_get(region->file);
	}
	region_remove(guest, from, from + len);
	region_remove(guest, to, to + len);
	for (size_t i = 0; i < n; i++) {
		int e = region_add(guest, moved[i].start, moved[i].len, moved[i].file,
				   moved[i].offset, moved[i].writable);

		if (e && !error)
			error = e;
		df_file_put(moved[i].file);
	}
	free(moved);
	return error;
}

int region_copy(struct df_guest *to, struct df_guest *from)
{
	for (size_t i = 0; i < from->nregions; i++) {
		const struct df_region *region = from->regions[i];
		int error = region_add(to, region->start, region->len, region->file,
				       region->offset, region->writable);

		if (error)
			return error;
	}
	return 0;
}
