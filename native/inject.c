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
	uint64_t start, end;
	uint64_t delay_ns;
	int error;
	uint32_t left;		/* faults; 0: all */
	uint32_t flags;
};

int df_file_inject(struct df_file *file, uint64_t start, uint64_t len, int error,
		   uint64_t delay_ns, uint32_t count, uint32_t flags)
{
	struct df_injection *in;

	if (start % PAGE || len % PAGE || !len || start + len < start || error < 0 ||
	    delay_ns > DELAY_MAX_NS || (!error && !delay_ns) || flags & ~DF_INJECT_STORES)
		return -EINVAL;
	in = malloc(sizeof(*in));
	if (!in)
		return -ENOMEM;
	*in = (struct df_injection){
		.start = start,
		.end = start + len,
		.delay_ns = delay_ns,
		.error = error,
		.left = count,
		.flags = flags,
	};
	file_lock(file);
	in->next = file->injections;
	__atomic_store_n(&file->injections, in, __ATOMIC_RELEASE);
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
		if (w->write && w->offset >= in->start && w->offset < in->end)
			return true;
	return false;
}

static struct df_injection **find(const struct df_fill *fill)
{
	struct df_injection **p = &fill->file->injections;

	while (*p && ((*p)->start >= fill->start + fill->len || (*p)->end <= fill->start ||
		      ((*p)->flags & DF_INJECT_STORES && !stored(fill, *p))))
		p = &(*p)->next;
	return p;
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
	struct df_injection **p, *in;
	uint64_t wait = 0, cleared;
	int error = 0;

	if (!inject_any(file))
		return 0;
	file_lock(file);
	p = find(fill);
	in = *p;
	cleared = file->cleared;
	if (in && in->error && fill->len > PAGE) {
		error = in->error;
	} else if (in && in->delay_ns && !may_block) {
		error = EAGAIN;
	} else if (in) {
		error = in->error;
		wait = in->delay_ns;
		count_down(p);
	}
	file_unlock(file);
	if (wait)
		delay(file, wait, cleared);
	return error;
}
