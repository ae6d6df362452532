/* SPDX-License-Identifier: Apache-2.0
 *
 * kept.c - the kept descriptors, and their use when the host dies.  Must not serve faults, nor open
 * files.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "abi/compat.h"
#include "base/packet.h"
#include "internal.h"

#define LOWEST 0x10000ull	  /* vm.mmap_min_addr; nothing is mapped below */
#define HIGHEST 0x7ffffffff000ull /* TASK_SIZE_MAX, 4-level paging */
#define LAST_MS 50		  /* grace for system calls of a dying host: a write to a file */

struct kept {
	struct keep message;
	int fd;
};

static struct kept *kept;
static size_t nkept, room;
static int dead[2]; /* a pipe: the host's main thread is dead */

/* -> false at the end of the connection; *fd is -1 when none came */
static bool receive(int host, struct keep *message, int *fd)
{
	int fds[PACKET_FDS], nfds;
	ssize_t n = packet_receive(host, message, sizeof(*message), fds, &nfds);

	*fd = nfds ? fds[0] : -1;
	return n == sizeof(*message) || n == -EMFILE; /* out of descriptors: this one is not kept */
}

static void add(const struct keep *message, int fd)
{
	if (nkept == room) {
		size_t more = room ? 2 * room : 64;
		struct kept *grown = realloc(kept, more * sizeof(*grown));

		if (!grown) {
			close(fd);
			return;
		}
		kept = grown;
		room = more;
	}
	kept[nkept++] = (struct kept){ *message, fd };
}

static void drop(const struct keep *message)
{
	for (size_t i = nkept; i-- > 0;)
		if (kept[i].message.kind == message->what && kept[i].message.id == message->id) {
			close(kept[i].fd);
			kept[i] = kept[--nkept];
			return;
		}
}

static void *wait_for_death(void *life)
{
	if (pthread_mutex_lock(&((struct keep_life *)life)->alive) == EOWNERDEAD)
		close(dead[1]); /* at the other end: readable */
	return NULL;
}

static void watch(int fd)
{
	void *life = mmap(NULL, sizeof(struct keep_life), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	pthread_t thread;

	close(fd);
	if (life != MAP_FAILED && !pthread_create(&thread, NULL, wait_for_death, life))
		pthread_detach(thread);
}

/* While a thread of the host cannot die, the host's sockets stay open but unanswered.  The listening
 * socket is trio's, so it does not block. */
static void hang_up(int fd)
{
	int waiting;

	shutdown(fd, SHUT_RDWR);
	while ((waiting = accept4(fd, NULL, NULL, SOCK_CLOEXEC)) >= 0)
		close(waiting);
}

static int by_id_and_kind(const void *one, const void *other)
{
	const struct keep *a = &((const struct kept *)one)->message,
			  *b = &((const struct kept *)other)->message;

	return a->id != b->id ? (a->id < b->id ? -1 : 1) : (int)a->kind - (int)b->kind;
}

/* A page cache is followed by its backing file, if that may be written. */
static void empty(const struct kept *cache)
{
	const struct kept *next = cache + 1, *end = kept + nkept;

	while (next < end && next->message.id == cache->message.id &&
	       next->message.kind != DF_KEEP_SOURCE)
		next++;
	if (next < end && next->message.id == cache->message.id)
		write_back_take(cache->message.id, cache->fd, next->fd);
	else if (ftruncate(cache->fd, 0))
		perror("daxfault-keeper: a page cache could not be truncated");
}

/* Drop every page first, then wake the waiters: they repeat the access and get SIGBUS.  What takes
 * long comes last. */
static void end_all(void)
{
	struct uffdio_range all = { LOWEST, HIGHEST - LOWEST };

	if (nkept)
		qsort(kept, nkept, sizeof(*kept), by_id_and_kind);
	for (size_t i = 0; i < nkept; i++)
		if (kept[i].message.kind == DF_KEEP_KNOWN)
			write_back_know(kept[i].fd);
	for (size_t i = 0; i < nkept; i++)
		if (kept[i].message.kind == DF_KEEP_CACHE)
			empty(&kept[i]);
	for (size_t i = 0; i < nkept; i++)
		if (kept[i].message.kind == DF_KEEP_UFFD)
			ioctl(kept[i].fd, UFFDIO_WAKE, &all);
	for (size_t i = 0; i < nkept; i++)
		if (kept[i].message.kind == DF_KEEP_SOCKET)
			hang_up(kept[i].fd);
	write_back_run();
}

static void report(int died)
{
	if (write(died, "", 1) < 0)
		perror("daxfault-keeper");
}

/* Until the host ends.  The death of a host is noticed before its end of the socket is closed. */
static void receive_all(int host, int died_fd)
{
	struct pollfd fds[] = { { .fd = host, .events = POLLIN },
				{ .fd = dead[0], .events = POLLIN } };
	bool ends = false, died = false;
	struct keep message;
	int fd;

	/* process every message that it sent, even if it is dead by now */
	while (poll(fds, died ? 1 : 2, died ? LAST_MS : -1) != 0) {
		if (!died && fds[1].revents) {
			died = true;
			report(died_fd);
		}
		if (!fds[0].revents)
			continue;
		if (!receive(host, &message, &fd)) {
			if (!ends && !died)
				report(died_fd);
			return;
		}
		if (message.kind == DF_KEEP_NOTHING)
			drop(&message);
		else if (message.kind == DF_KEEP_END)
			ends = true;
		else if (message.kind == DF_KEEP_LIFE && fd >= 0)
			watch(fd);
		else if (fd >= 0)
			add(&message, fd);
	}
}

void kept_run(int host, int died)
{
	struct rlimit files;

	if (!getrlimit(RLIMIT_NOFILE, &files)) {
		files.rlim_cur = files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
	}
	if (pipe(dead)) {
		perror("daxfault-keeper");
		_exit(1);
	}
	confine();
	receive_all(host, died);
	end_all();
}
