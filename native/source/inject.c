/* SPDX-License-Identifier: Apache-2.0
 *
 * inject.c - injects errors and delays into a page source: a failing disk, a slow network, a full
 * file system.
 *
 * Owns the list of injections.  They take effect just before a source is read, and are then handled
 * like real ones.  Must not know who waits for the read.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "source.h"

#define SLICE_NS 2000000u /* the longest time that a delay goes on after its removal */
#define DELAY_MAX_NS (3600ull * 1000000000)

struct df_injection {
	struct df_injection *next;
	struct df_inject_options is;
	uint64_t end;
	uint64_t dice;
	uint32_t left;	  /* faults; 0: all */
	uint64_t *failed; /* pages that were refused, ascending */
	size_t nfailed, room;
	bool spent;
};

static bool makes_sense(const struct df_inject_options *is)
{
	return !(is->start % PAGE) && !(is->len % PAGE) && is->len &&
	       is->start + is->len > is->start && is->error >= 0 && is->delay_ns <= DELAY_MAX_NS &&
	       (is->error || is->delay_ns || is->flags & DF_INJECT_TRUNCATE) &&
	       !(is->flags & ~(DF_INJECT_STORES | DF_INJECT_TRUNCATE | DF_INJECT_EVICT));
}

int source_inject(struct df_source *source, const struct df_inject_options *options)
{
	struct df_injection *in;

	if (!makes_sense(options))
		return -EINVAL;
	in = malloc(sizeof(*in));
	if (!in)
		return -ENOMEM;
	*in = (struct df_injection){
		.is = *options,
		.end = options->start + options->len,
		.dice = options->seed * 2 + 1, /* xorshift stays at 0 */
		.left = options->count,
	};
	GUARD(&source->lock);
	in->next = source->injections;
	__atomic_store_n(&source->injections, in, __ATOMIC_RELEASE);
	return 0;
}

void source_inject_remove(struct df_source *source, bool all, uint64_t tag)
{
	struct df_injection **p = &source->injections, *in, *gone = NULL;

	pthread_mutex_lock(&source->lock);
	while ((in = *p)) {
		if (!all && in->is.tag != tag) {
			p = &in->next;
			continue;
		}
		__atomic_store_n(p, in->next, __ATOMIC_RELEASE);
		in->next = gone;
		gone = in;
	}
	__atomic_add_fetch(&source->cleared, 1, __ATOMIC_RELAXED);
	pthread_mutex_unlock(&source->lock);
	while ((in = gone)) {
		gone = in->next;
		free(in->failed);
		free(in);
	}
}

bool source_injects_store(struct df_source *source, uint64_t offset)
{
	if (!source_injects(source))
		return false;
	GUARD(&source->lock);
	for (const struct df_injection *in = source->injections; in; in = in->next)
		if (!in->spent && in->is.flags & DF_INJECT_STORES && offset >= in->is.start &&
		    offset < in->end)
			return true;
	return false;
}

static bool stored(const struct source_ask *ask, const struct df_injection *in)
{
	for (uint64_t i = 0; i < ask->len / PAGE; i++) {
		uint64_t offset = ask->start + i * PAGE;

		if (ask->stores[i / 64] >> i % 64 & 1 && offset >= in->is.start && offset < in->end)
			return true;
	}
	return false;
}

static struct df_injection *find(const struct df_source *source, const struct source_ask *ask)
{
	struct df_injection *in = source->injections;

	while (in && (in->spent || in->is.start >= ask->start + ask->len || in->end <= ask->start ||
		      (in->is.flags & DF_INJECT_STORES && !stored(ask, in))))
		in = in->next;
	return in;
}

/* Whether the injection hits this fault. */
static bool falls(struct df_injection *in)
{
	if (in->is.after) {
		in->is.after--;
		return false;
	}
	if (!in->is.chance)
		return true;
	in->dice ^= in->dice << 13; /* xorshift64 */
	in->dice ^= in->dice >> 7;
	in->dice ^= in->dice << 17;
	return (uint32_t)(in->dice >> 32) < in->is.chance;
}

