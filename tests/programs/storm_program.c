/* SPDX-License-Identifier: Apache-2.0
 *
 * storm_program.c - the programs of the storm: their accesses, each checked, and what their threads
 * do to their mappings.  Must not change how long a file is.
 */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "storm.h"

struct window {
	char *at;
	bool private;
};

static _Thread_local sigjmp_buf landing;
static _Thread_local volatile sig_atomic_t landable;

static void on_sigbus(int number, siginfo_t *info, void *context)
{
	(void)info;
	(void)context;
	if (!landable)
		_exit(128 + number);
	siglongjmp(landing, 1);
}

static uint64_t *word(const struct window *w, unsigned page)
{
	return (uint64_t *)(w->at + (size_t)page * PAGE_BYTES);
}

static void checked(unsigned file, unsigned page, struct page_look before, const uint64_t *values)
{
	for (int i = 0; i < 2; i++) {
		const char *wrong = page_check(shared, file, page, before, values[i]);

		if (wrong)
			violation(file, page, wrong, values[i]);
	}
	if (values[2])
		violation(file, page, "something where nobody stored", values[2]);
}

static bool may_fail(unsigned file, unsigned page, struct page_look before)
{
	return file == FILE_WILD || file == (unsigned)flawed ||
	       !page_quiet(&shared->pages[file][page], before);
}

/* ------------------------------------------------------------------ accesses */

static void look(const struct window *w, unsigned file, unsigned page)
{
	struct page_look before = page_look(&shared->pages[file][page]);
	volatile uint64_t *first = word(w, page);
	uint64_t values[3];

	if (sigsetjmp(landing, 1)) {
		landable = 0;
		atomic_fetch_add(&shared->buses, 1);
		if (!may_fail(file, page, before))
			violation(file, page, "SIGBUS", 0);
		return;
	}
	landable = 1;
	values[0] = first[0];
	values[1] = first[MIDDLE / 8];
	values[2] = first[PAGE_BYTES / 8 - 1];
	landable = 0;
	atomic_fetch_add(&shared->reads, 1);
	checked(file, page, before, values);
}

static void store(const struct window *w, unsigned file, unsigned page)
{
	struct page_model *m = &shared->pages[file][page];
	uint32_t version = atomic_fetch_add(&m->issued, 1) + 1;
	struct page_look before = page_look(m);
	volatile uint64_t *first = word(w, page);

	if (sigsetjmp(landing, 1)) {
		landable = 0;
		atomic_fetch_add(&shared->buses, 1);
		if (!may_fail(file, page, before))
			violation(file, page, "SIGBUS of a store", 0);
		return;
	}
	landable = 1;
	first[0] = page_value(file, page, version);
	first[MIDDLE / 8] = page_value(file, page, version);
	landable = 0;
	atomic_fetch_add(&shared->stores, 1);
	page_stored(m, before, version);
}

/* A copy of the page: nobody else may ever see this word, and we no other. */
static void store_privately(const struct window *w, unsigned file, unsigned page)
{
	struct page_look before = page_look(&shared->pages[file][page]);
	volatile uint64_t *last = word(w, page) + PAGE_BYTES / 8 - 2;
	uint64_t seen;

	if (sigsetjmp(landing, 1)) {
		landable = 0;
		atomic_fetch_add(&shared->buses, 1);
		if (!may_fail(file, page, before))
			violation(file, page, "SIGBUS of a private store", 0);
		return;
	}
	landable = 1;
	*last = (uint64_t)last;
	seen = *last;
	landable = 0;
	atomic_fetch_add(&counts->privates, 1);
	if (seen != (uint64_t)last && !may_fail(file, page, before))
		violation(file, page, "a private store was lost", seen);
}

void read_page(int fd, unsigned file, unsigned page)
{
	struct page_look before = page_look(&shared->pages[file][page]);
	uint64_t words[PAGE_BYTES / 8] = { 0 };
	ssize_t n = pread(fd, words, sizeof(words), (off_t)page * PAGE_BYTES);

	if (n < 0 && file == (unsigned)flawed)
		return;
	check(n, "pread", file);
	atomic_fetch_add(&counts->preads, 1);
	checked(file, page, before,
		(uint64_t[]){ words[0], words[MIDDLE / 8], words[PAGE_BYTES / 8 - 1] });
	if (words[PAGE_BYTES / 8 - 2])
		violation(file, page, "a private store in the file", words[PAGE_BYTES / 8 - 2]);
}

void write_page(int fd, unsigned file, unsigned page)
{
	struct page_model *m = &shared->pages[file][page];
	uint32_t version = atomic_fetch_add(&m->issued, 1) + 1;
	struct page_look before = page_look(m);
	uint64_t words[PAGE_BYTES / 8] = { [0] = page_value(file, page, version) };
	size_t len = version % 2 ? 8 : MIDDLE + 8;

	words[MIDDLE / 8] = words[0];
	check(pwrite(fd, words, len, (off_t)page * PAGE_BYTES), "pwrite", file);
	atomic_fetch_add(&counts->pwrites, 1);
	if (len > 8)
		page_stored(m, before, version);
}

