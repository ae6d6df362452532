/* SPDX-License-Identifier: Apache-2.0
 *
 * adopt.c - guests that are ordinary programs: they map what and where they want, and
 * the kernel is asked what that is.  Owns finding it, and telling when a file is no longer
 * mapped.  Must not install pages, nor decide what a mapping may show: whoever holds a
 * page cache's descriptor was given it.
 */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "engine/internal.h"
#include "base/maps.h"

#define ADOPT_TRIES 100		/* of a program that maps anew as often as we look */

struct df_left {
	struct df_left *next;
	struct df_unmapped record;
};

/* What of the area lies in [start, end). */
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

/* The kernel says what is there now: what we knew of before is gone, unless it is the same,
 * poisoned pages and all. */
static int know(struct df_guest *guest, const struct maps_area *area, struct df_file *file)
{
	uint64_t at = area->start, next;
	int error = atomic_load(&guest->dead) ? -ESRCH : 0;

	for (; !error && at < area->end; at = next) {
		const struct df_region *region = region_next(guest, at);

		if (region && region->start <= at) {
			next = region->start + region->len;
			if (shows(region, at, area, file))
				continue;
		} else {
			next = region ? region->start : area->end;
		}
		if (next > area->end)
			next = area->end;
		region_remove(guest, at, next);
		error = region_add(guest, at, next - at, file, area->offset + (at - area->start),
				   area->shared);
	}
	return error;
}

/* A mapping that could not be registered shows nobody's bytes yet, and must show none. */
static int serve(struct df_guest *guest, const struct maps_area *area, struct df_file *file)
{
	int modes = DF_UFFD_MISSING | DF_UFFD_MINOR;
	uint64_t ioctls;
	int error;

	/* A private mapping stores into copies of its own: nothing to write back. */
	if (area->shared && guest->tracks)
		modes |= DF_UFFD_WP;
	pthread_rwlock_wrlock(&guest->lock);
	error = know(guest, area, file);
	pthread_rwlock_unlock(&guest->lock);
	if (!error)
		error = uffd_register(guest->uffd, area->start, area->end - area->start, modes, &ioctls);
	if (error)
		df_guest_unmap(guest, area->start, area->end - area->start);
	return error;
}

/* Nobody tells of what becomes of a mapping before it is registered: somebody else's may be
 * at its address by then. */
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

static void leave_alone(struct df_guest *guest, const struct maps_area *area)
{
	uffd_unregister(guest->uffd, area->start, area->end - area->start);
	df_guest_unmap(guest, area->start, area->end - area->start);
	uffd_wake(guest->uffd, area->start, area->end - area->start);
}

int df_guest_adopt(struct df_guest *guest, int pid, uint64_t start, uint64_t len)
{
	int maps = maps_of_process(pid), found = 0, error = 0, failed = 0, tries = 0;
	uint64_t end = start + len;
	struct maps_area area;

	if (maps < 0)
		return maps;
	if ((start | len) % PAGE || end < start)
		error = -EINVAL;
	if (!error)
		error = guest_catch_up(guest);
	while (!error && start < end && !(error = maps_find(maps, start, &area)) &&
	       area.start < end) {
		struct df_file *file = file_of_cache(area.device, area.inode);
		uint64_t from = start;
		int refused;

		start = area.end;
		if (!file)
			continue;
		clip(&area, from, end);
		refused = serve(guest, &area, file);
		if (!refused && !still_there(maps, &area)) {
			leave_alone(guest, &area);
			start = area.start;
			error = ++tries < ADOPT_TRIES ? 0 : -EAGAIN;
		} else if (refused) {
			failed = refused;	/* the others are to be served all the same */
		} else {
			found++;
		}
		df_file_put(file);
	}
	close(maps);
	if (error && error != -ENOENT)
		return error;
	return failed ? failed : found;
}

