/* SPDX-License-Identifier: Apache-2.0
 *
 * mappings.c - what scripts/bench/bench_run.py runs on each file system: times what a program
 * does with a mapping, and prints one JSON object, all in nanoseconds of the median.
 *
 *   daxfault-bench-mappings FILE PAGES
 *
 * FILE is truncated and written to.  Owns the operations; must not know which file system
 * it is on.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/laps.h"

#define PAGE 4096u

enum {
	MAPPINGS = 100,
	FAILURES = 200,
};

static const char *path;
static size_t len;
static uint32_t *room;
static sigjmp_buf past;

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void die(const char *what)
{
	fprintf(stderr, "daxfault-bench-mappings: %s: %s: %s\n", path, what, strerror(errno));
	exit(1);
}

static int ordered(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

static uint64_t median(uint64_t *times, size_t n)
{
	qsort(times, n, sizeof(*times), ordered);
	return times[n / 2];
}

static uint8_t *map(int fd, int prot)
{
	uint8_t *at = mmap(NULL, len, prot, MAP_SHARED, fd, 0);

	if (at == MAP_FAILED)
		die("mmap");
	return at;
}

static void bench_mmap(int fd)
{
	uint64_t mapped[MAPPINGS], unmapped[MAPPINGS];

	for (size_t i = 0; i < MAPPINGS; i++) {
		uint64_t begin = now(), middle;
		uint8_t *at = map(fd, PROT_READ | PROT_WRITE);

		middle = now();
		munmap(at, len);
		unmapped[i] = now() - middle;
		mapped[i] = middle - begin;
	}
	printf("\"mmap\": %lu, \"munmap\": %lu, ", median(mapped, MAPPINGS),
	       median(unmapped, MAPPINGS));
}

static void bench_touch(const char *name, int fd, uint64_t seed)
{
	uint8_t *at = map(fd, PROT_READ | PROT_WRITE);
	struct laps laps;

	laps_run(at, len, PAGE, seed, room, &laps);
	printf("\"%s\": %lu, ", name, laps.total / laps.count);
	munmap(at, len);
}

static void bench_store(int fd)
{
	uint8_t *at = map(fd, PROT_READ | PROT_WRITE);
	uint64_t begin = now(), middle;

	for (size_t i = 0; i < len; i += PAGE)
		at[i] = 1;
	middle = now();
	if (msync(at, len, MS_SYNC))
		die("msync");
	printf("\"store\": %lu, \"msync\": %lu, ", (middle - begin) / (len / PAGE),
	       (now() - middle) / (len / PAGE));
	munmap(at, len);
}

static void caught(int signal)
{
	(void)signal;
	siglongjmp(past, 1);
}

/* Pages that were there before the file was cut. */
static void bench_failures(int fd)
{
	static uint64_t signals[FAILURES], calls[FAILURES];
	static volatile size_t page;
	static volatile uint64_t begin;
	static uint8_t *at;
	int out[2];

	at = map(fd, PROT_READ);
	for (size_t i = 0; i < len; i += PAGE)
		(void)*(volatile uint8_t *)(at + i);
	signal(SIGBUS, caught);
	if (ftruncate(fd, PAGE) || pipe(out))
		die("ftruncate");
	for (page = 0; page < FAILURES; page++) {
		begin = now();
		if (!sigsetjmp(past, 1)) {
			(void)*(volatile uint8_t *)(at + (1 + page) * PAGE);
			errno = 0;
			die("a page past the end of the file was readable");
		}
		signals[page] = now() - begin;
	}
	for (page = 0; page < FAILURES; page++) {
		begin = now();
		if (write(out[1], at + (1 + FAILURES + page) * PAGE, 1) != -1 || errno != EFAULT)
			die("a page past the end of the file could be written from");
		calls[page] = now() - begin;
	}
	printf("\"sigbus\": %lu, \"efault\": %lu}\n", median(signals, FAILURES),
	       median(calls, FAILURES));
}

int main(int argc, char **argv)
{
	size_t pages = argc == 3 ? strtoul(argv[2], NULL, 10) : 0;
	int fd;

	if (pages < 2 * FAILURES + 2) {
		fprintf(stderr, "usage: daxfault-bench-mappings FILE PAGES (%d or more)\n",
			2 * FAILURES + 2);
		return 2;
	}
	path = argv[1];
	len = pages * PAGE;
	room = calloc(pages, sizeof(*room));
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0 || !room)
		die("open");
	printf("{");
	bench_touch("sequential", fd, 0); /* first: nothing is cached yet */
	bench_touch("sequential_again", fd, 0);
	bench_touch("random", fd, 7);
	bench_mmap(fd);
	bench_store(fd);
	bench_failures(fd);
	return 0;
}
