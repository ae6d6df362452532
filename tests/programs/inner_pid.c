/* SPDX-License-Identifier: Apache-2.0
 *
 * inner_pid.c - a mapping that grows in place, in a pid namespace of its own.
 *
 * inner_pid FILE: a child whose number in the namespace is another process's outside (1, or that of
 * a thread of it) grows the mapping of FILE in place, of which no event tells, and loads a new page.
 */
#include <err.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096
#define ROOM (256 * PAGE)

static char *map;

static void *load(void *page)
{
	printf("page %ld: %c\n", (long)(ssize_t)page, map[(ssize_t)page * PAGE]);
	fflush(stdout);
	return NULL;
}

int main(int argc, char **argv)
{
	int fd = argc == 2 ? open(argv[1], O_RDWR) : -1, status;
	pthread_t thread;

	if (fd < 0)
		err(2, "usage: inner_pid FILE");
	map = mmap(NULL, ROOM, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	munmap(map, ROOM);
	map = mmap(map, ROOM / 4, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	(void)*(volatile char *)map;
	if (unshare(CLONE_NEWPID))
		err(77, "unshare");
	if (fork()) {
		wait(&status);
		return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
	}
	if (mremap(map, ROOM / 4, ROOM, 0) != map)
		err(77, "mremap in place");
	load((void *)200);
	if (pthread_create(&thread, NULL, load, (void *)(ssize_t)201) || pthread_join(thread, NULL))
		err(2, "thread");
	return 0;
}
