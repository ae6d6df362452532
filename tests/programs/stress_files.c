/* SPDX-License-Identifier: Apache-2.0
 *
 * stress_files.c - the host's side of the stress: what is done to the files, through
 * the engine and behind it, and what must be true of them.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "stress_host.h"

bool notices;
static int backing[FILES]; /* descriptors of our own, "behind" the host */

void violation(unsigned file, unsigned page, const char *what, uint64_t value)
{
	atomic_fetch_add(&shared->violations, 1);
	fprintf(stderr, "host: file %u page %u: %s (%llx)\n", file, page, what,
		(unsigned long long)value);
}

void check(int64_t value, const char *what)
{
	if (value < 0) {
		fprintf(stderr, "host: %s: %s\n", what, strerror((int)-value));
		atomic_fetch_add(&shared->violations, 1);
	}
}

static void resize(unsigned file, uint64_t size)
{
	if (file == FILE_BEHIND) {
		check(ftruncate(backing[file], (off_t)size) ? -errno : 0, "ftruncate");
		check(df_file_recheck(files[file]), "recheck");
	} else {
		check(df_file_truncate(files[file], size), "truncate");
	}
}

static void shrink_and_grow(unsigned file, uint64_t *seed)
{
	unsigned first = next_random(seed) % PAGES;
	uint64_t size = (uint64_t)first * PAGE_BYTES + (next_random(seed) % 2 ? 1000 : 0);

	pages_cut(shared, file, first, true);
	resize(file, size);
	if (next_random(seed) % 4 == 0)
		usleep(next_random(seed) % 500); /* let guests meet the end */
	resize(file, SIZE);
	pages_cut(shared, file, first, false);
}

static void write_page(unsigned file, unsigned page)
{
	struct page_model *m = &shared->pages[file][page];
	uint32_t version = atomic_fetch_add(&m->issued, 1) + 1;
	struct page_look before = page_look(m);
	uint64_t words[PAGE_BYTES / 8] = { [0] = page_value(file, page, version) };
	uint64_t at = (uint64_t)page * PAGE_BYTES;
	/* a word, so that its neighbours stay whosever they are, or nearly all of it */
	size_t len = version % 2 ? 8 : MIDDLE + 8;

	words[MIDDLE / 8] = words[0];
	if (file == FILE_BEHIND) {
		check(pwrite(backing[file], words, len, (off_t)at) < 0 ? -errno : 0, "pwrite");
		check(df_file_recheck(files[file]), "recheck");
	} else {
		check(df_file_write(files[file], words, at, len, 0), "write");
	}
	if (len > 8)
		page_stored(m, before, version);
}

static void read_page(unsigned file, unsigned page, bool behind)
{
	struct page_look before = page_look(&shared->pages[file][page]);
	uint64_t words[PAGE_BYTES / 8] = { 0 }, at = (uint64_t)page * PAGE_BYTES;
	int64_t n = behind ? pread(backing[file], words, PAGE_BYTES, (off_t)at)
			   : df_file_read(files[file], words, at, PAGE_BYTES, 0);

	check(n, "read");
	for (unsigned i = 0; i <= MIDDLE / 8; i += MIDDLE / 8) {
		const char *wrong = page_check(shared, file, page, before, words[i]);

		if (wrong)
			violation(file, page, wrong, words[i]);
	}
}

/* So that guests are told of faults that wait; and from the start it is a slow disk. */
static void make_slow(unsigned file, unsigned page)
{
	if (page % 7 == 0)
		df_file_inject_clear(files[file]);
	check(df_file_inject(files[file],
			     &(struct df_inject_options){
				     .start = (uint64_t)page * PAGE_BYTES,
				     .len = 2 * PAGE_BYTES,
				     .delay_ns = 500000,
				     .count = 8,
			     }),
	      "inject");
}

void *file_body(void *arg)
{
	unsigned file = (unsigned)(uintptr_t)arg;
	uint64_t seed = shared->seed * 1000003 + file * 104729 + 3;

	while (!atomic_load(&shared->stop)) {
		unsigned what = next_random(&seed) % 100, page = next_random(&seed) % PAGES;

		atomic_fetch_add(&shared->progress[WRITERS - 1], 1);
		if (file == FILE_BEHIND && !notices)
			break;
		if (what < 3)
			shrink_and_grow(file, &seed);
		else if (what < 8)
			check(df_file_write_back(files[file]), "write_back");
		else if (what < 10)
			df_file_heal(files[file]);
		else if (what < 20)
			make_slow(file, page);
		else if (what < 40)
			read_page(file, page, false);
		else if (file == FILE_BEHIND)
			write_page(file, page);
		else if (page_writer(page) == WRITERS - 1)
			write_page(file, page);
		usleep(next_random(&seed) % 200);
	}
	return NULL;
}

/* On a coarse clock (before Linux 6.13) a change right after ours keeps the mtime. */
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

void make_file(const char *directory, unsigned file)
{
	char path[4096];
	int fd;

	snprintf(path, sizeof(path), "%s/stress.%u", directory, file);
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	backing[file] = open(path, O_RDWR | O_CLOEXEC);
	unlink(path);
	if (fd < 0 || backing[file] < 0 || ftruncate(fd, SIZE)) {
		perror(path);
		exit(2);
	}
	for (unsigned p = 0; p < PAGES; p++) {
		uint64_t value = page_value(file, p, 1);

		if (pwrite(fd, &value, 8, (off_t)p * PAGE_BYTES) != 8 ||
		    pwrite(fd, &value, 8, (off_t)p * PAGE_BYTES + MIDDLE) != 8)
			exit(2);
		atomic_store(&shared->pages[file][p].issued, 1);
		atomic_store(&shared->pages[file][p].floor, 1);
	}
	if (file == FILE_BEHIND)
		notices = fine_mtime(fd);
	check(df_file_new(fd, true, &files[file]), "df_file_new");
}

void check_end(unsigned file)
{
	struct df_file_state state;

	check(df_file_write_back(files[file]), "last write_back");
	for (unsigned p = 0; p < PAGES; p++) {
		read_page(file, p, false);
		read_page(file, p, true); /* every store has reached the file itself */
	}
	if (programs) {
		check(df_file_retire(files[file]), "retire");
		df_file_state(files[file], &state);
		if (state.resident)
			violation(file, 0, "pages of a page cache that was given up", state.resident);
		read_page(file, 0, false);
	}
	df_file_state(files[file], &state);
	if (state.mappings || state.fills || state.waiting || state.poisoned)
		violation(file, 0, "something was left behind", state.poisoned);
	df_file_put(files[file]);
	close(backing[file]);
}
