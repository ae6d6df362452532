/* SPDX-License-Identifier: Apache-2.0
 *
 * fill.c - reading a page source into the page cache, and the faults that wait
 * for it.  Must not install pages in guests, nor decide what EOF means.
 *
 * What the kernel has in memory is read at once, under file->lock.  For the rest
 * a fill owns its range from fill_begin() to the end of fill_run(): a second
 * fault on it waits, so a page is read once.  The bytes lie in the thread's own
 * buffer until they go into the page cache, under file->lock and only when the
 * range has not changed since: a fill that is stale owns nothing any more.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

#define STALE_MAX 2		/* reads of one page left to themselves */

struct df_fill *fill_find(struct df_file *file, uint64_t offset)
{
	struct df_fill *fill, *stale = NULL;
	unsigned n = 0;

	for (fill = file->fills; fill; fill = fill->next) {
		if (offset < fill->start || offset - fill->start >= fill->len)
			continue;
		if (!fill->stale)
			return fill;
		stale = fill;
		n++;
	}
	/* A source that does not answer must not cost a thread at each change. */
	return n < STALE_MAX ? NULL : stale;
}

static pthread_key_t buffer_key;
static pthread_once_t buffer_once = PTHREAD_ONCE_INIT;

static void make_key(void)
{
	pthread_key_create(&buffer_key, free);
}

char *fill_buffer(void)
{
	char *buffer;

	pthread_once(&buffer_once, make_key);
	buffer = pthread_getspecific(buffer_key);
	if (!buffer) {
		buffer = aligned_alloc(PAGE, RANGE);
		pthread_setspecific(buffer_key, buffer);
	}
	return buffer;
}

