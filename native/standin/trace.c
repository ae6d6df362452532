/* SPDX-License-Identifier: Apache-2.0
 *
 * trace.c - records page fault events, as tracing in a guest kernel would.
 *
 * Owns a ring of events for each vCPU.  Costs a load while it is off.  While it is on, each event
 * holds a lock for a few instructions, with the vCPU's signals blocked, so that a handler never
 * waits for the code that it interrupted.
 */
#include <pthread.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "standin.h"

enum {
	RING = 8192, /* events of one vCPU; the oldest are overwritten */
	LINE_EVENTS = 1024,
};

struct event {
	uint64_t ns; /* CLOCK_MONOTONIC */
	uint64_t gva;
	uint32_t token;
	int16_t task;
	uint8_t what;
};

static struct ring {
	struct event *events;
	uint64_t written, read;
} rings[VCPU_COUNT];

static atomic_bool on;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* On: clears the events.  Off: keeps them. */
void trace_set(bool wanted)
{
	int i;

	GUARD(&lock);
	for (i = 0; wanted && i < VCPU_COUNT; i++) {
		if (!rings[i].events)
			rings[i].events = calloc(RING, sizeof(struct event));
		if (!rings[i].events)
			abort();
		rings[i].read = rings[i].written;
	}
	on = wanted;
}

/* `task` is -1 if the event has no task. */
void trace(const struct vcpu *v, int task, enum trace_what what, uint32_t token, uint64_t gva)
{
	struct ring *r = &rings[v->id];

	if (!atomic_load_explicit(&on, memory_order_relaxed))
		return;
	GUARD(&lock);
	r->events[r->written++ % RING] = (struct event){
		.ns = now_ns(),
		.gva = gva,
		.token = token,
		.task = (int16_t)task,
		.what = (uint8_t)what,
	};
}

void trace_task(const struct task *t, enum trace_what what, uint32_t token, uint64_t gva)
{
	trace(t->vcpu, (int)t->id, what, token, gva);
}

/* ------------------------------------------------------------------ dump */

static void dump_event(struct json *j, int vcpu, const struct event *e)
{
	static const char *const names[TRACE_COUNT] = {
		[TRACE_NOT_PRESENT] = "not_present",
		[TRACE_DECLINED] = "declined",
		[TRACE_PARK] = "park",
		[TRACE_READY] = "ready",
		[TRACE_WAKE] = "wake",
		[TRACE_EARLY] = "early",
		[TRACE_ERROR] = "error",
		[TRACE_SIGBUS] = "sigbus",
		[TRACE_FIXUP] = "fixup",
		[TRACE_PANIC] = "panic",
		[TRACE_SWITCH] = "switch",
		[TRACE_IDLE] = "idle",
		[TRACE_ACK] = "ack",
		[TRACE_IRQ] = "irq",
		[TRACE_DEFERRED] = "deferred",
		[TRACE_WAKE_ALL] = "wake_all",
		[TRACE_BEGIN] = "begin",
		[TRACE_END] = "end",
		[TRACE_KILLED] = "killed",
		[TRACE_POISON] = "poison",
	};

	json_object_begin(j, NULL);
	json_uint(j, "ns", e->ns);
	json_int(j, "vcpu", vcpu);
	json_int(j, "task", e->task);
	json_text(j, "what", names[e->what]);
	json_uint(j, "token", e->token);
	json_address(j, "gva", e->gva);
	json_object_end(j);
}

/* Print and remove up to LINE_EVENTS events of a vCPU; false when there are none. */
static bool dump_line(int vcpu, uint64_t *lost)
{
	struct ring *r = &rings[vcpu];
	struct event events[LINE_EVENTS];
	unsigned int n = 0, i;
	struct answer answer;
	struct json *j;

	pthread_mutex_lock(&lock);
	if (r->written - r->read > RING) {
		*lost += r->written - r->read - RING;
		r->read = r->written - RING;
	}
	while (n < LINE_EVENTS && r->read < r->written)
		events[n++] = r->events[r->read++ % RING];
	pthread_mutex_unlock(&lock);

	if (!n)
		return false;
	j = answer_begin(&answer, "trace");
	json_list_begin(j, "events");
	for (i = 0; i < n; i++)
		dump_event(j, vcpu, &events[i]);
	json_list_end(j);
	answer_end(&answer);
	return true;
}

/* The events since the last dump, one vCPU after the other. */
void trace_dump(void)
{
	uint64_t lost = 0;
	struct answer answer;
	struct json *j;
	int vcpu;

	for (vcpu = 0; vcpu < VCPU_COUNT; vcpu++) {
		while (dump_line(vcpu, &lost))
			;
	}
	j = answer_begin(&answer, "traced");
	json_uint(j, "lost", lost);
	answer_end(&answer);
}
