/* SPDX-License-Identifier: Apache-2.0
 *
 * space.c - an address space as a whole: its userfaultfd, waiting for its events, mapping and
 * unmapping on request, poisoning absent pages, write protection.  Must not read events.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "keeper/keep.h"
#include "space.h"

#define SETTLE_NS 200000000u	/* how long a change waits for events that were read */
#define CATCH_UP_NS 5000000000u /* how long a mapping waits for them to be read */
#define PAUSE_NS 20000

void space_init(struct df_space *space, uint64_t id, int uffd, bool tracks, bool program)
{
	*space = (struct df_space){ .id = id, .uffd = uffd, .tracks = tracks, .program = program };
	pthread_rwlock_init(&space->lock, NULL);
	if (program)
		keep(DF_KEEP_UFFD, id, uffd);
}

void space_destroy(struct df_space *space)
{
	if (space->program)
		keep_nothing(DF_KEEP_UFFD, space->id);
	close(space->uffd);
	free(space->regions);
	pthread_rwlock_destroy(&space->lock);
}

/* poll() on a blocking userfaultfd is POLLERR (userfaultfd_poll).  A forked child's descriptor
 * gets the original flags of its parent's, not later changes (resolve_userfault_fork). */
int space_unblock(struct df_space *space)
{
	int flags = fcntl(space->uffd, F_GETFL);

	return flags < 0 || fcntl(space->uffd, F_SETFL, flags | O_NONBLOCK) ||
			       fcntl(space->uffd, F_SETFD, FD_CLOEXEC)
		       ? -errno
		       : 0;
}

bool space_alive(const struct df_space *space)
{
	return uffd_alive(space->uffd);
}

bool space_shows(struct df_space *space, uint64_t address)
{
	GUARD_READ(&space->lock);
	return region_find(space, address);
}

int space_wake(const struct df_space *space, uint64_t address)
{
	return uffd_wake(space->uffd, PAGE_DOWN(address), PAGE);
}

void space_wake_file(const struct df_file *file)
{
	for (const struct df_region *region = file->mappings->first; region; region = region->next)
		uffd_wake(region->space->uffd, region->start, region->len);
}

static void pause_a_moment(void)
{
	nanosleep(&(struct timespec){ .tv_nsec = PAUSE_NS }, NULL);
}

/* A munmap() returns in the guest when its event has been read, but the guest's next request
 * must come after the event was applied.  If the wait times out, the reader is in a read(2) that
 * the guest has made blocking; the consequences affect only that guest. */
void space_settle(struct df_space *space)
{
	uint64_t turn = atomic_load(&space->turn), until = now_ns() + SETTLE_NS;

	while (turn % 2 && atomic_load(&space->turn) == turn && !atomic_load(&space->stuck)) {
		if (now_ns() > until)
			atomic_store(&space->stuck, true);
		pause_a_moment();
	}
}

/* Wait until no events of earlier mappings are pending: a munmap() frees its range before its
 * event is read, and another thread's mmap() may use the range already. */
int space_catch_up(struct df_space *space)
{
	uint64_t until = now_ns() + CATCH_UP_NS, turn;

	while (uffd_changing(space->uffd)) {
		if (now_ns() > until)
			return -EAGAIN;
		pause_a_moment();
	}
	turn = atomic_load(&space->turn);
	while (turn % 2 && atomic_load(&space->turn) == turn) {
		if (now_ns() > until)
			return -EAGAIN;
		pause_a_moment();
	}
	return 0;
}

/* Removes the write protection of present pages, because no reader will answer their next store. */
static int poison_absent(struct df_region *region, int uffd)
{
	if (region->writable && uffd_alive(uffd)) {
		GUARD(&region->file->lock);
		exposed_begin(region->file, region->offset, region->offset + region->len);
	}
	return uffd_poison_absent(uffd, region->start, region->len);
}

int space_poison_absent(struct df_space *space)
{
	int error = 0;

	GUARD_READ(&space->lock);
	for (size_t i = 0; error != -EAGAIN && i < space->nregions; i++)
		error = poison_absent(space->regions[i], space->uffd);
	return error;
}

void space_poison_child(struct df_space *parent, int uffd)
{
	GUARD_READ(&parent->lock);
	for (size_t i = 0; i < parent->nregions; i++)
		poison_absent(parent->regions[i], uffd);
}

bool space_protect(struct df_file *file, uint64_t start, uint64_t end)
{
	bool all = true;

	for (struct df_region *region = file->mappings->first; region; region = region->next) {
		uint64_t from = start > region->offset ? start : region->offset;
		uint64_t to = region->offset + region->len;
		int error;

		if (to > end)
			to = end;
		if (!region->writable || from >= to)
			continue;
		error = region->tracked ? uffd_protect(region->space->uffd,
						       region->start + (from - region->offset),
						       to - from, true)
					: -EOPNOTSUPP;
		/* Forks and moves change the table only after the reader has applied them. */
		all &= error == -ESRCH || (!error && !(atomic_load(&region->space->turn) % 2));
	}
	return all;
}

int space_map(struct df_space *space, uint64_t start, uint64_t len, struct df_file *file,
	      uint64_t offset, bool writable)
{
	space_settle(space);
	GUARD_WRITE(&space->lock);
	return atomic_load(&space->dead) ? -ESRCH
					 : region_add(space, start, len, file, offset, writable);
}

void space_unmap(struct df_space *space, uint64_t start, uint64_t end, struct df_region **removed)
{
	space_settle(space);
	GUARD_WRITE(&space->lock);
	region_remove(space, start, end, removed);
}
