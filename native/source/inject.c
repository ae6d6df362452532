/* SPDX-License-Identifier: Apache-2.0
 *
 * inject.c - errors and delays of a page source, on purpose: a disk that fails, a
 * network that is slow, a file system that is full.
 *
 * Owns the list of them.  They are met where a fill would read its source, and from
 * there on are as real as any: nothing else knows of them.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine/internal.h"

#define SLICE_NS 2000000u	/* how long a delay goes on after it was cleared, at most */
#define DELAY_MAX_NS (3600ull * 1000000000)

struct df_injection {
	struct df_injection *next;
	struct df_inject_options is;
	uint64_t end;
	uint64_t dice;
	uint32_t left;		/* faults; 0: all */
	uint64_t *failed;	/* pages that were refused, ascending */
	size_t nfailed, room;
	bool spent;
};

static bool makes_sense(const struct df_inject_options *is)
{
	return !(is->start % PAGE) && !(is->len % PAGE) && is->len && is->start + is->len > is->start &&
	       is->error >= 0 && is->delay_ns <= DELAY_MAX_NS &&
	       (is->error || is->delay_ns || is->flags & DF_INJECT_TRUNCATE) &&
	       !(is->flags & ~(DF_INJECT_STORES | DF_INJECT_TRUNCATE | DF_INJECT_EVICT));
}

int df_file_inject(struct df_file *file, const struct df_inject_options *options)
{
	struct df_injection *in;
	uint64_t at = options->start;

	if (!makes_sense(options))
		return -EINVAL;
	in = malloc(sizeof(*in));
	if (!in)
		return -ENOMEM;
	*in = (struct df_injection){
		.is = *options,
		.end = options->start + options->len,
		.dice = options->seed * 2 + 1,		/* xorshift stays at 0 */
		.left = options->count,
	};
	file_lock(file);
	in->next = file->injections;
	__atomic_store_n(&file->injections, in, __ATOMIC_RELEASE);
	if (options->flags & DF_INJECT_EVICT)
		pages_drop_clean(file, &at, in->end < CACHE_SIZE ? in->end : CACHE_SIZE, UINT64_MAX);
	file_unlock(file);
	return 0;
}

static void release(struct df_injection *in)
{
	free(in->failed);
	free(in);
}

static void take_back(struct df_file *file, bool all, uint64_t tag)
{
	struct df_injection **p = &file->injections, *in, *gone = NULL;

	file_lock(file);
	while ((in = *p)) {
		if (!all && in->is.tag != tag) {
			p = &in->next;
			continue;
		}
		__atomic_store_n(p, in->next, __ATOMIC_RELEASE);
		in->next = gone;
		gone = in;
	}
	__atomic_add_fetch(&file->cleared, 1, __ATOMIC_RELAXED);
	file_unlock(file);
	while ((in = gone)) {
		gone = in->next;
		release(in);
	}
}

void df_file_inject_remove(struct df_file *file, uint64_t tag)
{
	take_back(file, false, tag);
}

void df_file_inject_clear(struct df_file *file)
{
	take_back(file, true, 0);
}

bool inject_any(const struct df_file *file)
{
	return __atomic_load_n(&file->injections, __ATOMIC_ACQUIRE);
}

static bool stored(const struct df_fill *fill, const struct df_injection *in)
{
	for (const struct df_fault *w = fill->waiters; w; w = w->next)
		if (w->write && w->offset >= in->is.start && w->offset < in->end)
			return true;
	return false;
}

static struct df_injection *find(const struct df_fill *fill)
{
	struct df_injection *in = fill->file->injections;

	while (in && (in->spent || in->is.start >= fill->start + fill->len || in->end <= fill->start ||
		      (in->is.flags & DF_INJECT_STORES && !stored(fill, in))))
		in = in->next;
	return in;
}

/* Is it this fault's turn? */
static bool falls(struct df_injection *in)
{
	if (in->is.after) {
		in->is.after--;
		return false;
	}
	if (!in->is.chance)
		return true;
	in->dice ^= in->dice << 13;		/* xorshift64 */
	in->dice ^= in->dice >> 7;
	in->dice ^= in->dice << 17;
	return (uint32_t)(in->dice >> 32) < in->is.chance;
}

/* One that is spent says nothing any more, and its pages can be read again. */
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
			return;		/* then it heals by itself */
		in->failed = grown;
		in->room = room;
	}
	memmove(in->failed + i + 1, in->failed + i, (in->nfailed - i) * sizeof(*in->failed));
	in->failed[i] = page;
	in->nfailed++;
}

/* Nobody has touched the page: it is read again because it was refused before. */
static bool mends(const struct df_fill *fill)
{
	for (const struct df_fault *w = fill->waiters; w; w = w->next)
		if (!w->mends)
			return false;
	return true;
}

/* That counts for no access, and ends as the last one did. */
static int mending_met(const struct df_fill *fill)
{
	for (const struct df_injection *in = fill->file->injections; in; in = in->next)
		if (in->is.error && has_failed(in, fill->start))
			return in->is.error;
	return 0;
}

bool inject_on_store(const struct df_file *file, uint64_t offset)
{
	for (const struct df_injection *in = file->injections; in; in = in->next)
		if (!in->spent && in->is.flags & DF_INJECT_STORES && offset >= in->is.start &&
		    offset < in->end)
			return true;
	return false;
}

static bool is_there(struct df_file *file, uint64_t tag)
{
	const struct df_injection *in;

	file_lock(file);
	for (in = tag ? file->injections : NULL; in && in->is.tag != tag; in = in->next)
		;
	file_unlock(file);
	return in;
}

static void delay(struct df_file *file, const struct df_inject_options *is, uint64_t cleared)
{
	uint64_t until = now_ns() + is->delay_ns, now, latest;

	while ((now = now_ns()) < until) {
		uint64_t left = until - now;
		struct timespec slice = { 0, left < SLICE_NS ? (long)left : SLICE_NS };

		latest = __atomic_load_n(&file->cleared, __ATOMIC_RELAXED);
		if (latest != cleared && !is_there(file, is->tag))
			break;
		cleared = latest;
		nanosleep(&slice, NULL);
	}
}

/* The error of a range is not yet the error of a page: a fill of more than one is only
 * refused, and each of its faults asks again for its own page. */
int inject_met(struct df_fill *fill, bool may_block)
{
	struct df_file *file = fill->file;
	struct df_inject_options met = { .error = 0 };
	struct df_injection *in;
	uint64_t cleared;
	bool once;

	if (!inject_any(file))
		return 0;
	file_lock(file);
	in = find(fill);
	cleared = file->cleared;
	/* each access is to be counted, and what happens to a page is its own */
	once = in && (in->is.error || in->is.after || in->is.chance || in->is.count ||
		      in->is.start > fill->start || in->end < fill->start + fill->len ||
		      in->is.flags & (DF_INJECT_TRUNCATE | DF_INJECT_STORES));
	if (mends(fill)) {
		met.error = mending_met(fill);
	} else if (once && fill->len > PAGE) {
		met.error = in->is.error ? in->is.error : EIO;
	} else if (in && (in->is.delay_ns || in->is.flags & DF_INJECT_TRUNCATE) && !may_block) {
		met.error = EAGAIN;
	} else if (in && falls(in)) {
		met = in->is;
		if (met.error)
			remember(in, fill->start);
		count_down(in);
	}
	file_unlock(file);
	if (met.delay_ns)
		delay(file, &met, cleared);
	if (met.flags & DF_INJECT_TRUNCATE && !met.error)
		met.error = -df_file_truncate(file, met.truncate);
	return met.error;
}
