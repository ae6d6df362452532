/* SPDX-License-Identifier: Apache-2.0
 *
 * reader.c - the thread that reads a guest's events, in their order, and acts upon
 * them.  Must not know files.
 *
 * Event order matters: fork, remap, remove and unmap change what an address
 * means, and until they are read every install in that address space answers
 * EAGAIN (fs/userfaultfd.c, mmap_changing).  So one thread a guest reads them
 * all, and a fault that met EAGAIN waits for the events before it tries again.
 */
#include <errno.h>
#include <poll.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "engine/internal.h"

#define BATCH 32
#define RETRY_MS 20		/* after a read that failed */
#define LAST_ROUNDS 64		/* of events, when the guest is let go */

/* The child of a fork: the kernel hands us its userfaultfd, registered like its
 * parent's.  Whatever goes wrong here, it must not read zeros. */
static void adopt_child(struct df_guest *parent, int uffd)
{
	struct df_guest *child = NULL;
	int error = guest_alloc(parent->engine, uffd, 0, &child);

	pthread_rwlock_rdlock(&parent->lock);
	if (!error) {
		child->child = true;
		child->tracks = parent->tracks;
		child->options.flags = parent->options.flags & DF_GUEST_PROGRAM;
		if (child->options.flags)
			keep_uffd(child);
		error = region_copy(child, parent);
	}
	if (!error)
		error = guest_start(child);
	if (error)
		for (size_t i = 0; i < parent->nregions; i++)
			uffd_poison_absent(uffd, parent->regions[i]->start,
					   parent->regions[i]->len);
	pthread_rwlock_unlock(&parent->lock);
	if (error && child) {
		region_remove(child, 0, UINT64_MAX);
		guest_put(child);
	} else if (error) {
		close(uffd);
	}
}

static void event(struct df_guest *guest, const struct uffd_msg *msg, uint64_t arrived)
{
	struct df_engine *engine = guest->engine;

	switch (msg->event) {
	case UFFD_EVENT_PAGEFAULT: {
		struct df_fault fault = {
			.guest = guest,
			.address = msg->arg.pagefault.address,
			.arrived = arrived,
			.seen = arrived,
			.tid = (int32_t)msg->arg.pagefault.feat.ptid,
			.write = !!(msg->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WRITE),
			.stored = !!(msg->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP),
		};

		COUNT(engine, faults, 1);
		fault_arrived(&fault);
		break;
	}
	case UFFD_EVENT_FORK:
		COUNT(engine, events_fork, 1);
		adopt_child(guest, (int)msg->arg.fork.ufd);
		break;
	case UFFD_EVENT_REMAP:
		COUNT(engine, events_remap, 1);
		pthread_rwlock_wrlock(&guest->lock);
		region_move(guest, msg->arg.remap.from, msg->arg.remap.to, msg->arg.remap.len);
		pthread_rwlock_unlock(&guest->lock);
		break;
	case UFFD_EVENT_REMOVE:
		/* MADV_DONTNEED took the guest's page table entries, not the page
		 * cache; the next touch is a fault like any other. */
		COUNT(engine, events_remove, 1);
		break;
	case UFFD_EVENT_UNMAP:
		COUNT(engine, events_unmap, 1);
		pthread_rwlock_wrlock(&guest->lock);
		region_remove(guest, msg->arg.remove.start, msg->arg.remove.end);
		pthread_rwlock_unlock(&guest->lock);
		break;
	}
}

/* -> events handled, or a negative errno */
static int events_take(struct df_guest *guest)
{
	struct uffd_msg msgs[BATCH];
	uint64_t arrived;
	int n, old;

	/* Odd while there may be events that were read and not yet acted upon. */
	atomic_fetch_add(&guest->turn, 1);
	pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, &old);	/* see join_reader() */
	n = uffd_read(guest->uffd, msgs, BATCH);
	pthread_setcancelstate(old, NULL);
	arrived = n > 0 ? now_ns() : 0;
	for (int i = 0; i < n; i++)
		event(guest, &msgs[i], arrived);
	atomic_fetch_add(&guest->turn, 1);
	return n;
}

static void leave(void *arg)
{
	struct df_guest *guest = arg;

	pthread_mutex_lock(&guest->small);
	guest->ended = true;
	pthread_cond_broadcast(&guest->end);
	pthread_mutex_unlock(&guest->small);
	guest_put(guest);
}

static void listen_to_bell(struct df_guest *guest)
{
	/* A bell that the guest broke would ring for ever. */
	if (!apf_bell(guest))
		epoll_ctl(guest->asides, EPOLL_CTL_DEL, guest->doorbell, NULL);
}

static void read_all(struct df_guest *guest)
{
	uint64_t spin = guest->engine->options.spin_ns, until = 0, value;
	int n = 0;

	while (!atomic_load(&guest->dead)) {
		/* No descriptor left for a forked child (EMFILE), or no memory: the
		 * event waits, so try again, but not at once. */
		struct pollfd fds[] = {
			{ .fd = n < 0 ? -1 : guest->uffd, .events = POLLIN },
			{ .fd = guest->asides, .events = POLLIN },
		};

		if (poll(fds, 2, n < 0 ? RETRY_MS : -1) < 0)
			continue;
		if (fds[1].revents) {
			if (read(guest->kick, &value, sizeof(value)) < 0) {
				/* it was the doorbell, or another kick took it */
			}
			listen_to_bell(guest);
		}
		if (fds[0].revents & (POLLERR | POLLHUP)) {
			n = guest_unblock(guest) ? -EBADF : -EAGAIN;
			continue;	/* the guest has made it blocking */
		}
		do {
			n = events_take(guest);
			faults_run(guest_take_again(guest), false);
			if (n > 0)
				evict_hold();
			if (spin && n > 0)
				until = now_ns() + spin;
			else if (spin && guest->slots)
				listen_to_bell(guest);
			/* a batch that was not full has emptied the queue */
		} while (!atomic_load(&guest->dead) &&
			 (n == BATCH || (n >= 0 && spin && now_ns() < until)));
	}
}

void *events_read(void *arg)
{
	struct df_guest *guest = arg;
	int old;

	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &old);
	pthread_cleanup_push(leave, guest);
	read_all(guest);
	/* While its address space is changing the kernel poisons nothing, but wants
	 * its events read. */
	if (atomic_load(&guest->dead) && uffd_alive(guest->uffd))
		for (int i = 0; i < LAST_ROUNDS; i++) {
			struct pollfd fd = { .fd = guest->uffd, .events = POLLIN };

			if (poll(&fd, 1, 0) > 0 && fd.revents == POLLIN)
				events_take(guest);
			if (guest_poison(guest) != -EAGAIN)
				break;
		}
	pthread_cleanup_pop(1);
	return NULL;
}