bool program_discover(struct df_guest *guest, uint64_t page, int tid)
{
	struct df_file *file = NULL;
	struct maps_area area;
	int maps, error;

	/* mremap() in place raises no event (mm/mremap.c, expand_vma_in_place()), nor does
	 * MREMAP_DONTUNMAP for what it leaves behind. */
	if (!(guest->options.flags & DF_GUEST_PROGRAM) || !tid)
		return false;
	maps = maps_open(tid);
	if (maps < 0)
		return false;
	error = maps_find(maps, page, &area);
	close(maps);
	if (!error && area.start <= page)
		file = file_of_cache(area.device, area.inode);
	if (!file)
		return false;

	pthread_rwlock_wrlock(&guest->lock);
	for (size_t i = 0; i < guest->nregions; i++) {
		const struct df_region *region = guest->regions[i];
		uint64_t region_end = region->start + region->len;

		if (region_end <= page && region_end > area.start)
			clip(&area, region_end, area.end);
		else if (region->start > page && region->start < area.end)
			clip(&area, area.start, region->start);
	}
	error = atomic_load(&guest->dead) || region_find(guest, page)
		? -ESRCH
		: region_add(guest, area.start, area.end - area.start, file, area.offset,
			     area.shared);
	pthread_rwlock_unlock(&guest->lock);
	df_file_put(file);
	return !error;
}

/* Adds an id that is not there yet; -> how many there are, of which `most` at most are kept. */
static int add_id(uint64_t *ids, int n, int most, uint64_t id)
{
	for (int i = 0; i < n && i < most; i++)
		if (ids[i] == id)
			return n;
	if (n < most)
		ids[n] = id;
	return n + 1;
}

int df_guest_files(struct df_guest *guest, uint64_t *ids, int most)
{
	int n = 0;

	pthread_rwlock_rdlock(&guest->lock);
	for (size_t i = 0; i < guest->nregions; i++)
		n = add_id(ids, n, most, guest->regions[i]->file->id);
	pthread_rwlock_unlock(&guest->lock);
	return n;
}

int df_process_files(int pid, uint64_t start, uint64_t len, uint64_t *ids, int most)
{
	int maps = maps_of_process(pid), n = 0, error = 0;
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
		df_file_put(file);
	}
	close(maps);
	return error && error != -ENOENT ? error : n;
}

int df_guest_alive(struct df_guest *guest)
{
	return uffd_alive(guest->uffd);
}

void program_unmapped(struct df_guest *guest, struct df_file *file)
{
	struct df_engine *engine = guest->engine;
	struct df_left *left;
	uint64_t one = 1;

	if (!(guest->options.flags & DF_GUEST_PROGRAM) || atomic_load(&guest->dead))
		return;
	for (size_t i = 0; i < guest->nregions; i++)
		if (guest->regions[i]->file == file)
			return;
	left = malloc(sizeof(*left));
	if (!left)
		return;		/* it is let go when the guest is */
	left->record = (struct df_unmapped){ guest->id, file->id };
	pthread_mutex_lock(&engine->lock);
	left->next = engine->left;
	engine->left = left;
	pthread_mutex_unlock(&engine->lock);
	if (write(engine->left_fd, &one, sizeof(one)) < 0) {
		/* the counter is full: its reader is awake */
	}
}

int df_engine_unmapped_fd(struct df_engine *engine)
{
	return engine->left_fd;
}

int df_engine_unmapped(struct df_engine *engine, struct df_unmapped *out, int most)
{
	uint64_t value;
	int n = 0;

	if (read(engine->left_fd, &value, sizeof(value)) < 0) {
		/* nothing new since the last call; there may be some left over */
	}
	pthread_mutex_lock(&engine->lock);
	while (engine->left && n < most) {
		struct df_left *left = engine->left;

		out[n++] = left->record;
		engine->left = left->next;
		free(left);
	}
	pthread_mutex_unlock(&engine->lock);
	return n;
}

void program_free(struct df_engine *engine)
{
	while (engine->left) {
		struct df_left *next = engine->left->next;

		free(engine->left);
		engine->left = next;
	}
}
