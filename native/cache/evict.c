/* SPDX-License-Identifier: Apache-2.0
 *
 * evict.c - the limit on the memory of all page caches.  Evicts clean pages,
 * first those of the files that were filled longest ago.  Never evicts dirty pages; signals
 * df_cache_full_fd() so that they get written back, and throttles guests that store faster than
 * that, at each of their faults, as balance_dirty_pages() does.
 *
 * An evicted page is zapped from its guests and read again at the next touch, which costs a
 * fault.  Many are evicted at a time, and within a file a clock's hand chooses them.
 */
#include <errno.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "cache.h"

#define SLACK 16	  /* frees 1/16 of the limit at a time */
#define HOLD_NS 100000000 /* longest throttling of a guest that stores too fast */

static atomic_uint_fast64_t limit; /* pages; 0: none */
static atomic_uint_fast64_t fills;
static atomic_bool hopeless; /* a write-back has freed nothing: do not throttle */
static atomic_int full_fd = -1;
static pthread_mutex_t room_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t room_made = PTHREAD_COND_INITIALIZER;

int df_cache_limit(uint64_t bytes)
{
	if (bytes && atomic_load(&full_fd) < 0) {
		int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

		if (fd < 0)
			return -errno;
		atomic_store(&full_fd, fd);
	}
	atomic_store(&limit, (bytes + PAGE - 1) / PAGE);
	return 0;
}

int df_cache_full_fd(void)
{
	return atomic_load(&full_fd);
}

static void request_write_back(void)
{
	uint64_t one = 1;

	if (write(atomic_load(&full_fd), &one, sizeof(one)) < 0) {
		/* the counter is full: its reader is awake */
	}
}

void df_cache_state(struct df_cache_state *out)
{
	*out = (struct df_cache_state){ pages_resident() * PAGE, atomic_load(&limit) * PAGE };
}

/* Drop pages of one file, from its hand on, once around; -> their number. */
static uint64_t sweep(struct df_file *file, uint64_t most, uint64_t start, uint64_t end)
{
	struct {
		uint64_t from, to;
	} parts[] = {
		{ file->hand, CACHE_SIZE },
		{ 0, file->hand },
	};
	uint64_t dropped = 0;

	for (size_t i = 0; i < 2 && dropped < most; i++) {
		uint64_t at = parts[i].from;

		/* but not the pages just filled, which a fault waits for */
		if (at < start)
			dropped += exposed_drop_clean(file, &at,
						      start < parts[i].to ? start : parts[i].to,
						      most - dropped);
		if (dropped < most && at < end)
			at = end;
		if (dropped < most && at < parts[i].to)
			dropped += exposed_drop_clean(file, &at, parts[i].to, most - dropped);
		file->hand = at < CACHE_SIZE ? at : 0;
	}
	if (dropped < most)
		atomic_store(&file->used, NOTHING_CLEAN);
	return dropped;
}

void evict(struct df_file *file, uint64_t start, uint64_t end)
{
	uint64_t most = atomic_load_explicit(&limit, memory_order_relaxed), now, wanted;
	struct df_file *other;

	if (!most)
		return;
	atomic_store(&file->used, atomic_fetch_add(&fills, 1) + 1);
	now = pages_resident();
	if (now <= most)
		return;
	wanted = now - most + most / SLACK;
	while (wanted && (other = file_other_locked(file))) {
		wanted -= sweep(other, wanted, 0, 0);
		pthread_mutex_unlock(&other->lock); /* nothing was released */
		file_put(other);
	}
	if (wanted && sweep(file, wanted, start, end) < wanted)
		request_write_back();
}

uint64_t evict_written(struct df_file *file)
{
	uint64_t most = atomic_load_explicit(&limit, memory_order_relaxed), now = pages_resident(), n;

	if (!most || now <= most)
		return 0;
	n = sweep(file, now - most + most / SLACK, 0, 0);
	GUARD(&room_lock);
	pthread_cond_broadcast(&room_made);
	return n;
}

void evict_tried(bool in_vain)
{
	atomic_store(&hopeless, in_vain && pages_resident() > atomic_load(&limit));
}

static bool is_far_over(void)
{
	uint64_t most = atomic_load_explicit(&limit, memory_order_relaxed);

	return most && pages_resident() > most + most / 2 && !atomic_load(&hopeless);
}

void evict_hold(void)
{
	uint64_t until = now_ns() + HOLD_NS;

	if (!is_far_over())
		return;
	request_write_back();
	GUARD(&room_lock);
	while (is_far_over() && clock_wait(&room_made, &room_lock, until))
		;
}
