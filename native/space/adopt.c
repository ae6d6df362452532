/* SPDX-License-Identifier: Apache-2.0
 *
 * adopt.c - guests that are ordinary programs: reads their mappings from the kernel, and serves
 * them. Must not install pages, nor restrict what a program maps: it received the page cache's
 * descriptor from the host.
 */
#include <errno.h>

#include "base/cleanup.h"
#include "base/maps.h"
#include "space.h"

#define ADOPT_TRIES 100 /* of a program that keeps changing its mappings */

/* Clip the area to [start, end). */
static void clip(struct maps_area *area, uint64_t start, uint64_t end)
{
	if (area->start < start) {
		area->offset += start - area->start;
		area->start = start;
	}
	if (area->end > end)
		area->end = end;
}

static bool shows(const struct df_region *region, uint64_t address, const struct maps_area *area,
		  const struct df_file *file)
{
	return region->file == file && region->writable == area->shared &&
	       region->offset + (address - region->start) == area->offset + (address - area->start);
}

/* Add a region for the area that the kernel shows.  Other regions there are stale and are
 * removed; an equal one stays, with its poisoned pages. */
static int know(struct df_space *space, const struct maps_area *area, struct df_file *file,
		struct df_region **removed)
{
	uint64_t at = area->start, next;
	int error = atomic_load(&space->dead) ? -ESRCH : 0;

	for (; !error && at < area->end; at = next) {
		const struct df_region *region = region_next(space, at);

		if (region && region->start <= at) {
			next = region->start + region->len;
			if (shows(region, at, area, file))
				continue;
		} else {
			next = region ? region->start : area->end;
		}
		if (next > area->end)
			next = area->end;
		region_remove(space, at, next, removed);
		error = region_add(space, at, next - at, file, area->offset + (at - area->start),
				   area->shared);
	}
	return error;
}

/* Register and serve the area.  If that fails, its region is removed. */
static int serve(struct df_space *space, const struct maps_area *area, struct df_file *file,
		 struct df_region **removed)
{
	int modes = DF_UFFD_MISSING | DF_UFFD_MINOR;
	uint64_t ioctls;
	int error;

	/* Stores to a private mapping go to copies, which are not written back. */
	if (area->shared && space->tracks)
		modes |= DF_UFFD_WP;
	pthread_rwlock_wrlock(&space->lock);
	error = know(space, area, file, removed);
	pthread_rwlock_unlock(&space->lock);
	if (!error)
		error = uffd_register(space->uffd, area->start, area->end - area->start, modes,
				      &ioctls);
	if (error)
		space_unmap(space, area->start, area->end, removed);
	return error;
}

/* The kernel sends no events for a mapping before it is registered, so another one may have
 * replaced it. */
static bool still_there(int maps, const struct maps_area *area)
{
	struct maps_area now;
	uint64_t at = area->start;

	while (at < area->end) {
		if (maps_find(maps, at, &now) || now.start > at || now.inode != area->inode ||
		    now.device != area->device || now.shared != area->shared ||
		    now.offset + (at - now.start) != area->offset + (at - area->start))
			return false;
		at = now.end;
	}
	return true;
}

static void leave_alone(struct df_space *space, const struct maps_area *area,
			struct df_region **removed)
{
	uffd_unregister(space->uffd, area->start, area->end - area->start);
	space_unmap(space, area->start, area->end, removed);
	uffd_wake(space->uffd, area->start, area->end - area->start);
}

int space_adopt(struct df_space *space, int pid, uint64_t start, uint64_t len,
		struct df_region **removed)
{
	int maps CLEANUP_CLOSE = maps_of_process(pid), found = 0, error = 0, failed = 0, tries = 0;
	uint64_t end = start + len;
	struct maps_area area;

	if (maps < 0)
		return maps;
	if ((start | len) % PAGE || end < start)
		error = -EINVAL;
	if (!error)
		error = space_catch_up(space);
	while (!error && start < end && !(error = maps_find(maps, start, &area)) && area.start < end) {
		struct df_file *file = file_of_cache(area.device, area.inode);
		uint64_t from = start;
		int refused;

		start = area.end;
		if (!file)
			continue;
		clip(&area, from, end);
		refused = serve(space, &area, file, removed);
		if (!still_there(maps, &area)) {
			if (!refused)
				leave_alone(space, &area, removed);
			start = area.start;
			error = ++tries < ADOPT_TRIES ? 0 : -EAGAIN;
		} else if (refused) {
			failed = refused; /* go on and serve the others */
		} else {
			found++;
		}
		file_put(file);
	}
	if (error && error != -ENOENT)
		return error;
	return failed ? failed : found;
}

bool space_discover(struct df_space *space, uint64_t page, int tid)
{
	int maps CLEANUP_CLOSE = -1, error;
	struct df_file *file = NULL;
	struct maps_area area;

	/* mremap() in place raises no event (mm/mremap.c, expand_vma_in_place()), nor does
	 * MREMAP_DONTUNMAP for what it leaves behind. */
	if (!space->program || !tid)
		return false;
	maps = space_maps(space, tid);
	if (maps < 0)
		return false;
	error = maps_find(maps, page, &area);
	if (!error && area.start <= page)
		file = file_of_cache(area.device, area.inode);
	if (!file)
		return false;

	pthread_rwlock_wrlock(&space->lock);
	for (size_t i = 0; i < space->nregions; i++) {
		const struct df_region *region = space->regions[i];
		uint64_t region_end = region->start + region->len;

		if (region_end <= page && region_end > area.start)
			clip(&area, region_end, area.end);
		else if (region->start > page && region->start < area.end)
			clip(&area, area.start, region->start);
	}
	if (atomic_load(&space->dead))
		error = -ESRCH;
	else if (!region_find(space, page)) /* space_adopt() may have been quicker */
		error = region_add(space, area.start, area.end - area.start, file, area.offset,
				   area.shared);
	pthread_rwlock_unlock(&space->lock);
	file_put(file);
	return !error;
}

/* Add an id unless it is in the array; -> the number of ids, of which at most `most` are stored. */
static int add_id(uint64_t *ids, int n, int most, uint64_t id)
{
	for (int i = 0; i < n && i < most; i++)
		if (ids[i] == id)
			return n;
	if (n < most)
		ids[n] = id;
	return n + 1;
}

int space_files(struct df_space *space, uint64_t *ids, int most)
{
	int n = 0;

	GUARD_READ(&space->lock);
	for (size_t i = 0; i < space->nregions; i++)
		n = add_id(ids, n, most, space->regions[i]->file->id);
	return n;
}

int df_process_files(int pid, uint64_t start, uint64_t len, uint64_t *ids, int most)
{
	int maps CLEANUP_CLOSE = maps_of_process(pid), n = 0, error = 0;
	uint64_t end = start + len;
	struct maps_area area;

	if (maps < 0)
		return maps;
	while (start < end && !(error = maps_find(maps, start, &area)) && area.start < end) {
		struct df_file *file = file_of_cache(area.device, area.inode);

		start = area.end;
		if (!file)
			continue;
		n = add_id(ids, n, most, file->id);
		file_put(file);
	}
	return error && error != -ENOENT ? error : n;
}
