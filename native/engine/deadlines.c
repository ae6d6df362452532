/* SPDX-License-Identifier: Apache-2.0
 *
 * deadlines.c - the thread that keeps every deadline: of answers, of page sources, and
 * of forked guests.  Must not choose the answer to a late fault.
 */
#include <errno.h>

#include "internal.h"

#define TICK_NS 20000000u   /* how late a deadline may be kept */
#define CHILD_NS 500000000u /* the interval of checks of forked guests */

/* A file with a pending read that this round has not checked yet; a new reference. */
static struct df_file *next_reading(struct df_engine *engine, uint64_t now)
{
	struct df_file *file = NULL;

	GUARD(&engine->lock);
	for (struct df_fill *fill = engine->fills; fill; fill = fill->next_all) {
		if (fill->looked == now || (file && fill->file != file))
			continue;
		if (!file)
			file_get(fill->file);
		file = fill->file;
		fill->looked = now;
	}
	return file;
}

/* Faults whose page source did not answer in time. */
static void fail_late(struct df_engine *engine, struct df_file *file, uint64_t now)
{
	struct df_fault *late;

	if (pthread_mutex_trylock(&file->lock))
		return; /* busy: at the next tick.  Others have deadlines too */
	late = fill_take_late(file, engine, now);
	while (late) {
		struct df_fault *fault = late;

		late = fault->next;
		engine_fail(fault, file, DF_REASON_TIMEOUT, ETIMEDOUT);
		fault_free(fault);
	}
	pthread_mutex_unlock(&file->lock);
}

static void keep_sources(struct df_engine *engine, uint64_t now)
{
	struct df_file *file;

	if (!atomic_load(&engine->parked))
		return;
	while ((file = next_reading(engine, now))) {
		fail_late(engine, file, now);
		file_put(file);
	}
}

/* The newest forked guest older than this one; a new reference. */
static struct df_guest *next_child(struct df_engine *engine, uint64_t id)
{
	struct df_guest *guest;

	GUARD(&engine->lock);
	for (guest = engine->guests; guest; guest = guest->next)
		if (guest->child && guest->space.id < id)
			break;
	if (guest)
		guest_get(guest);
	return guest;
}

/* No event reports the end of a forked guest, so poll.  The check may wait for the lock of its
 * address space, so no lock of ours is held. */
static void keep_children(struct df_engine *engine)
{
	uint64_t id = UINT64_MAX;
	struct df_guest *child;

	while ((child = next_child(engine, id))) {
		id = child->space.id;
		if (!space_alive(&child->space))
			df_guest_free(child);
		guest_put(child);
	}
}

void *deadlines_run(void *arg)
{
	struct df_engine *engine = arg;
	uint64_t looked = 0;

	pthread_mutex_lock(&engine->lock);
	while (!engine->stopping) {
		bool busy = engine->npending || atomic_load(&engine->parked);
		uint64_t now = now_ns(), until = now + (busy ? TICK_NS : CHILD_NS);

		clock_wait(&engine->tick, &engine->lock, until);
		pthread_mutex_unlock(&engine->lock);
		now = now_ns();
		failures_keep(engine, now);
		keep_sources(engine, now);
		if (now - looked > CHILD_NS) {
			looked = now;
			keep_children(engine);
		}
		pthread_mutex_lock(&engine->lock);
	}
	pthread_mutex_unlock(&engine->lock);
	return NULL;
}
