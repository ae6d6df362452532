/* SPDX-License-Identifier: Apache-2.0
 *
 * guest.c - a guest's life: its userfaultfd, its attempts and its end.  Must not
 * know files, nor read events.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "engine/internal.h"

#define SETTLE_NS 200000000u	/* how long a change waits for events that were read */
#define CATCH_UP_NS 5000000000u	/* how long a mapping waits for them to be read */
#define JOIN_NS 1000000000u	/* how long a reader may take to see its end */

static atomic_uint_fast64_t next_guest_id = 1;

void guest_get(struct df_guest *guest)
{
	atomic_fetch_add(&guest->refs, 1);
}

static void close_asides(struct df_guest *guest)
{
	int fds[] = { guest->asides, guest->kick, guest->doorbell, guest->doorbell_guest };

	for (size_t i = 0; i < sizeof(fds) / sizeof(*fds); i++)
		if (fds[i] >= 0)
			close(fds[i]);
}

void guest_put(struct df_guest *guest)
{
	if (atomic_fetch_sub(&guest->refs, 1) != 1)
		return;
	if (guest->options.flags & DF_GUEST_PROGRAM)
		keep_nothing_of_guest(guest);
	close(guest->uffd);
	close_asides(guest);
	apf_free(guest);
	if (guest->slots)
		munmap(guest->slots, DF_AREA_SIZE);
	free(guest->regions);
	pthread_rwlock_destroy(&guest->lock);
	pthread_mutex_destroy(&guest->small);
	pthread_cond_destroy(&guest->end);
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
	bool dead;

	/* "dead" is set before the last fault is taken from the list: one that is
	 * put there later would keep itself, and its guest, for ever. */
	pthread_mutex_lock(&guest->small);
	dead = atomic_load(&guest->dead);
	if (!dead) {
		fault->next = guest->again;
		guest->again = fault;
	}
	pthread_mutex_unlock(&guest->small);
	if (dead)
		fault_free(fault);
	else
		kick(guest);
}

struct df_fault *guest_take_again(struct df_guest *guest)
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
	if (!atomic_load_explicit(&guest->nattempts, memory_order_relaxed))
		return;
	pthread_mutex_lock(&guest->small);
	for (unsigned i = 0; i < guest->nattempts; i++)
		if (guest->attempts[i].page >= start && guest->attempts[i].page < end)
			guest->attempts[i--] = guest->attempts[--guest->nattempts];
	pthread_mutex_unlock(&guest->small);
}

/* What the reader waits for beside faults, as one descriptor: a third to poll would cost
 * every fault 1.5 us. */
static int open_asides(struct df_guest *guest)
{
	struct epoll_event readable = { .events = EPOLLIN };
	int bell[2] = { -1, -1 };
	bool failed;

	guest->kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	guest->asides = epoll_create1(EPOLL_CLOEXEC);
	/* Not an eventfd: its flags would be the guest's to change, too. */
	failed = socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, bell);
	guest->doorbell = bell[0];
	guest->doorbell_guest = bell[1];
	return failed || epoll_ctl(guest->asides, EPOLL_CTL_ADD, guest->kick, &readable) ||
	       epoll_ctl(guest->asides, EPOLL_CTL_ADD, guest->doorbell, &readable) ? -errno : 0;
}

int guest_alloc(struct df_engine *engine, int uffd, int pid, struct df_guest **out)
{
	struct df_guest *guest = calloc(1, sizeof(*guest));
	int error;

	if (!guest)
		return -ENOMEM;
	error = open_asides(guest);
	if (error) {
		close_asides(guest);
		free(guest);
		return error;
	}
	guest->engine = engine;
	guest->id = atomic_fetch_add(&next_guest_id, 1);
	atomic_init(&guest->refs, 1);
	atomic_init(&guest->dead, false);
	guest->uffd = uffd;
	guest->pid = pid;
	pthread_rwlock_init(&guest->lock, NULL);
	pthread_mutex_init(&guest->small, NULL);
	pthread_cond_init(&guest->end, NULL);
	pthread_mutex_init(&guest->apf_lock, NULL);
	*out = guest;
	return 0;
}

/* poll() on a blocking userfaultfd is POLLERR (userfaultfd_poll), and the kernel
 * makes a forked child's like the first was made, whatever was set later
 * (resolve_userfault_fork). */
int guest_unblock(struct df_guest *guest)
{
	int flags = fcntl(guest->uffd, F_GETFL);

	return flags < 0 || fcntl(guest->uffd, F_SETFL, flags | O_NONBLOCK) ||
	       fcntl(guest->uffd, F_SETFD, FD_CLOEXEC) ? -errno : 0;
}

int guest_start(struct df_guest *guest)
{
	struct df_engine *engine = guest->engine;
	int error = guest_unblock(guest);

	if (error)
		return error;
	guest_get(guest);
	error = thread_start(&guest->thread, events_read, guest, "df-guest");
	if (error) {
		guest_put(guest);
		return error;
	}
	pthread_mutex_lock(&engine->lock);
	guest->next = engine->guests;
	engine->guests = guest;
	pthread_mutex_unlock(&engine->lock);
	return 0;
}

