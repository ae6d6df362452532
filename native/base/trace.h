/* SPDX-License-Identifier: Apache-2.0
 *
 * trace.h - a ring of fault events; costs a load and a branch while it is off.  Must not know what
 * it records.
 */
#ifndef DAXFAULT_TRACE_H
#define DAXFAULT_TRACE_H

#include <pthread.h>
#include <stdatomic.h>

#include "abi/host.h"

struct df_tracer {
	atomic_bool on;
	pthread_mutex_t lock; /* the rest; a leaf */
	struct df_trace *ring;
	uint64_t capacity, first, count;
};

void trace_init(struct df_tracer *tracer);
void trace_destroy(struct df_tracer *tracer);
int trace_resize(struct df_tracer *tracer, uint64_t capacity);		  /* 0: off */
int trace_take(struct df_tracer *tracer, struct df_trace *out, int most); /* the oldest; -> how many */
void trace_add(struct df_tracer *tracer, struct df_trace trace);	  /* sets the time */

/* TRACE(tracer, .kind = ..., ...) */
#define TRACE(tracer, ...) \
	do { \
		if (atomic_load_explicit(&(tracer)->on, memory_order_relaxed)) \
			trace_add(tracer, (struct df_trace){ __VA_ARGS__ }); \
	} while (0)

#endif
