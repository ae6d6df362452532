/* SPDX-License-Identifier: Apache-2.0
 *
 * guest.c - references of a guest, and the failure counts of its pages.  Must not know files, nor
 * read events.
 */
#include <errno.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include "internal.h"

static atomic_uint_fast64_t next_guest_id = 1;

void guest_get(struct df_guest *guest)
{
	atomic_fetch_add(&guest->refs, 1);
}

void guest_put(struct df_guest *guest)
{
	if (atomic_fetch_sub(&guest->refs, 1) != 1)
		return;
	space_destroy(&guest->space);
	apf_close(&guest->apf);
	if (guest->asides != guest->kick)
		close(guest->asides);
	close(guest->kick);
	pthread_mutex_destroy(&guest->small);
	pthread_cond_destroy(&guest->end);
	free(guest);
}

void guest_kick(struct df_guest *guest)
{
	notify(guest->kick);
}

/* The table is small: with more failing pages than entries, the oldest count restarts. */
uint32_t guest_attempt(struct df_guest *guest, uint64_t page)
{
	uint32_t count = 1;
	unsigned i;

	GUARD(&guest->small);
	for (i = 0; i < guest->nattempts; i++)
		if (guest->attempts[i].page == page)
			break;
	if (i < guest->nattempts) {
		count = ++guest->attempts[i].count;
	} else {
		if (guest->nattempts < ATTEMPTS)
			i = guest->nattempts++;
		else
			i = guest->oldest++ % ATTEMPTS;
		guest->attempts[i].page = page;
		guest->attempts[i].count = 1;
	}
	return count;
}

void guest_resolved(struct df_guest *guest, uint64_t page)
{
	if (!atomic_load_explicit(&guest->nattempts, memory_order_relaxed))
		return;
	GUARD(&guest->small);
	for (unsigned i = 0; i < guest->nattempts; i++)
		if (guest->attempts[i].page == page)
			guest->attempts[i--] = guest->attempts[--guest->nattempts];
}

/* One descriptor for all that the reader waits for besides faults: polling a third descriptor
 * would cost every fault 1.5 us. */
static int watch_asides(struct df_guest *guest)
{
	struct epoll_event readable = { .events = EPOLLIN };

	return epoll_ctl(guest->asides, EPOLL_CTL_ADD, guest->kick, &readable) ||
			       epoll_ctl(guest->asides, EPOLL_CTL_ADD, guest->apf.doorbell, &readable)
		       ? -errno
		       : 0;
}

int guest_alloc(struct df_engine *engine, int uffd, bool tracks, bool program, struct df_guest **out)
{
	struct df_guest *guest = calloc(1, sizeof(*guest));
	uint64_t id = atomic_fetch_add(&next_guest_id, 1);
	int error;

	if (!guest)
		return -ENOMEM;
	guest->engine = engine;
	atomic_init(&guest->refs, 1);
	pthread_mutex_init(&guest->small, NULL);
	pthread_cond_init(&guest->end, NULL);
	error = apf_open(&guest->apf, id, !program, &engine->tracer);
	if (error) {
		free(guest);
		return error;
	}
	guest->kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	/* a program has no doorbell, and costs a descriptor less */
	guest->asides = program ? guest->kick : epoll_create1(EPOLL_CLOEXEC);
	if (program)
		error = guest->kick < 0 ? -errno : 0;
	else
		error = watch_asides(guest);
	if (error) {
		apf_close(&guest->apf);
		if (guest->kick >= 0)
			close(guest->kick);
		if (guest->asides >= 0 && guest->asides != guest->kick)
			close(guest->asides);
		free(guest);
		return error;
	}
	space_init(&guest->space, id, uffd, tracks, program);
	*out = guest;
	return 0;
}
