/* SPDX-License-Identifier: Apache-2.0
 *
 * keep.c - the host's end of its keeper (keeper.h).  Owns the socket; must not wait for
 * anything but room in it.
 */
#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/socket.h>

#include "engine/internal.h"
#include "keeper.h"

static atomic_int keeper = -1;

void df_keeper(int socket)
{
	atomic_store(&keeper, socket);
}

static void say(const struct keep *message, int fd)
{
	union {
		char room[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = { .room = { 0 } };
	struct iovec iov = { (void *)message, sizeof(*message) };
	struct msghdr packet = { .msg_iov = &iov, .msg_iovlen = 1 };
	int to = atomic_load(&keeper);

	if (to < 0)
		return;
	if (fd >= 0) {
		struct cmsghdr *c = &control.align;

		packet.msg_control = control.room;
		packet.msg_controllen = sizeof(control.room);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(c), &fd, sizeof(fd));
	}
	while (sendmsg(to, &packet, MSG_NOSIGNAL) < 0 && errno == EINTR)
		;
}

void keep_cache(const struct df_file *file)
{
	say(&(struct keep){ .kind = DF_KEEP_CACHE, .id = file->id }, file->cache);
}

void keep_uffd(const struct df_guest *guest)
{
	say(&(struct keep){ .kind = DF_KEEP_UFFD, .id = guest->id }, guest->uffd);
}

void keep_nothing_of_file(const struct df_file *file)
{
	say(&(struct keep){ .kind = DF_KEEP_NOTHING, .what = DF_KEEP_CACHE, .id = file->id }, -1);
}

void keep_nothing_of_guest(const struct df_guest *guest)
{
	say(&(struct keep){ .kind = DF_KEEP_NOTHING, .what = DF_KEEP_UFFD, .id = guest->id }, -1);
}