/* Count a hit.  After the last one the injection is spent: its pages can be read again. */
static void count_down(struct df_injection *in)
{
	if (!in->left || --in->left)
		return;
	in->spent = true;
	in->nfailed = 0;
}

static size_t find_failed(const struct df_injection *in, uint64_t page)
{
	size_t low = 0, high = in->nfailed;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (in->failed[middle] < page)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

static bool has_failed(const struct df_injection *in, uint64_t page)
{
	size_t i = find_failed(in, page);

	return i < in->nfailed && in->failed[i] == page;
}

static void remember(struct df_injection *in, uint64_t page)
{
	size_t i = find_failed(in, page);

	if (i < in->nfailed && in->failed[i] == page)
		return;
	if (in->nfailed == in->room) {
		size_t room = in->room ? in->room * 2 : 16;
		uint64_t *grown = realloc(in->failed, room * sizeof(*grown));

		if (!grown)
			return; /* out of memory: the page heals without a removal */
		in->failed = grown;
		in->room = room;
	}
	memmove(in->failed + i + 1, in->failed + i, (in->nfailed - i) * sizeof(*in->failed));
	in->failed[i] = page;
	in->nfailed++;
}

/* A retry is not counted as an access, and has the result of the last access. */
static int retried(const struct df_source *source, uint64_t page)
{
	for (const struct df_injection *in = source->injections; in; in = in->next)
		if (in->is.error && has_failed(in, page))
			return in->is.error;
	return 0;
}

static bool is_there(struct df_source *source, uint64_t tag)
{
	const struct df_injection *in;

	GUARD(&source->lock);
	for (in = tag ? source->injections : NULL; in && in->is.tag != tag; in = in->next)
		;
	return in;
}

static void delay(struct df_source *source, const struct df_inject_options *is, uint64_t cleared)
{
	uint64_t until = now_ns() + is->delay_ns, now, latest;

	while ((now = now_ns()) < until) {
		uint64_t left = until - now;
		struct timespec slice = { 0, left < SLICE_NS ? (long)left : SLICE_NS };

		latest = __atomic_load_n(&source->cleared, __ATOMIC_RELAXED);
		if (latest != cleared && !is_there(source, is->tag))
			break;
		cleared = latest;
		nanosleep(&slice, NULL);
	}
}

/* An error applies to single pages.  So a read of several pages is refused, and each of its
 * faults then reads its page alone. */
static struct df_inject_options choose(struct df_source *source, const struct source_ask *ask)
{
	struct df_inject_options met = { .error = 0 };
	struct df_injection *in = find(source, ask);
	/* count each access, and decide each page separately */
	bool once = in && (in->is.error || in->is.after || in->is.chance || in->is.count ||
			   in->is.start > ask->start || in->end < ask->start + ask->len ||
			   in->is.flags & (DF_INJECT_TRUNCATE | DF_INJECT_STORES));

	if (ask->retry) {
		met.error = retried(source, ask->start);
	} else if (once && ask->len > PAGE) {
		met.error = in->is.error ? in->is.error : EIO;
	} else if (in && (in->is.delay_ns || in->is.flags & DF_INJECT_TRUNCATE) && !ask->may_block) {
		met.error = EAGAIN;
	} else if (in && falls(in)) {
		met = in->is;
		if (met.error)
			remember(in, ask->start);
		count_down(in);
	}
	return met;
}

int source_ask(struct df_source *source, const struct source_ask *ask, uint64_t *truncate)
{
	struct df_inject_options met;
	uint64_t cleared;

	pthread_mutex_lock(&source->lock);
	met = choose(source, ask);
	cleared = source->cleared;
	pthread_mutex_unlock(&source->lock);
	if (met.delay_ns)
		delay(source, &met, cleared);
	*truncate = met.flags & DF_INJECT_TRUNCATE && !met.error ? met.truncate : SOURCE_UNTRUNCATED;
	return met.error;
}