static int map_area(struct df_guest *guest, int area)
{
	struct stat st;
	struct statfs fs;
	int seals = fcntl(area, F_GET_SEALS);

	/* A page the guest could cut off would be a SIGBUS for us; so would one of
	 * hugetlbfs, which it could punch out while the pool is empty. */
	if (seals < 0 || !(seals & F_SEAL_SHRINK) || fstat(area, &st) || fstatfs(area, &fs) ||
	    fs.f_type != TMPFS_MAGIC || st.st_size < DF_AREA_SIZE)
		return -EINVAL;
	guest->slots = mmap(NULL, DF_AREA_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, area, 0);
	if (guest->slots == MAP_FAILED) {
		guest->slots = NULL;
		return -errno;
	}
	return 0;
}

int df_guest_new(struct df_engine *engine, int uffd, int area,
		 const struct df_guest_options *options, struct df_guest **out)
{
	struct df_guest *guest = NULL;
	int error = guest_alloc(engine, uffd, options->pid, &guest);

	*out = NULL;
	if (error) {
		close(uffd);
	} else {
		guest->options = *options;
		if (options->flags & DF_GUEST_PROGRAM)
			keep_uffd(guest);
		guest->tracks = options->features & UFFD_FEATURE_WP_UNPOPULATED;
		if (area >= 0)
			error = map_area(guest, area);
		if (!error)
			error = apf_new(guest);
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

int df_guest_doorbell(struct df_guest *guest)
{
	int fd = guest->doorbell_guest;

	guest->doorbell_guest = -1;
	return fd >= 0 ? fd : -EBADF;
}

uint64_t df_guest_id(struct df_guest *guest)
{
	return guest->id;
}

/* A munmap() returns in the guest when its event has been read: what the guest asks
 * for next must find that it was acted upon.  A reader that stays where it is sits
 * in a read(2) that was made to block; its guest has only itself to blame. */
void guest_settle(struct df_guest *guest)
{
	uint64_t turn = atomic_load(&guest->turn), until = now_ns() + SETTLE_NS;
	struct timespec pause = { .tv_nsec = 20000 };

	while (turn % 2 && atomic_load(&guest->turn) == turn && !atomic_load(&guest->stuck)) {
		if (now_ns() > until)
			atomic_store(&guest->stuck, true);
		nanosleep(&pause, NULL);
	}
}

/* The kernel has no events for us that say what the addresses of before meant: a munmap()
 * frees its range before its event is read, and another thread's mmap() may be there by now. */
int guest_catch_up(struct df_guest *guest)
{
	uint64_t until = now_ns() + CATCH_UP_NS, turn;
	struct timespec pause = { .tv_nsec = 20000 };

	while (uffd_changing(guest->uffd)) {
		if (now_ns() > until)
			return -EAGAIN;
		nanosleep(&pause, NULL);
	}
	turn = atomic_load(&guest->turn);
	while (turn % 2 && atomic_load(&guest->turn) == turn) {
		if (now_ns() > until)
			return -EAGAIN;
		nanosleep(&pause, NULL);
	}
	return 0;
}

bool guest_shows(struct df_guest *guest, uint64_t address)
{
	bool found;

	pthread_rwlock_rdlock(&guest->lock);
	found = region_find(guest, address);
	pthread_rwlock_unlock(&guest->lock);
	return found;
}

int df_guest_map(struct df_guest *guest, uint64_t start, uint64_t len, struct df_file *file,
		 uint64_t offset, int writable)
{
	int error;

	file_lock(file);
	error = file_activate(file, false);
	if (!error && writable && !file->source.writable)
		error = -EACCES;
	file_unlock(file);
	if (error)
		return error;
	guest_settle(guest);
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
	guest_settle(guest);
	pthread_rwlock_wrlock(&guest->lock);
	region_remove(guest, start, start + len);
	pthread_rwlock_unlock(&guest->lock);
	return 0;
}

/* Poison what is absent; -EAGAIN: not all, the address space is changing. */
int guest_poison(struct df_guest *guest)
{
	int error = 0;

	pthread_rwlock_rdlock(&guest->lock);
	for (size_t i = 0; error != -EAGAIN && i < guest->nregions; i++)
		error = uffd_poison_absent(guest->uffd, guest->regions[i]->start,
					   guest->regions[i]->len);
	pthread_rwlock_unlock(&guest->lock);
	return error;
}

static bool join_reader(struct df_guest *guest)
{
	uint64_t until = now_ns() + JOIN_NS;
	bool ended;
	void *how;

	pthread_mutex_lock(&guest->small);
	while (!guest->ended && clock_wait(&guest->end, &guest->small, until))
		;
	ended = guest->ended;
	pthread_mutex_unlock(&guest->small);
	/* The descriptor's O_NONBLOCK is the guest's to clear: then the reader may
	 * be in a read(2) that nothing ends but this. */
	if (!ended)
		pthread_cancel(guest->thread);
	pthread_join(guest->thread, &how);
	return how != PTHREAD_CANCELED;
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

	/* No install from here on.  The reader ends first, and poisons: a child whose
	 * fork it has read still needs its parent's regions, and the poison the last
	 * of the moves. */
	pthread_rwlock_wrlock(&guest->lock);
	atomic_store(&guest->dead, true);
	pthread_rwlock_unlock(&guest->lock);
	kick(guest);
	if (!join_reader(guest))
		guest_poison(guest);
	pthread_rwlock_wrlock(&guest->lock);
	while (guest->nregions) {
		struct df_region *region = guest->regions[guest->nregions - 1];

		region_remove(guest, region->start, region->start + region->len);
	}
	pthread_rwlock_unlock(&guest->lock);
	faults_run(guest_take_again(guest), true);
	guest_put(guest);
}
