/* SPDX-License-Identifier: Apache-2.0
 *
 * reader.c - the thread that reads a guest's events in order, and applies them.  Must not know
 * files.
 *
 * Event order matters: fork, remap, remove and unmap change the meaning of addresses, and until
 * they are read every install in that address space fails with EAGAIN (fs/userfaultfd.c,
 * mmap_changing).  So one thread per guest reads them all, and a fault that got EAGAIN waits for
 * the events before it tries again.
 */
#include <errno.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include "internal.h"

#define BATCH 32
#define RETRY_MS 20	    /* after a read that failed */
#define STARVED 50	    /* such reads in a row */
#define LAST_ROUNDS 64	    /* of events, when the service ends */
#define JOIN_NS 1000000000u /* how long a reader may take to see its end */

/* The child of a fork: the kernel returns its userfaultfd, registered like its parent's.  On any
 * error here, the child must not read zeros. */
static void serve_child(struct df_guest *parent, int uffd)
{
	struct df_space *space = &parent->space;
	struct df_region *removed = NULL;
	struct df_poison *retry = NULL;
	struct df_guest *child = NULL;
	int error = guest_alloc(parent->engine, uffd, space->tracks, space->program, &child);

	if (!error) {
		child->child = true;
		pthread_rwlock_rdlock(&space->lock);
		error = region_copy(&child->space, space, &retry);
		pthread_rwlock_unlock(&space->lock);
		faults_retry(retry, true);
	}
	if (!error)
		error = reader_start(child);
	if (!error)
		return;
	space_poison_child(space, uffd);
	if (child) {
		region_remove(&child->space, 0, UINT64_MAX, &removed);
		regions_removed(removed);
		faults_run(faults_take_again(child)); /* retries count it, and their file */
		guest_put(child);
	} else {
		close(uffd);
	}
}

static void count(struct df_engine *engine, uint32_t event)
{
	switch (event) {
	case UFFD_EVENT_PAGEFAULT:
		COUNT(engine, faults, 1);
		break;
	case UFFD_EVENT_FORK:
		COUNT(engine, events_fork, 1);
		break;
	case UFFD_EVENT_REMAP:
		COUNT(engine, events_remap, 1);
		break;
	case UFFD_EVENT_REMOVE:
		COUNT(engine, events_remove, 1);
		break;
	case UFFD_EVENT_UNMAP:
		COUNT(engine, events_unmap, 1);
		break;
	}
}

static void act(struct df_guest *guest, const struct uffd_msg *msg, uint64_t arrived)
{
	bool changes = msg->event != UFFD_EVENT_PAGEFAULT;
	struct space_event event;

	count(guest->engine, msg->event);
	if (changes)
		pthread_rwlock_wrlock(&guest->space.lock);
	space_event(&guest->space, msg, &event);
	faults_retry(event.retry, true);
	if (changes)
		pthread_rwlock_unlock(&guest->space.lock);
	regions_removed(event.removed);
	if (event.kind == SPACE_FORK)
		serve_child(guest, event.uffd);
	if (event.kind == SPACE_FAULT)
		fault_arrived(&(struct df_fault){
			.guest = guest,
			.address = event.address,
			.arrived = arrived,
			.seen = arrived,
			.tid = event.tid,
			.write = event.write,
			.stored = event.stored,
		});
}

/* -> events handled, or a negative errno */
static int take_events(struct df_guest *guest)
{
	struct uffd_msg msgs[BATCH];
	int n = space_events_begin(&guest->space, msgs, BATCH);
	uint64_t arrived = n > 0 ? now_ns() : 0;

	for (int i = 0; i < n; i++)
		act(guest, &msgs[i], arrived);
	space_events_end(&guest->space);
	return n;
}

/* fork(2) waits until its event is read, which takes a descriptor (resolve_userfault_fork()).
 * When none has come free for this long, its parent may be the one that holds them: the child is
 * taken in with the engine's spare one, and serve_child() finds none left to serve it with. */
