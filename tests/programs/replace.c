/* SPDX-License-Identifier: Apache-2.0
 *
 * replace.c - one thread maps two files over one another, again and again, while another
 * reads.
 *
 * The kernel replaces a mapping in one step: the reader sees the one or the other.  Each
 * page of a file begins with its number, so page 1 of the first and page 2 of the second
 * are what may be read; anything else ends it, as a signal would.
 *
 *   replace FILE1 FILE2 TIMES
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

enum {
	PAGE = 4096
};

static atomic_bool done;

static void *read_on(void *arg)
{
	const volatile unsigned char *page = arg;

	while (!done) {
		unsigned char c = *page;

		if (c != 1 && c != 2) {
			fprintf(stderr, "read %d\n", c);
			exit(1);
		}
	}
	return NULL;
}

int main(int argc, char **argv)
{
	int times = argc > 3 ? atoi(argv[3]) : 0, fd[2], i;
	pthread_t reader;
	void *page;

	fd[0] = open(argv[1], O_RDWR);
	fd[1] = open(argv[2], O_RDWR);
	page = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd[0], 0);
	if (page == MAP_FAILED || pthread_create(&reader, NULL, read_on, page))
		return 2;
	for (i = 0; i < times; i++) {
		off_t offset = i % 2 ? 0 : PAGE;

		if (mmap(page, PAGE, PROT_READ, MAP_SHARED | MAP_FIXED, fd[!offset ? 0 : 1],
			 offset) != page) {
			perror("mmap");
			return 1;
		}
	}
	done = true;
	pthread_join(reader, NULL);
	return 0;
}
