/* SPDX-License-Identifier: Apache-2.0
 *
 * unmapped.c - the consequences when a guest unmaps a range: its faults there stop waiting, and
 * Python is notified when a program no longer maps a file.  Must not write back or release the
 * file.
 */
#include "internal.h"

struct unmapped {
	struct unmapped *next;
	struct df_unmapped record;
};

static void report(struct df_guest *guest, const struct df_file *file)
{
	struct df_engine *engine = guest->engine;
	struct unmapped *unmapped = malloc(sizeof(*unmapped));

	if (!unmapped)
		return; /* out of memory: the file is released with the guest */
	unmapped->record = (struct df_unmapped){ guest->space.id, file->id };
	pthread_mutex_lock(&engine->lock);
	unmapped->next = engine->unmapped;
	engine->unmapped = unmapped;
	pthread_mutex_unlock(&engine->lock);
	notify(engine->unmapped_fd);
}

void regions_removed(struct df_region *removed)
{
	for (struct df_region *region = removed, *next; region; region = next) {
		struct df_space *space = region->space;

		next = region->next;
		fill_leave(region);
		if (region->last && space->program && !atomic_load(&space->dead))
			report(guest_of(space), region->file);
		region_free(region);
	}
}

int df_engine_unmapped_fd(struct df_engine *engine)
{
	return engine->unmapped_fd;
}

int df_engine_unmapped(struct df_engine *engine, struct df_unmapped *out, int most)
{
	int n = 0;

	take_notice(engine->unmapped_fd);
	GUARD(&engine->lock);
	while (engine->unmapped && n < most) {
		struct unmapped *unmapped = engine->unmapped;

		out[n++] = unmapped->record;
		engine->unmapped = unmapped->next;
		free(unmapped);
	}
	return n;
}

void unmapped_free(struct df_engine *engine)
{
	while (engine->unmapped) {
		struct unmapped *next = engine->unmapped->next;

		free(engine->unmapped);
		engine->unmapped = next;
	}
}
