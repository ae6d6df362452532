/* SPDX-License-Identifier: Apache-2.0
 *
 * main.c - daxfault-keeper: holds the page caches and userfaultfds of a host, and ends the guests'
 * mappings in SIGBUS when the host dies (keeper.h).  Its standard input is the host's
 * socket.  Owns nothing else; must not serve a fault.
 *
 * Exit: 0 the host has ended, 2 standard input is not a host's socket.
 */
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "abi/compat.h"
#include "base/packet.h"
#include "keeper/keeper.h"

#define LOWEST 0x10000ull			/* vm.mmap_min_addr; nothing is mapped below */
#define HIGHEST 0x7ffffffff000ull		/* TASK_SIZE_MAX, 4-level paging */

struct kept {
	struct keep message;
	int fd;
};

static struct kept *kept;
static size_t nkept, room;

/* -> false at the end of the connection; *fd is -1 when none came */
static bool receive(struct keep *message, int *fd)
{
	int fds[PACKET_FDS], nfds;
	ssize_t n = packet_receive(STDIN_FILENO, message, sizeof(*message), fds, &nfds);

	if (n == -ENOTSOCK || n == -EBADF) {
		fputs("daxfault-keeper: standard input is not a socket; it is started by a host\n",
		      stderr);
		exit(2);
	}
	*fd = nfds ? fds[0] : -1;
	return n == sizeof(*message) || n == -EMFILE;	/* no descriptor left: what it carried is not kept */
}

static void keep(const struct keep *message, int fd)
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

static void let_go(const struct keep *message)
{
	for (size_t i = nkept; i-- > 0;)
		if (kept[i].message.kind == message->what && kept[i].message.id == message->id) {
			close(kept[i].fd);
			kept[i] = kept[--nkept];
			return;
		}
}

/* Every page first, then the waiters for one: they touch it again, and find it gone. */
static void end_all(void)
{
	struct uffdio_range all = { LOWEST, HIGHEST - LOWEST };

	for (size_t i = 0; i < nkept; i++)
		if (kept[i].message.kind == DF_KEEP_CACHE && ftruncate(kept[i].fd, 0))
			perror("daxfault-keeper: a page cache could not be truncated");
	for (size_t i = 0; i < nkept; i++)
		if (kept[i].message.kind == DF_KEEP_UFFD)
			ioctl(kept[i].fd, UFFDIO_WAKE, &all);
}

int main(void)
{
	struct rlimit files;
	struct keep message;
	int fd;

	/* what ends the host by its terminal, or its process group, must not end this first */
	signal(SIGINT, SIG_IGN);
	signal(SIGTERM, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	signal(SIGQUIT, SIG_IGN);
	if (!getrlimit(RLIMIT_NOFILE, &files)) {
		files.rlim_cur = files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
	}
	while (receive(&message, &fd)) {
		if (message.kind == DF_KEEP_NOTHING)
			let_go(&message);
		else if (fd >= 0)
			keep(&message, fd);
	}
	end_all();
	return 0;
}
