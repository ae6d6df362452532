/* SPDX-License-Identifier: Apache-2.0
 *
 * shared_space.c - an address space that outlives the process, and the connection, that mapped a file.
 *
 * shared_space MODE FILE: a helper of clone(CLONE_VM) maps FILE, of 256 pages, and ends.  Then this
 * process loads a page that nobody has touched, and stores to another.
 *
 * Modes: "exits"; "killed", with SIGKILL; "files", the helper shares the descriptors (CLONE_FILES);
 * "moved", this process moves the mapping before it touches it.
 */
#include <err.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096
#define PAGES 256
#define STACK 262144

static const char *mode;
static char *map;
static int fd;

static int helper(void *arg)
{
	(void)arg;
	map = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (map != MAP_FAILED)
		(void)*(volatile char *)map;
	if (!strcmp(mode, "killed"))
		kill(getpid(), SIGKILL);
	_exit(0);
}

int main(int argc, char **argv)
{
	char *stack = malloc(STACK);
	int flags = CLONE_VM | SIGCHLD, pid;

	if (argc != 3)
		errx(2, "usage: shared_space MODE FILE");
	mode = argv[1];
	fd = open(argv[2], O_RDWR);
	if (fd < 0 || !stack)
		err(2, "%s", argv[2]);
	if (!strcmp(mode, "files"))
		flags |= CLONE_FILES;
	pid = clone(helper, stack + STACK, flags, NULL);
	if (pid < 0 || waitpid(pid, NULL, 0) != pid)
		err(2, "clone");
	if (map == MAP_FAILED)
		errx(2, "the helper could not map it");
	puts("ready");
	fflush(stdout);
	getchar();
	if (!strcmp(mode, "moved"))
		map = mremap(map, PAGES * PAGE, 2 * PAGES * PAGE, MREMAP_MAYMOVE);
	map[PAGE] = 'Z';
	printf("loaded %c\n", map[200 * PAGE]);
	if (msync(map, 2 * PAGE, MS_SYNC))
		err(1, "msync");
	map[3 * PAGE] = 'Y'; /* to be written back at the end of the address space */
	return 0;
}
