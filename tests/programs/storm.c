/* SPDX-License-Identifier: Apache-2.0
 *
 * storm.c - a program under everything at once: processes and threads that read and store
 * through mappings and through system calls, move, drop, unmap and fork, while the files are
 * truncated and made longer, through the mount and behind it.  Every word seen is checked
 * against the model of stress.h.  It knows nothing of daxfault.
 *
 * storm run DIRECTORY BACKING MODEL SECONDS SEED [FLAWED]
 *     DIRECTORY is the mount's, BACKING the directory behind it, FLAWED a file (its number)
 *     that may have SIGBUS at any time.  MODEL is written at the end, for
 * storm verify BACKING MODEL
 *     after the host has ended: what is in the files themselves.
 *
 * exit status: 0, 1 after a violation; a process that stands still is told on standard output.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "storm.h"

#define STUCK_SECONDS 25

struct shared *shared;
struct counts *counts;
int fds[FILES], backing[FILES], flawed = NO_FILE;
static bool notices;

void violation(unsigned file, unsigned page, const char *what, uint64_t value)
{
	struct page_model *m = &shared->pages[file][page];

	atomic_fetch_add(&shared->violations, 1);
	fprintf(stderr,
		"process %d: file %u page %u: %s (%llx, cut %u, limit %u, issued %u, floor %llx)\n",
		(int)getpid(), file, page, what, (unsigned long long)value, atomic_load(&m->cut),
		atomic_load(&m->limit), atomic_load(&m->issued),
		(unsigned long long)atomic_load(&m->floor));
}

void check(long r, const char *what, unsigned file)
{
	if (r < 0) {
		fprintf(stderr, "process %d: file %u: %s: %s\n", (int)getpid(), file, what,
			strerror(errno));
		atomic_fetch_add(&shared->violations, 1);
	}
}

/* ------------------------------------------------------------------ the files */

/* The mount looks at the file for whoever reads it. */
static void let_notice(unsigned file)
{
	char byte;

	check(pread(fds[file], &byte, 1, 0), "pread", file);
}

static void shrink_and_grow(unsigned file, uint64_t *seed)
{
	unsigned first = next_random(seed) % PAGES;
	off_t size = (off_t)first * PAGE_BYTES + (next_random(seed) % 2 ? 1000 : 0);
	bool behind = file == FILE_BEHIND || (file == FILE_WILD && next_random(seed) % 2);
	int fd = behind ? backing[file] : fds[file];

	pages_cut(shared, file, first, true);
	check(ftruncate(fd, size), "ftruncate", file);
	if (behind)
		let_notice(file);
	if (next_random(seed) % 4 == 0)
		usleep(next_random(seed) % 2000); /* let others meet the end */
	check(ftruncate(fd, SIZE), "ftruncate", file);
	if (behind)
		let_notice(file);
	pages_cut(shared, file, first, false);
	atomic_fetch_add(behind ? &counts->behind : &counts->cuts, 1);
}

static void *changer_body(void *arg)
{
	unsigned file = (unsigned)(uintptr_t)arg;
	uint64_t seed = shared->seed * 1000003 + file * 104729 + 3;

	while (!atomic_load(&shared->stop) && (file != FILE_BEHIND || notices)) {
		unsigned what = next_random(&seed) % 100, page = next_random(&seed) % PAGES;

		atomic_fetch_add(&shared->progress[CHANGER], 1);
		if (what < 6) {
			shrink_and_grow(file, &seed);
		} else if (what < 40) {
			read_page(fds[file], file, page);
		} else if (file == FILE_BEHIND) {
			/* the floor is raised when the mount knows, and not before */
			struct page_model *m = &shared->pages[file][page];
			uint32_t version = atomic_fetch_add(&m->issued, 1) + 1;
			struct page_look before = page_look(m);
			uint64_t words[MIDDLE / 8 + 1] = { [0] = page_value(file, page, version) };

			words[MIDDLE / 8] = words[0];
			check(pwrite(backing[file], words, sizeof(words), (off_t)page * PAGE_BYTES),
			      "pwrite behind", file);
			let_notice(file);
			page_stored(m, before, version);
		} else if (page_writer(page) == CHANGER) {
			write_page(fds[file], file, page);
		}
		usleep(next_random(&seed) % 1000);
	}
	return NULL;
}

/* On a coarse clock (before Linux 6.13) two changes behind the mount may look like one. */
static bool fine_mtime(int fd)
{
	struct stat before, after;
	int seen = 0;

	for (int i = 0; i < 50; i++) {
		if (fstat(fd, &before) || pwrite(fd, "", 1, SIZE - 1) != 1 || fstat(fd, &after))
			return false;
		seen += before.st_mtim.tv_nsec != after.st_mtim.tv_nsec;
	}
	return seen == 50;
}

static int open_in(const char *directory, unsigned file, int flags)
{
	char path[4096];
	int fd;

	snprintf(path, sizeof(path), "%s/storm.%u", directory, file);
	fd = open(path, flags | O_CLOEXEC, 0600);
	if (fd < 0) {
		perror(path);
		exit(3);
	}
	return fd;
}

