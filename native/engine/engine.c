/* SPDX-License-Identifier: Apache-2.0
 *
 * engine.c - the engine, shared by all guests: its start, its end and its counters.  Must not
 * install pages.
 */
#include <errno.h>
#include <sys/eventfd.h>

#include "internal.h"

#define STOP_NS 2000000000u /* how long the end waits for a hung page source */

int df_engine_new(const struct df_engine_options *options, struct df_engine **out)
{
	struct df_engine *engine = calloc(1, sizeof(*engine));
	int error;

	*out = NULL;
	if (!engine)
		return -ENOMEM;
	engine->options = *options;
	engine->last_pending = &engine->pending;
	engine->next_id = 1;
	pthread_mutex_init(&engine->lock, NULL);
	trace_init(&engine->tracer);
	jobs_limit(engine->options.fill_threads);
	pthread_cond_init(&engine->tick, NULL);
	engine->failures_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	engine->unmapped_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	atomic_init(&engine->spare, eventfd(0, EFD_CLOEXEC));
	error = engine->failures_fd < 0 || engine->unmapped_fd < 0 ? -errno : 0;
	if (!error)
		error = thread_start(&engine->deadlines, deadlines_run, engine, "df-deadlines");
	if (error) {
		if (engine->failures_fd >= 0)
			close(engine->failures_fd);
		if (engine->unmapped_fd >= 0)
			close(engine->unmapped_fd);
		if (engine->spare >= 0)
			close(engine->spare);
		free(engine);
		return error;
	}
	*out = engine;
	return 0;
}

/* false: not in time */
static bool sources_ended(struct df_engine *engine)
{
	uint64_t until = now_ns() + STOP_NS;

	GUARD(&engine->lock);
	while (engine->slow && clock_wait(&engine->tick, &engine->lock, until))
		;
	return !engine->slow;
}

void df_engine_free(struct df_engine *engine)
{
	/* Stop the deadline thread first, because it ends forked guests. */
	pthread_mutex_lock(&engine->lock);
	engine->stopping = true;
	pthread_cond_broadcast(&engine->tick);
	pthread_mutex_unlock(&engine->lock);
	pthread_join(engine->deadlines, NULL);

	pthread_mutex_lock(&engine->lock);
	while (engine->guests) {
		struct df_guest *guest = engine->guests;

		pthread_mutex_unlock(&engine->lock);
		df_guest_free(guest);
		pthread_mutex_lock(&engine->lock);
	}
	pthread_mutex_unlock(&engine->lock);
	failures_free(engine);
	unmapped_free(engine);

	if (!sources_ended(engine))
		return; /* a thread in a hung page source still uses the engine */
	close(engine->failures_fd);
	close(engine->unmapped_fd);
	if (engine->spare >= 0)
		close(engine->spare);
	trace_destroy(&engine->tracer);
	free(engine);
}

void df_engine_counters(struct df_engine *engine, struct df_counters *out)
{
	const uint64_t *from = (const uint64_t *)&engine->counters;
	uint64_t *to = (uint64_t *)out;

	for (size_t i = 0; i < sizeof(*out) / sizeof(*to); i++)
		to[i] = __atomic_load_n(&from[i], __ATOMIC_RELAXED);
}

int df_engine_trace(struct df_engine *engine, uint64_t capacity)
{
	return trace_resize(&engine->tracer, capacity);
}

int df_engine_trace_read(struct df_engine *engine, struct df_trace *out, int most)
{
	return trace_take(&engine->tracer, out, most);
}
