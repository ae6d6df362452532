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
#include <time.h>

#include "internal.h"

#define SLICE_NS 2000000u	/* how long a delay goes on after it was cleared, at most */
#define DELAY_MAX_NS (3600ull * 1000000000)

struct df_injection {
	struct df_injection *next;
	struct df_inject_options is;
	uint64_t end;
	uint64_t dice;
	uint32_t left;		/* faults; 0: all */
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

void df_file_inject_clear(struct df_file *file)
{
	struct df_injection *in;

	file_lock(file);
	in = file->injections;
	__atomic_store_n(&file->injections, NULL, __ATOMIC_RELEASE);
	__atomic_add_fetch(&file->cleared, 1, __ATOMIC_RELAXED);
	file_unlock(file);
	while (in) {
		struct df_injection *next = in->next;

		free(in);
		in = next;
	}
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

static struct df_injection **find(const struct df_fill *fill)
{
	struct df_injection **p = &fill->file->injections;

	while (*p && ((*p)->is.start >= fill->start + fill->len || (*p)->end <= fill->start ||
		      ((*p)->is.flags & DF_INJECT_STORES && !stored(fill, *p))))
		p = &(*p)->next;
	return p;
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

static void count_down(struct df_injection **p)
{
	struct df_injection *in = *p;

	if (!in->left || --in->left)
		return;
	__atomic_store_n(p, in->next, __ATOMIC_RELEASE);
	free(in);
}

static void delay(struct df_file *file, uint64_t ns, uint64_t cleared)
{
	uint64_t until = now_ns() + ns, now;

	while ((now = now_ns()) < until &&
	       __atomic_load_n(&file->cleared, __ATOMIC_RELAXED) == cleared) {
		uint64_t left = until - now;
		struct timespec slice = { 0, left < SLICE_NS ? (long)left : SLICE_NS };

		nanosleep(&slice, NULL);
	}
}

/* The error of a range is not yet the error of a page: a fill of more than one is only
 * refused, and each of its faults asks again for its own page. */
int inject_met(struct df_fill *fill, bool may_block)
{
	struct df_file *file = fill->file;
	struct df_inject_options met = { .error = 0 };
	struct df_injection **p, *in;
	uint64_t cleared;
	bool once;

	if (!inject_any(file))
		return 0;
	file_lock(file);
	p = find(fill);
	in = *p;
	cleared = file->cleared;
	/* each access is to be counted, and an error is a page's own */
	once = in && (in->is.error || in->is.after || in->is.chance || in->is.flags & DF_INJECT_TRUNCATE);
	if (once && fill->len > PAGE) {
		met.error = in->is.error ? in->is.error : EIO;
	} else if (in && (in->is.delay_ns || in->is.flags & DF_INJECT_TRUNCATE) && !may_block) {
		met.error = EAGAIN;
	} else if (in && falls(in)) {
		met = in->is;
		count_down(p);
	}
	file_unlock(file);
	if (met.delay_ns)
		delay(file, met.delay_ns, cleared);
	if (met.flags & DF_INJECT_TRUNCATE && !met.error)
		met.error = -df_file_truncate(file, met.truncate);
	return met.error;
}
