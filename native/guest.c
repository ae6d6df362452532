/* SPDX-License-Identifier: Apache-2.0
 *
 * guest.c - a guest's life: its userfaultfd, the thread that reads its events in
 * their order, and its end.  Must not know files.
 *
 * Event order matters: fork, remap, remove and unmap change what an address
 * means, and until they are read every install in that address space answers
 * EAGAIN (fs/userfaultfd.c, mmap_changing).  So one thread a guest reads them
 * all, and a fault that met EAGAIN waits for the events before it tries again.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "internal.h"

#define BATCH 32

static atomic_uint_fast64_t next_guest_id = 1;

void guest_get(struct df_guest *guest)
{
	atomic_fetch_add(&guest->refs, 1);
}

void guest_put(struct df_guest *guest)
{
	if (atomic_fetch_sub(&guest->refs, 1) != 1)
		return;
	close(guest->uffd);
	close(guest->kick);
	if (guest->slots)
		munmap(guest->slots, DF_PAGE_SIZE);
	free(guest->regions);
	pthread_rwlock_destroy(&guest->lock);
	pthread_mutex_destroy(&guest->small);
	free(guest);
}

static void kick(struct df_guest *guest)
{
	uint64_t one = 1;

	if (write(guest->kick, &one, sizeof(one)) < 0) {
		/* full: it is awake already */
	}
}

void guest_retry(struct df_guest *guest, struct df_fault *fault)
{
	pthread_mutex_lock(&guest->small);
	fault->next = guest->again;
	guest->again = fault;
	pthread_mutex_unlock(&guest->small);
	kick(guest);
}

static struct df_fault *take_again(struct df_guest *guest)
{
	struct df_fault *again;

	pthread_mutex_lock(&guest->small);
	again = guest->again;
	guest->again = NULL;
	pthread_mutex_unlock(&guest->small);
	return again;
}

/* Count a failure of this page; -> failures in a row.  The table is small: with
 * more failing pages than that at once the oldest begins anew. */
uint32_t guest_attempt(struct df_guest *guest, uint64_t page)
{
	uint32_t count = 1;
	unsigned i;

	pthread_mutex_lock(&guest->small);
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
	pthread_mutex_unlock(&guest->small);
	return count;
}

void guest_resolved(struct df_guest *guest, uint64_t start, uint64_t end)
{
	if (!__atomic_load_n(&guest->nattempts, __ATOMIC_RELAXED))
		return;
	pthread_mutex_lock(&guest->small);
	for (unsigned i = 0; i < guest->nattempts; i++)
		if (guest->attempts[i].page >= start && guest->attempts[i].page < end)
			guest->attempts[i--] = guest->attempts[--guest->nattempts];
	pthread_mutex_unlock(&guest->small);
}

static int guest_alloc(struct df_engine *engine, int uffd, int pid, struct df_guest **out)
{
	struct df_guest *guest = calloc(1, sizeof(*guest));

	if (!guest)
		return -ENOMEM;
	guest->kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (guest->kick < 0) {
		free(guest);
		return -errno;
	}
	guest->engine = engine;
	guest->id = atomic_fetch_add(&next_guest_id, 1);
	atomic_init(&guest->refs, 1);
	atomic_init(&guest->dead, false);
	guest->uffd = uffd;
	guest->pid = pid;
	pthread_rwlock_init(&guest->lock, NULL);
	pthread_mutex_init(&guest->small, NULL);
	*out = guest;
	return 0;
}

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
		error = region_copy(child, parent);
	}
	if (!error)
		error = guest_start(child);
	if (error)
		for (size_t i = 0; i < parent->nregions; i++)
			uffd_poison_absent(uffd, parent->regions[i]->start,
					   parent->regions[i]->len);
	pthread_rwlock_unlock(&parent->lock);
	if (error && child)
		guest_put(child);
	else if (error)
		close(uffd);
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
static int read_events(struct df_guest *guest)
{
	struct uffd_msg msgs[BATCH];
	int n = uffd_read(guest->uffd, msgs, BATCH);
	uint64_t arrived = n > 0 ? now_ns() : 0;

	for (int i = 0; i < n; i++)
		event(guest, &msgs[i], arrived);
	return n;
}

