/* SPDX-License-Identifier: Apache-2.0
 *
 * cleanup.c - removes the leftovers of a dead host: its mount, its sockets, its directories.
 * Must not touch page caches.
 *
 * Aborts the FUSE connection first.  A thread of the host may be unkillable, in a request to its own
 * mount or in a hung close(2).  Its /dev/fuse stays open then, and every process with a request to
 * the mount waits too (fs/fuse/dev.c, request_wait_answer()).
 */
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include "internal.h"

extern char **environ;

/* By fusectl, if it is mounted; works for the user of the mount, and after umount -l. */
static void abort_connection(const char *number)
{
	char path[128];
	int fd;

	snprintf(path, sizeof(path), "/sys/fs/fuse/connections/%s/abort", number);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	if (write(fd, "1", 1) < 0)
		perror("daxfault-keeper: the connection of a dead host was not aborted");
	close(fd);
}

/* MNT_FORCE aborts the connection too. */
static void unmount_as_root(const struct leftovers *left)
{
	char path[64];

	if (left->point >= 0)
		snprintf(path, sizeof(path), "/proc/self/fd/%d", left->point);
	if (umount2(left->point >= 0 ? path : left->mount, MNT_FORCE | MNT_DETACH) && errno != EINVAL)
		perror("daxfault-keeper: the mount of a dead host was not removed");
}

static void unmount_as_user(const char *mount)
{
	char *arguments[] = { "fusermount3", "-u", "-z", "-q", "--", (char *)mount, NULL };
	pid_t child;

	if (!posix_spawnp(&child, arguments[0], NULL, NULL, arguments, environ))
		waitpid(child, NULL, 0);
}

void cleanup(const struct leftovers *left)
{
	if (left->connection)
		abort_connection(left->connection);
	if (left->mount && geteuid() == 0)
		unmount_as_root(left);
	else if (left->mount)
		unmount_as_user(left->mount);
	for (int i = 0; i < left->npaths; i++)
		if (unlink(left->paths[i]) && (errno == EISDIR || errno == EPERM))
			rmdir(left->paths[i]);
}