/* Narrow [*start, *end) to the unfilled pages around `offset` that nobody reads. */
static void narrow(struct df_file *file, uint64_t offset, uint64_t *start, uint64_t *end)
{
	bool filled;

	for (uint64_t at = *start; at < offset; at += PAGE)
		if (pages_filled(file, at))
			*start = at + PAGE;
	*end = pages_run(file, offset, *end, &filled);
	for (struct df_fill *other = file->fills; other; other = other->next) {
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
	narrow(file, offset, &start, &end);
	fill->file = file;
	file_get(file);
	fill->start = start;
	fill->len = end - start;
	fill->next = file->fills;
	file->fills = fill;
	fill->engine = engine;
	pthread_mutex_lock(&engine->lock);
	fill->next_all = engine->fills;
	engine->fills = fill;
	pthread_mutex_unlock(&engine->lock);
	TRACE(&engine->tracer, .kind = DF_TRACE_FILL_BEGIN, .file = file->id, .offset = start, .vcpu = -1,
	      .value = (uint32_t)fill->len);
	return fill;
}

static void fill_end(struct df_fill *fill)
{
	struct df_engine *engine = fill->engine;
	struct df_fill **p;

	for (p = &fill->file->fills; *p != fill; p = &(*p)->next)
		;
	*p = fill->next;
	pthread_mutex_lock(&engine->lock);
	for (p = &engine->fills; *p != fill; p = &(*p)->next_all)
		;
	*p = fill->next_all;
	pthread_mutex_unlock(&engine->lock);
}

void fill_wait(struct df_fill *fill, struct df_fault *fault)
{
	struct df_engine *engine = fault->guest->engine;

	fault->deadline = fault->arrived + engine->options.source_ns;
	fault->next = fill->waiters;
	fill->waiters = fault;
	atomic_fetch_add(&engine->parked, 1);
}

/* This thread waits for this page already: a signal had it repeat the access, which
 * it may do as often as it likes.  It can perhaps be told now. */
bool fill_awaited(const struct df_fill *fill, const struct df_fault *fault)
{
	struct df_fault *w = fill->waiters;

	if (fault->token || fault->mends || !fault->tid)
		return false;
	while (w && (w->guest != fault->guest || w->tid != fault->tid || w->mends ||
		     w->offset != fault->offset ||
		     (!w->token && (w->address != fault->address || w->write != fault->write))))
		w = w->next;
	if (!w)
		return false;
	if (w->token) {
		apf_again(w);
		return true;
	}
	w->seen = fault->seen;
	w->asked = false;
	if (fill->slow)
		apf_ask(w);
	return true;
}

void fill_slow(struct df_fill *fill)
{
	file_lock(fill->file);
	fill->slow = true;
	for (struct df_fault *fault = fill->waiters; fault; fault = fault->next)
		apf_ask(fault);
	file_unlock(fill->file);
}

static struct df_fault *take_waiters(struct df_fill *fill)
{
	struct df_fault *waiters = fill->waiters;

	fill->waiters = NULL;
	for (struct df_fault *fault = waiters; fault; fault = fault->next)
		atomic_fetch_sub(&fault->guest->engine->parked, 1);
	return waiters;
}

static struct df_fault **list_end(struct df_fault **list)
{
	while (*list)
		list = &(*list)->next;
	return list;
}

/* Nobody waits for bytes from before the change.  They ask again for their own
 * page alone, which a busy writer overtakes less easily. */
void fill_release(struct df_file *file, uint64_t start, uint64_t end)
{
	for (struct df_fill *fill = file->fills; fill; fill = fill->next) {
		struct df_fault *waiters;

		if (fill->start >= end || fill->start + fill->len <= start)
			continue;
		fill->stale = true;
		waiters = take_waiters(fill);
		for (struct df_fault *fault = waiters; fault; fault = fault->next)
			fault->single = true;
		*list_end(&file->released) = waiters;
	}
}

/* Decided anew by their guest's reader, once guest->lock is free. */
void fill_leave(struct df_region *region)
{
	for (struct df_fill *fill = region->file->fills; fill; fill = fill->next) {
		for (struct df_fault **p = &fill->waiters; *p;) {
			struct df_fault *fault = *p;

			if (fault->guest != region->guest ||
			    fault->address - region->start >= region->len) {
				p = &fault->next;
				continue;
			}
			*p = fault->next;
			atomic_fetch_sub(&fill->engine->parked, 1);
			guest_retry(fault->guest, fault);
		}
	}
}

static uint64_t page_of(const struct df_fill *fill, uint64_t offset)
{
	return (offset - fill->start) / PAGE;
}

/* Whether this read fails on purpose, and how: 0 or a positive errno. */
static int injected(struct df_fill *fill, bool may_block)
{
	struct source_ask ask = { fill->start, fill->len, may_block, true, { 0 } };
	struct df_file *file = fill->file;
	uint64_t truncate;
	int error;

	if (!source_injects(&file->source))
		return 0;
	pthread_mutex_lock(&file->lock);
	for (const struct df_fault *w = fill->waiters; w; w = w->next) {
		ask.retry &= w->mends != NULL;
		if (w->write)
			ask.stores[page_of(fill, w->offset) / 64] |= (uint64_t)1 << page_of(fill, w->offset) % 64;
	}
	pthread_mutex_unlock(&file->lock);
	error = source_ask(&file->source, &ask, &truncate);
	return truncate != SOURCE_UNTRUNCATED ? -df_file_truncate(file, truncate) : error;
}

/* Put `got` bytes read at `start` into the page cache.  A last page that is partly
 * read is the last of the file, or the rest of it is not known. */
static int settle(struct df_file *file, char *bytes, uint64_t start, uint64_t got)
{
	uint64_t end = start + got, tail = PAGE_UP(end);
	int error = 0;

	if (end >= file->size) {
		memset(bytes + got, 0, tail - end);
		end = tail;
	}
	end = PAGE_DOWN(end);
	if (start < end)
		error = pages_fill(file, bytes, start, end);
	if (start < end && !error)
		evict(file, start, end);
	return error;
}

struct df_fault *fill_run(struct df_fill *fill, bool may_block, bool *wait)
{
	struct df_file *file = fill->file;
	struct df_fault *waiters;
	char *bytes = fill_buffer();
	uint64_t got = 0;
	int error = ENOMEM, bits;

	*wait = false;
	if (bytes)
		error = injected(fill, may_block);
	if (error)
		got = 0;
	else if (may_block)
		got = source_bring(&file->source, bytes, fill->start, fill->len, &error);
	else
		got = source_peek(&file->source, bytes, fill->start, fill->len, &error);
	if (!may_block && error == EAGAIN) {
		*wait = true;
		return NULL;
	}

	file_lock(file);
	bits = file_notice(file);	/* was it the EOF we knew? */
	fill_end(fill);
	waiters = take_waiters(fill);
	COUNT(fill->engine, filled, got);
	TRACE(&fill->engine->tracer, .kind = DF_TRACE_FILL_END, .file = file->id, .offset = fill->start,
	      .vcpu = -1, .value = (uint32_t)got, .error = error);
	if (fill->stale) {
		/* Read across a change: these bytes are neither old nor new. */
		COUNT(fill->engine, retries, 1);
	} else {
		int refused = settle(file, bytes, fill->start, got);

		if (refused)
			error = -refused;
		else if (!error && got < fill->len && fill->start + got < file->size)
			error = EIO;	/* neither bytes, nor EOF, nor an error */
		/* The error may be of another page than the waiter's own: each
		 * asks once more for that page alone before it is believed. */
		for (struct df_fault *fault = waiters; fault && error; fault = fault->next) {
			if (fill->len == PAGE)
				fault->error = bits < 0 ? -bits : error;
			fault->single = true;
		}
	}
	file_unlock(file);
	df_file_put(file);
	free(fill);
	return waiters;
}

/* Under file->lock nothing can change the file meanwhile, so there is no
 * generation to compare. */
int fill_now(struct df_engine *engine, struct df_file *file, uint64_t offset, uint64_t start,
	     uint64_t end)
{
	char *bytes = fill_buffer();
	uint64_t got;
	int error;

	if (!bytes)
		return -ENOMEM;
	narrow(file, offset, &start, &end);
	got = source_peek(&file->source, bytes, start, end - start, &error);
	COUNT(engine, filled, got);
	if (error)
		return -error;
	if (got < end - start && start + got < file->size)
		return -EIO;
	return settle(file, bytes, start, got);
}

/* Faults whose page source did not answer in time. */
void fill_expire(struct df_engine *engine, struct df_file *file, uint64_t now)
{
	struct df_fault *late = NULL;

	if (pthread_mutex_trylock(&file->lock))
		return;		/* busy: at the next tick.  Others have deadlines too */
	for (struct df_fill *fill = file->fills; fill; fill = fill->next) {
		for (struct df_fault **p = &fill->waiters; *p;) {
			struct df_fault *fault = *p;

			if (fault->guest->engine != engine || fault->deadline > now) {
				p = &fault->next;
				continue;
			}
			*p = fault->next;
			atomic_fetch_sub(&engine->parked, 1);
			fault->next = late;
			late = fault;
		}
	}
	while (late) {
		struct df_fault *fault = late;

		late = fault->next;
		engine_fail(fault, file, DF_REASON_TIMEOUT, ETIMEDOUT);
		fault_free(fault);
	}
	file_unlock(file);
}