static void *reader(void *arg)
{
	struct df_guest *guest = arg;
	uint64_t spin = guest->engine->options.spin_ns, value;
	int n = 0;

	engine_thread = true;
	while (!atomic_load(&guest->dead) && n >= 0) {
		struct pollfd fds[] = {
			{ .fd = guest->uffd, .events = POLLIN },
			{ .fd = guest->kick, .events = POLLIN },
		};

		if (poll(fds, 2, -1) < 0)
			continue;
		if (fds[1].revents && read(guest->kick, &value, sizeof(value)) < 0) {
			/* another kick took it */
		}
		do {
			uint64_t until = spin ? now_ns() + spin : 0;

			/* a batch that was not full has emptied the queue */
			while ((n = read_events(guest)) == BATCH || (spin && n > 0))
				until = spin ? now_ns() + spin : 0;
			faults_run(take_again(guest), false);
			if (!spin || now_ns() >= until)
				break;
		} while (n >= 0);
		if (fds[0].revents & (POLLERR | POLLHUP))
			break;
	}
	faults_run(take_again(guest), false);
	guest_put(guest);
	return NULL;
}

int guest_start(struct df_guest *guest)
{
	struct df_engine *engine = guest->engine;
	sigset_t all, old;
	int error;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);	/* signals are Python's */
	guest_get(guest);
	error = pthread_create(&guest->thread, NULL, reader, guest);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (error) {
		guest_put(guest);
		return -error;
	}
	pthread_setname_np(guest->thread, "df-guest");
	guest->started = true;
	pthread_mutex_lock(&engine->lock);
	guest->next = engine->guests;
	engine->guests = guest;
	pthread_mutex_unlock(&engine->lock);
	return 0;
}

static int map_area(struct df_guest *guest, int area)
{
	struct stat st;
	int seals = fcntl(area, F_GET_SEALS);

	/* A page the guest could cut off would be a SIGBUS for us. */
	if (seals < 0 || !(seals & F_SEAL_SHRINK) || fstat(area, &st) || st.st_size < DF_PAGE_SIZE)
		return -EINVAL;
	guest->slots = mmap(NULL, DF_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, area, 0);
	if (guest->slots == MAP_FAILED) {
		guest->slots = NULL;
		return -errno;
	}
	return 0;
}

int df_guest_new(struct df_engine *engine, int uffd, uint64_t features, int pid, int area,
		 struct df_guest **out)
{
	struct df_guest *guest = NULL;
	int flags = fcntl(uffd, F_GETFL);
	int error = guest_alloc(engine, uffd, pid, &guest);

	*out = NULL;
	if (error) {
		close(uffd);
	} else {
		/* poll() on a blocking userfaultfd is POLLERR (userfaultfd_poll) */
		if (flags < 0 || fcntl(uffd, F_SETFL, flags | O_NONBLOCK))
			error = -errno;
		guest->tracks = features & UFFD_FEATURE_WP_UNPOPULATED;
		if (!error && area >= 0)
			error = map_area(guest, area);
		if (!error)
			error = guest_start(guest);
		if (error)
			guest_put(guest);
		else
			*out = guest;
	}
	if (area >= 0)
		close(area);
	return error;
}

uint64_t df_guest_id(struct df_guest *guest)
{
	return guest->id;
}

int df_guest_map(struct df_guest *guest, uint64_t start, uint64_t len, struct df_file *file,
		 uint64_t offset, int writable)
{
	int error;

	file_lock(file);
	error = file_activate(file);
	if (!error && writable && !file->writable)
		error = -EACCES;
	file_unlock(file);
	if (error)
		return error;
	pthread_rwlock_wrlock(&guest->lock);
	error = atomic_load(&guest->dead) ? -ESRCH
					  : region_add(guest, start, len, file, offset, writable);
	pthread_rwlock_unlock(&guest->lock);
	return error;
}

int df_guest_unmap(struct df_guest *guest, uint64_t start, uint64_t len)
{
	if ((start | len) % PAGE || start + len < start)
		return -EINVAL;
	pthread_rwlock_wrlock(&guest->lock);
	region_remove(guest, start, start + len);
	pthread_rwlock_unlock(&guest->lock);
	return 0;
}

void df_guest_free(struct df_guest *guest)
{
	struct df_engine *engine = guest->engine;

	pthread_mutex_lock(&engine->lock);
	for (struct df_guest **p = &engine->guests; *p; p = &(*p)->next)
		if (*p == guest) {
			*p = guest->next;
			break;
		}
	pthread_mutex_unlock(&engine->lock);

	pthread_rwlock_wrlock(&guest->lock);
	atomic_store(&guest->dead, true);
	while (guest->nregions) {
		struct df_region *region = guest->regions[guest->nregions - 1];

		if (uffd_alive(guest->uffd))
			uffd_poison_absent(guest->uffd, region->start, region->len);
		region_remove(guest, region->start, region->start + region->len);
	}
	pthread_rwlock_unlock(&guest->lock);
	kick(guest);
	if (guest->started)
		pthread_join(guest->thread, NULL);
	guest_put(guest);
}
