/* SPDX-License-Identifier: Apache-2.0
 *
 * fill.c - pending reads, and the faults that wait for them.  Must not read, nor install pages in
 * guests.
 *
 * A fill owns its range from fill_begin() to fill_end(): a second fault in it waits, so that a page
 * is read once.  A stale fill, whose file has changed, owns no range.
 */
#include "internal.h"

#define STALE_MAX 2 /* abandoned reads of one page */

struct df_fill *fill_find(struct df_file *file, uint64_t offset)
{
	struct df_fill *fill, *stale = NULL;
	unsigned n = 0;

	for (fill = file->waits->fills; fill; fill = fill->next) {
		if (offset < fill->start || offset - fill->start >= fill->len)
			continue;
		if (!fill->stale)
			return fill;
		stale = fill;
		n++;
	}
	/* A hung source must not occupy one more thread at each change. */
	return n < STALE_MAX ? NULL : stale;
}

void fill_narrow(struct df_file *file, uint64_t offset, uint64_t *start, uint64_t *end)
{
	bool filled;

	for (uint64_t at = *start; at < offset; at += PAGE)
		if (pages_filled(file, at))
			*start = at + PAGE;
	*end = pages_run(file, offset, *end, &filled);
	for (struct df_fill *other = file->waits->fills; other; other = other->next) {
		uint64_t other_end = other->start + other->len;

		if (other->stale)
			continue;
		if (other_end <= offset && other_end > *start)
			*start = other_end;
		if (other->start > offset && other->start < *end)
			*end = other->start;
	}
}

struct df_fill *fill_begin(struct df_engine *engine, struct df_file *file, uint64_t offset,
			   uint64_t start, uint64_t end)
{
	struct df_fill *fill = calloc(1, sizeof(*fill));

	if (!fill)
		return NULL;
	fill_narrow(file, offset, &start, &end);
	fill->file = file;
	file_get(file);
	fill->start = start;
	fill->len = end - start;
	fill->next = file->waits->fills;
	file->waits->fills = fill;
	fill->engine = engine;
	pthread_mutex_lock(&engine->lock);
	fill->next_all = engine->fills;
	engine->fills = fill;
	pthread_mutex_unlock(&engine->lock);
	TRACE(&engine->tracer, .kind = DF_TRACE_FILL_BEGIN, .file = file->id, .offset = start,
	      .vcpu = -1, .value = (uint32_t)fill->len);
	return fill;
}

void fill_wait(struct df_fill *fill, struct df_fault *fault)
{
	struct df_engine *engine = fault->guest->engine;

	fault->deadline = fault->arrived + engine->options.source_ns;
	fault->next = fill->waiters;
	fill->waiters = fault;
	atomic_fetch_add(&engine->parked, 1);
}

static struct df_fault *take_waiters(struct df_fill *fill)
{
	struct df_fault *waiters = fill->waiters;

	fill->waiters = NULL;
	for (struct df_fault *fault = waiters; fault; fault = fault->next)
		atomic_fetch_sub(&fault->guest->engine->parked, 1);
	return waiters;
}

struct df_fault *fill_end(struct df_fill *fill)
{
	struct df_engine *engine = fill->engine;
	struct df_fill **p;

	for (p = &fill->file->waits->fills; *p != fill; p = &(*p)->next)
		;
	*p = fill->next;
	pthread_mutex_lock(&engine->lock);
	for (p = &engine->fills; *p != fill; p = &(*p)->next_all)
		;
	*p = fill->next_all;
	pthread_mutex_unlock(&engine->lock);
	return take_waiters(fill);
}

/* Whether this thread already waits for this page: a signal made it repeat the access, which may
 * happen any number of times.  "Not present" may be deliverable now. */
bool fill_awaited(const struct df_fill *fill, const struct df_fault *fault)
{
	struct df_fault *w = fill->waiters;

	if (fault->apf.token || fault->retry || !fault->tid)
		return false;
	while (w && (w->guest != fault->guest || w->tid != fault->tid || w->retry ||
		     w->offset != fault->offset ||
		     (!w->apf.token && (w->address != fault->address || w->write != fault->write))))
		w = w->next;
	if (!w)
		return false;
	if (w->apf.token) {
		apf_again(&w->guest->apf, w->apf.vcpu, w->apf.token);
		TRACE(&w->guest->engine->tracer, .kind = DF_TRACE_HALT, .guest = w->guest->space.id,
		      .address = w->address, .offset = w->offset, .tid = w->tid,
		      .vcpu = w->apf.vcpu, .value = DF_WAIT_HALTED);
		return true;
	}
	w->seen = fault->seen;
	w->asked = false;
	if (fill->slow)
		fault_ask(w);
	return true;
}

void fill_slow(struct df_fill *fill)
{
	GUARD(&fill->file->lock);
	fill->slow = true;
	for (struct df_fault *fault = fill->waiters; fault; fault = fault->next)
		fault_ask(fault);
}

/* Release the waiters for bytes from before the change.  They read their own page alone next,
 * which a busy writer invalidates less often. */
void fill_release(struct df_file *file, uint64_t start, uint64_t end)
{
	for (struct df_fill *fill = file->waits->fills; fill; fill = fill->next) {
		struct df_fault *waiters;

		if (fill->start >= end || fill->start + fill->len <= start)
			continue;
		fill->stale = true;
		waiters = take_waiters(fill);
		for (struct df_fault *fault = waiters; fault; fault = fault->next)
			fault->single = true;
		faults_append(&file->waits->released, waiters);
	}
}

/* Release the waiters of a region: their guest's reader decides them again. */
void fill_leave(const struct df_region *region)
{
	struct df_file *file = region->file;

	GUARD(&file->lock);
	for (struct df_fill *fill = file->waits->fills; fill; fill = fill->next) {
		for (struct df_fault **p = &fill->waiters; *p;) {
			struct df_fault *fault = *p;

			if (&fault->guest->space != region->space ||
			    fault->address - region->start >= region->len) {
				p = &fault->next;
				continue;
			}
			*p = fault->next;
			atomic_fetch_sub(&fill->engine->parked, 1);
			fault_again(fault);
		}
	}
}

struct df_fault *fill_take_late(struct df_file *file, const struct df_engine *engine, uint64_t now)
{
	struct df_fault *late = NULL;

	for (struct df_fill *fill = file->waits->fills; fill; fill = fill->next) {
		for (struct df_fault **p = &fill->waiters; *p;) {
			struct df_fault *fault = *p;

			if (fault->guest->engine != engine || fault->deadline > now) {
				p = &fault->next;
				continue;
			}
			*p = fault->next;
			atomic_fetch_sub(&fault->guest->engine->parked, 1);
			fault->next = late;
			late = fault;
		}
	}
	return late;
}

void fill_state(const struct df_file *file, struct df_file_state *out)
{
	for (struct df_fill *fill = file->waits->fills; fill; fill = fill->next) {
		out->fills++;
		for (struct df_fault *fault = fill->waiters; fault; fault = fault->next)
			out->waiting++;
	}
}