static void make_file(const char *directory, const char *behind, unsigned file)
{
	backing[file] = open_in(behind, file, O_RDWR | O_CREAT | O_TRUNC);
	check(ftruncate(backing[file], SIZE), "ftruncate", file);
	for (unsigned p = 0; p < PAGES; p++) {
		uint64_t value = page_value(file, p, 1);

		check(pwrite(backing[file], &value, 8, (off_t)p * PAGE_BYTES), "pwrite", file);
		check(pwrite(backing[file], &value, 8, (off_t)p * PAGE_BYTES + MIDDLE), "pwrite",
		      file);
		atomic_store(&shared->pages[file][p].issued, 1);
		atomic_store(&shared->pages[file][p].floor, 1);
	}
	if (file == FILE_BEHIND)
		notices = fine_mtime(backing[file]);
	fds[file] = open_in(directory, file, file == FILE_BEHIND ? O_RDONLY : O_RDWR);
}

/* ------------------------------------------------------------------ the run */

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* Told once, for somebody to look at us; then it is over. */
static void stuck(unsigned writer)
{
	printf("stuck: writer %u at %llu, %u children left\n", writer,
	       (unsigned long long)atomic_load(&shared->progress[writer]),
	       atomic_load(&shared->orphans));
	fflush(stdout);
	sleep(10);
	kill(0, SIGKILL);
}

static void watch(uint64_t *last, double *since)
{
	for (unsigned i = 0; i < WRITERS; i++) {
		uint64_t progress = atomic_load(&shared->progress[i]);

		if (progress != last[i])
			since[i] = now();
		last[i] = progress;
		if (now() - since[i] > STUCK_SECONDS)
			stuck(i);
	}
}

static void end(int pid, int expected)
{
	int status;

	for (double until = now() + STUCK_SECONDS; !waitpid(pid, &status, WNOHANG); usleep(1000))
		if (now() > until)
			stuck(CHANGER);
	if (status != expected)
		violation(0, 0, "a process did not end well", (uint64_t)status);
}

/* Let them work, and kill one now and then: what it has stored is not lost. */
static void go_on(double seconds, int *pids)
{
	double until = now() + seconds, since[WRITERS], kills = now() + 1;
	uint64_t last[WRITERS] = { 0 }, seed = shared->seed;

	for (unsigned i = 0; i < WRITERS; i++)
		since[i] = now();
	while (now() < until) {
		usleep(20000);
		watch(last, since);
		if (now() > kills) {
			unsigned victim = next_random(&seed) % PROCESSES;

			kills = now() + 1;
			kill(pids[victim], SIGKILL);
			end(pids[victim], SIGKILL);
			pids[victim] = start(victim);
			atomic_fetch_add(&counts->kills, 1);
		}
	}
}

static void report(void)
{
	printf("seed %llu: reads %llu stores %llu sigbus %llu private %llu preads %llu pwrites %llu syncs %llu "
	       "forks %llu moves %llu unmaps %llu drops %llu cuts %llu behind %llu kills %llu violations %u\n",
	       (unsigned long long)shared->seed, (unsigned long long)shared->reads,
	       (unsigned long long)shared->stores, (unsigned long long)shared->buses,
	       (unsigned long long)counts->privates, (unsigned long long)counts->preads,
	       (unsigned long long)counts->pwrites, (unsigned long long)counts->syncs,
	       (unsigned long long)shared->forks, (unsigned long long)shared->moves,
	       (unsigned long long)shared->unmaps, (unsigned long long)shared->drops,
	       (unsigned long long)counts->cuts, (unsigned long long)counts->behind,
	       (unsigned long long)counts->kills, atomic_load(&shared->violations));
}

static int run(char **argv)
{
	pthread_t changers[FILES];
	int pids[PROCESSES], fd;

	flawed = argv[7] ? atoi(argv[7]) : NO_FILE;
	shared->seed = strtoull(argv[6], NULL, 10);
	for (unsigned f = 0; f < FILES; f++)
		make_file(argv[2], argv[3], f);
	for (unsigned p = 0; p < PROCESSES; p++)
		pids[p] = start(p);
	for (unsigned f = 0; f < FILES; f++)
		pthread_create(&changers[f], NULL, changer_body, (void *)(uintptr_t)f);
	go_on(atof(argv[5]), pids);
	atomic_store(&shared->stop, 1);
	for (unsigned f = 0; f < FILES; f++)
		pthread_join(changers[f], NULL);
	for (unsigned p = 0; p < PROCESSES; p++)
		end(pids[p], 0);
	report();
	fd = open(argv[4], O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || write(fd, shared, sizeof(*shared)) != sizeof(*shared))
		return 3;
	return atomic_load(&shared->violations) != 0;
}

static int verify(char **argv)
{
	int fd = open(argv[3], O_RDONLY | O_CLOEXEC);

	if (fd < 0 || read(fd, shared, sizeof(*shared)) != sizeof(*shared))
		return 3;
	atomic_store(&shared->violations, 0);
	for (unsigned f = 0; f < FILES; f++) {
		int file = open_in(argv[2], f, O_RDONLY);

		for (unsigned p = 0; p < PAGES; p++)
			read_page(file, f, p);
		close(file);
	}
	return atomic_load(&shared->violations) != 0;
}

int main(int argc, char **argv)
{
	char *both = mmap(NULL, sizeof(*shared) + sizeof(*counts), PROT_READ | PROT_WRITE,
			  MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (both == MAP_FAILED)
		return 3;
	shared = (struct shared *)both;
	counts = (struct counts *)(both + sizeof(*shared));
	if (argc >= 7 && !strcmp(argv[1], "run"))
		return run(argv);
	if (argc == 4 && !strcmp(argv[1], "verify"))
		return verify(argv);
	return 2;
}