static int take_starved(struct df_guest *guest)
{
	atomic_int *spare = &guest->engine->spare;
	int fd = atomic_exchange(spare, -1), n, none = -1;

	if (fd >= 0)
		close(fd);
	n = take_events(guest);
	fd = eventfd(0, EFD_CLOEXEC);
	if (fd >= 0 && !atomic_compare_exchange_strong(spare, &none, fd))
		close(fd);
	return n;
}

static void listen_to_bell(struct df_guest *guest)
{
	/* A doorbell that the guest has broken would stay readable. */
	if (guest->asides != guest->kick && !apf_bell(&guest->apf))
		epoll_ctl(guest->asides, EPOLL_CTL_DEL, guest->apf.doorbell, NULL);
}

static void read_all(struct df_guest *guest)
{
	uint64_t spin = guest->engine->options.spin_ns, until = 0;
	struct df_space *space = &guest->space;
	int n = 0, starved = 0;

	while (!atomic_load(&space->dead)) {
		/* No descriptor left for a forked child (EMFILE, ENFILE), or no memory: the
		 * event waits, so try again, but not at once. */
		struct pollfd fds[] = {
			{ .fd = n < 0 ? -1 : space->uffd, .events = POLLIN },
			{ .fd = guest->asides, .events = POLLIN },
		};

		if (poll(fds, 2, n < 0 ? RETRY_MS : -1) < 0)
			continue;
		if (fds[1].revents) {
			take_notice(guest->kick); /* or it was the doorbell */
			listen_to_bell(guest);
		}
		if (fds[0].revents & (POLLERR | POLLHUP)) {
			n = space_unblock(space) ? -EBADF : -EAGAIN;
			continue; /* the guest has made it blocking */
		}
		do {
			n = starved < STARVED ? take_events(guest) : take_starved(guest);
			starved = n == -EMFILE || n == -ENFILE ? starved + 1 : 0;
			faults_run(faults_take_again(guest));
			if (n > 0)
				evict_hold();
			if (spin && n > 0)
				until = now_ns() + spin;
			else if (spin && guest->apf.slots)
				listen_to_bell(guest);
			/* a batch that was not full has emptied the queue */
		} while (!atomic_load(&space->dead) &&
			 (n == BATCH || (n >= 0 && spin && now_ns() < until)));
	}
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

/* A reader's life. */
static void *reader(void *arg)
{
	struct df_guest *guest = arg;
	int old;

	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &old);
	pthread_cleanup_push(leave, guest);
	read_all(guest);
	/* While its address space is changing the kernel poisons nothing, but wants
	 * its events read. */
	if (space_alive(&guest->space))
		for (int i = 0; i < LAST_ROUNDS; i++) {
			struct pollfd fd = { .fd = guest->space.uffd, .events = POLLIN };

			if (poll(&fd, 1, 0) > 0 && fd.revents == POLLIN)
				take_events(guest);
			if (space_poison_absent(&guest->space) != -EAGAIN)
				break;
		}
	pthread_cleanup_pop(1);
	return NULL;
}

int reader_start(struct df_guest *guest)
{
	struct df_engine *engine = guest->engine;
	int error = space_unblock(&guest->space);

	if (error)
		return error;
	guest_get(guest);
	error = thread_start(&guest->thread, reader, guest, "df-guest");
	if (error) {
		guest_put(guest);
		return error;
	}
	GUARD(&engine->lock);
	guest->next = engine->guests;
	engine->guests = guest;
	return 0;
}

void reader_end(struct df_guest *guest)
{
	uint64_t until = now_ns() + JOIN_NS;
	bool ended;
	void *how;

	guest_kick(guest);
	pthread_mutex_lock(&guest->small);
	while (!guest->ended && clock_wait(&guest->end, &guest->small, until))
		;
	ended = guest->ended;
	pthread_mutex_unlock(&guest->small);
	/* The guest can clear the descriptor's O_NONBLOCK; then only this ends the reader's
	 * read(2). */
	if (!ended)
		pthread_cancel(guest->thread);
	pthread_join(guest->thread, &how);
	if (how == PTHREAD_CANCELED)
		space_poison_absent(&guest->space);
}
