/* SPDX-License-Identifier: Apache-2.0
 *
 * keep.c - the host's side of the keeper protocol (keeper.h).  Owns the list of descriptors to
 * keep, and which of them the keeper has been sent.  Must not wait for the keeper: callers hold
 * locks.
 */
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#include "base/cleanup.h"
#include "base/packet.h"
#include "keep.h"

struct entry {
	struct keep message;
	int fd; /* -1: a message without one, removed when it is sent */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* a leaf */
static struct entry *entries;				 /* in the order in which they are sent */
static size_t nentries, room;
static size_t nsent; /* the first entries, all with descriptors */
static int keeper = -1;
static int lost; /* a negative errno */
static int event = -1;

static void remove_at(size_t i)
{
	memmove(entries + i, entries + i + 1, (--nentries - i) * sizeof(*entries));
}

static int send_all(void)
{
	while (keeper >= 0 && !lost && nsent < nentries) {
		const struct entry *next = &entries[nsent];
		int error = packet_send_now(keeper, &next->message, sizeof(next->message),
					    &next->fd, next->fd >= 0);

		if (error == -EAGAIN)
			break;
		lost = error;
		if (error)
			break;
		if (next->fd >= 0)
			nsent++;
		else
			remove_at(nsent);
	}
	return keeper < 0 ? 0 : lost ? lost : (int)(nentries - nsent);
}

static int add(const struct keep *message, int fd)
{
	if (nentries == room) {
		size_t more = room ? 2 * room : 64;
		struct entry *grown = realloc(entries, more * sizeof(*grown));

		if (!grown)
			return -ENOMEM;
		entries = grown;
		room = more;
	}
	entries[nentries++] = (struct entry){ *message, fd };
	return send_all();
}

/* If the socket has no room, the thread that waits for the event calls df_keeper_send() later. */
static void add_or_notify(const struct keep *message, int fd)
{
	if (add(message, fd) && event >= 0)
		eventfd_write(event, 1);
}

int df_keeper(int socket)
{
	GUARD(&lock);
	keeper = socket;
	lost = 0;
	nsent = 0;
	for (size_t i = nentries; i-- > 0;)
		if (entries[i].fd < 0)
			remove_at(i);
	return send_all();
}

int df_keeper_send(void)
{
	GUARD(&lock);
	return send_all();
}

int df_keeper_ping(void)
{
	GUARD(&lock);
	return add(&(struct keep){ .kind = DF_KEEP_PING }, -1);
}

int df_keeper_end(void)
{
	GUARD(&lock);
	return add(&(struct keep){ .kind = DF_KEEP_END }, -1);
}

int df_keeper_fd(void)
{
	GUARD(&lock);
	if (event < 0)
		event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	return event < 0 ? -errno : event;
}

void keep(enum keep_kind what, uint64_t id, int fd)
{
	GUARD(&lock);
	add_or_notify(&(struct keep){ .kind = what, .id = id }, fd);
}

void keep_nothing(enum keep_kind what, uint64_t id)
{
	GUARD(&lock);
	for (size_t i = nentries; i-- > 0;) {
		const struct entry *entry = &entries[i];

		if (entry->fd < 0 || entry->message.kind != what || entry->message.id != id)
			continue;
		remove_at(i);
		if (i >= nsent)
			continue;
		nsent--;
		if (keeper >= 0)
			add_or_notify(&(struct keep){ .kind = DF_KEEP_NOTHING, .what = what, .id = id },
				      -1);
	}
}

void df_keep_socket(int fd)
{
	keep(DF_KEEP_SOCKET, (uint64_t)fd, fd);
}

void df_keep_no_socket(int fd)
{
	keep_nothing(DF_KEEP_SOCKET, (uint64_t)fd);
}
