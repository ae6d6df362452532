/* SPDX-License-Identifier: Apache-2.0
 *
 * trace.h - what happened to faults, for who asks for it; a load and a branch for who
 * does not.
 */
#ifndef DAXFAULT_TRACE_H
#define DAXFAULT_TRACE_H

#include <pthread.h>
#include <stdatomic.h>

#include "abi/abi.h"

struct df_tracer {
	atomic_bool on;
	pthread_mutex_t lock;		/* the rest; a leaf */
	struct df_trace *ring;
	uint64_t capacity, first, count;
};

void trace_init(struct df_tracer *tracer);
void trace_destroy(struct df_tracer *tracer);
void trace_add(struct df_tracer *tracer, struct df_trace trace);	/* fills in the time */

/* TRACE(engine, .kind = ..., ...) */
#define TRACE(engine, ...) \
	do { \
		if (atomic_load_explicit(&(engine)->tracer.on, memory_order_relaxed)) \
			trace_add(&(engine)->tracer, (struct df_trace){ __VA_ARGS__ }); \
	} while (0)

#endif
