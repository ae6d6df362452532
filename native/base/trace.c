/* SPDX-License-Identifier: Apache-2.0
 *
 * trace.c - the ring of trace.h.  A full ring drops its oldest entry.
 */
#include <errno.h>
#include <stdlib.h>

#include "cleanup.h"
#include "clock.h"
#include "trace.h"

void trace_init(struct df_tracer *tracer)
{
	pthread_mutex_init(&tracer->lock, NULL);
}

void trace_destroy(struct df_tracer *tracer)
{
	free(tracer->ring);
	pthread_mutex_destroy(&tracer->lock);
}

void trace_add(struct df_tracer *tracer, struct df_trace trace)
{
	GUARD(&tracer->lock);
	/* under the lock, so that the ring is in order of time */
	trace.time_ns = now_ns();
	if (tracer->capacity) {
		tracer->ring[(tracer->first + tracer->count) % tracer->capacity] = trace;
		if (tracer->count < tracer->capacity)
			tracer->count++;
		else
			tracer->first = (tracer->first + 1) % tracer->capacity;
	}
}

int trace_resize(struct df_tracer *tracer, uint64_t capacity)
{
	struct df_trace *ring = NULL, *old;

	if (capacity > DF_TRACE_MAX)
		return -EINVAL;
	if (capacity) {
		ring = calloc(capacity, sizeof(*ring));
		if (!ring)
			return -ENOMEM;
	}
	pthread_mutex_lock(&tracer->lock);
	old = tracer->ring;
	tracer->ring = ring;
	tracer->capacity = capacity;
	tracer->first = tracer->count = 0;
	pthread_mutex_unlock(&tracer->lock);
	free(old);
	atomic_store(&tracer->on, capacity > 0);
	return 0;
}

int trace_take(struct df_tracer *tracer, struct df_trace *out, int most)
{
	int n = 0;

	GUARD(&tracer->lock);
	for (; n < most && tracer->count; tracer->count--) {
		out[n++] = tracer->ring[tracer->first];
		tracer->first = (tracer->first + 1) % tracer->capacity;
	}
	return n;
}