/* What was stored before is in the file itself when the call has returned. */
static void sync_page(const struct window *w, unsigned file, unsigned page, bool whole)
{
	struct page_look before = page_look(&shared->pages[file][page]);
	uint64_t value = 0;
	const char *wrong;

	if (whole)
		check(fsync(fds[file]), "fsync", file);
	else
		check(msync(word(w, page), PAGE_BYTES, MS_SYNC), "msync", file);
	check(pread(backing[file], &value, sizeof(value), (off_t)page * PAGE_BYTES), "pread behind",
	      file);
	wrong = page_check(shared, file, page, before, value);
	if (wrong && (before.floor & UINT32_MAX) && !may_fail(file, page, before))
		violation(file, page, "not in the file after a sync", value);
	atomic_fetch_add(&counts->syncs, 1);
}

/* ------------------------------------------------------------------ a program */

static void map(struct window *w, unsigned file)
{
	bool stores = file != FILE_BEHIND;
	void *at = mmap(w->at, LENGTH, PROT_READ | (stores || w->private ? PROT_WRITE : 0),
			(w->private ? MAP_PRIVATE : MAP_SHARED) | (w->at ? MAP_FIXED : 0),
			fds[file], 0);

	if (at == MAP_FAILED) {
		perror("mmap");
		exit(3);
	}
	w->at = at;
}

static void touch(void *of_files, unsigned writer, uint64_t *seed)
{
	struct window(*windows)[WINDOWS] = of_files;
	unsigned file = next_random(seed) % FILES, page = next_random(seed) % PAGES;
	unsigned what = next_random(seed) % 100, own = page / WRITERS * WRITERS + writer;
	struct window *all = windows[file];

	if (what < 45) {
		look(&all[0], file, page);
	} else if (what < 50) {
		read_page(fds[file], file, page);
	} else if (what < 60) {
		store_privately(&all[1], file, page);
	} else if (file == FILE_BEHIND || own >= PAGES) {
		look(&all[0], file, page);
	} else if (what < 95) {
		store(&all[0], file, own);
	} else {
		write_page(fds[file], file, own);
	}
}

static void read_any(void *of_files, unsigned writer, uint64_t *seed)
{
	unsigned file = next_random(seed) % FILES;
	struct window(*windows)[WINDOWS] = of_files;

	(void)writer;
	look(&windows[file][0], file, next_random(seed) % PAGES);
}

static void change_window(struct window *w, unsigned file, uint64_t *seed)
{
	size_t part = (size_t)(next_random(seed) % PAGES) * PAGE_BYTES;
	char *moved;

	switch (next_random(seed) % 6) {
	case 0:
		moved = mremap(w->at, LENGTH, LENGTH, MREMAP_MAYMOVE | MREMAP_DONTUNMAP);
		if (moved != MAP_FAILED) {
			munmap(w->at, LENGTH);
			w->at = moved;
		}
		atomic_fetch_add(&shared->moves, 1);
		break;
	case 1: /* shorter, and as long again, by whatever way there is */
		moved = mremap(w->at, LENGTH, PAGE_BYTES + part / 2, 0);
		if (moved != MAP_FAILED)
			moved = mremap(w->at, PAGE_BYTES + part / 2, LENGTH, MREMAP_MAYMOVE);
		if (moved == MAP_FAILED) {
			perror("mremap");
			exit(3);
		}
		w->at = moved;
		atomic_fetch_add(&shared->moves, 1);
		break;
	case 2:
		munmap(w->at + part, LENGTH - part); /* a part first, then all */
		munmap(w->at, LENGTH);
		w->at = NULL;
		map(w, file);
		atomic_fetch_add(&shared->unmaps, 1);
		break;
	case 3:
		map(w, file); /* over itself */
		break;
	default:
		madvise(w->at + part, LENGTH - part, MADV_DONTNEED);
		atomic_fetch_add(&shared->drops, 1);
	}
}

static void *thread_body(void *arg)
{
	unsigned writer = (unsigned)(uintptr_t)arg;
	uint64_t seed = shared->seed * 1000003 + writer * 7919 + (uint64_t)getpid();
	struct window windows[FILES][WINDOWS] = { 0 };

	for (unsigned f = 0; f < FILES; f++)
		for (unsigned i = 0; i < WINDOWS; i++) {
			windows[f][i].private = i == 1;
			map(&windows[f][i], f);
		}
	while (!atomic_load(&shared->stop)) {
		unsigned f = next_random(&seed) % FILES, what = next_random(&seed) % 1000;

		atomic_fetch_add(&shared->progress[writer], 1);
		if (what < 4)
			fork_once(shared, windows, writer, &seed, touch, read_any);
		else if (what < 20)
			change_window(&windows[f][next_random(&seed) % WINDOWS], f, &seed);
		else if (what < 30 && f != FILE_BEHIND)
			sync_page(&windows[f][0], f, next_random(&seed) % PAGES, what % 2);
		else
			touch(windows, writer, &seed);
	}
	return NULL;
}

int start(unsigned number)
{
	struct sigaction action = { .sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO };
	pthread_t threads[THREADS];
	int pid = fork();

	if (pid)
		return pid;
	sigaction(SIGBUS, &action, NULL);
	for (unsigned t = 0; t < THREADS; t++)
		pthread_create(&threads[t], NULL, thread_body,
			       (void *)(uintptr_t)(number * THREADS + t));
	for (unsigned t = 0; t < THREADS; t++)
		pthread_join(threads[t], NULL);
	exit(0);
}
