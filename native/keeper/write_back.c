/* SPDX-License-Identifier: Apache-2.0
 *
 * write_back.c - what programs had stored when the host died goes to the backing files.  Must not open a
 * file, and must not call a backing file while programs wait for the end of their mappings.
 *
 * Two steps.  A page cache is emptied from its end on, and the pages that differ from what the backing
 * file is known to hold (known.h) are moved to memory: that takes as long as copying them.  A store to a
 * page that is copied and not yet gone is lost.  Then each file's pages are written by a thread of its
 * own: a file that does not answer costs no other's.
 */
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"
#include "known.h"

#define PAGE ((uint64_t)DF_PAGE_SIZE)
#define WINDOW_PAGES 512 /* moved at a time */
#define WINDOW (WINDOW_PAGES * PAGE)
#define WAIT_S 60 /* for files that do not answer */

/* Pages in a row that were stored to. */
struct run {
	struct run *next;
	uint64_t offset, len;
	char bytes[];
};

struct file {
	struct file *next;
	uint64_t id;
	int source;
	uint64_t size; /* as the host knew it */
	struct run *runs;
	pthread_t thread;
};

static const struct known **known; /* by file, and of each the last first */
static size_t nknown;
static struct file *files;

static int by_file(const void *one, const void *other)
{
	const struct known *a = *(const struct known *const *)one,
			   *b = *(const struct known *const *)other;

	if (a->file != b->file)
		return a->file < b->file ? -1 : 1;
	return a->index > b->index ? -1 : a->index < b->index;
}

void write_back_know(int fd)
{
	struct stat st;
	const struct known *all;

	if (fstat(fd, &st) || !st.st_size)
		return;
	all = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
	known = calloc((size_t)st.st_size / sizeof(*all), sizeof(*known));
	if (all == MAP_FAILED || !known) {
		perror("daxfault-keeper: what programs stored is lost");
		return;
	}
	for (size_t i = 0; i < (size_t)st.st_size / sizeof(*all); i++)
		if (all[i].file)
			known[nknown++] = &all[i];
	qsort(known, nknown, sizeof(*known), by_file);
}

static bool is_zero(const char *page)
{
	return !*page && !memcmp(page, page + 1, PAGE - 1);
}

/* A program that may store to a page cache may take pages out of it as well: they are no zeros that
 * somebody stored. */
static bool is_stored(const struct known *of, const char *page, uint64_t i, int cache)
{
	uint64_t offset = of->index * KNOWN_SIZE + i * PAGE;

	if (!(of->exposed[i / 64] >> (i % 64) & 1) || offset >= of->size)
		return false;
	if (of->hashes[i] != HASH_UNKNOWN && of->hashes[i] == known_hash(page, offset, of->size))
		return false;
	return !is_zero(page) || lseek(cache, (off_t)offset, SEEK_DATA) == (off_t)offset;
}

static bool is_exposed(const struct known *of, uint64_t first)
{
	for (uint64_t i = first / 64; i < (first + WINDOW_PAGES) / 64; i++)
		if (of->exposed[i])
			return true;
	return false;
}

static void lost(const struct file *file, uint64_t offset, uint64_t len, int error)
{
	fprintf(stderr,
		"daxfault-keeper: file %llu: %llu bytes at %llu, which a program had stored, are lost: %s\n",
		(unsigned long long)file->id, (unsigned long long)len, (unsigned long long)offset,
		strerror(error));
}

static void move_run(struct file *file, const char *bytes, uint64_t offset, uint64_t len)
{
	struct run *run = malloc(sizeof(*run) + len);

	if (!run) {
		lost(file, offset, len, ENOMEM);
		return;
	}
	*run = (struct run){ file->runs, offset, len };
	memcpy(run->bytes, bytes, len);
	file->runs = run;
}

static void move_window(struct file *file, int cache, const struct known *of, uint64_t first)
{
	static char bytes[WINDOW];
	uint64_t start = of->index * KNOWN_SIZE + first * PAGE;
	ssize_t n = pread(cache, bytes, WINDOW, (off_t)start);
	uint64_t pages = n > 0 ? (uint64_t)n / PAGE : 0;

	for (uint64_t i = 0, from; i < pages; i += i == from) {
		for (from = i; i < pages && is_stored(of, bytes + i * PAGE, first + i, cache);)
			i++;
		if (i > from)
			move_run(file, bytes + from * PAGE, start + from * PAGE, (i - from) * PAGE);
	}
}

/* -> the first of a file, the last in the file, or nknown */
static size_t find(uint64_t id)
{
	size_t low = 0, high = nknown;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (known[middle]->file < id)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

void write_back_take(uint64_t id, int cache, int source)
{
	struct file *file = calloc(1, sizeof(*file));

	for (size_t k = find(id); file && k < nknown && known[k]->file == id; k++) {
		file->size = known[k]->size;
		for (uint64_t first = KNOWN_PAGES; first; first -= WINDOW_PAGES) {
			uint64_t window = first - WINDOW_PAGES;

			if (!is_exposed(known[k], window))
				continue;
			move_window(file, cache, known[k], window);
			if (ftruncate(cache, (off_t)(known[k]->index * KNOWN_SIZE + window * PAGE)))
				perror("daxfault-keeper: a page cache could not be truncated");
		}
	}
	if (ftruncate(cache, 0))
		perror("daxfault-keeper: a page cache could not be truncated");
	if (!file || !file->runs) {
		free(file);
		return;
	}
	file->id = id;
	file->source = source;
	file->next = files;
	files = file;
}

/* Never past an EOF that has moved. */
static void write_run(const struct file *file, const struct run *run, uint64_t size)
{
	uint64_t done = 0, len = run->offset >= size ? 0 : size - run->offset;

	if (len > run->len)
		len = run->len;
	while (done < len) {
		ssize_t n = pwrite(file->source, run->bytes + done, len - done,
				   (off_t)(run->offset + done));

		if (n <= 0) {
			lost(file, run->offset + done, len - done, n < 0 ? errno : ENOSPC);
			return;
		}
		done += (uint64_t)n;
	}
}

static void *write_file(void *context)
{
	const struct file *file = context;
	struct stat st;

	if (fstat(file->source, &st)) {
		perror("daxfault-keeper: what programs stored is lost");
		return NULL;
	}
	for (const struct run *run = file->runs; run; run = run->next)
		write_run(file, run,
			  file->size < (uint64_t)st.st_size ? file->size : (uint64_t)st.st_size);
	return NULL;
}

void write_back_run(void)
{
	struct timespec until;

	for (struct file *file = files, **at = &files; file; file = *at) {
		if (pthread_create(&file->thread, NULL, write_file, file)) {
			write_file(file);
			*at = file->next; /* there is no thread to wait for */
		} else {
			at = &file->next;
		}
	}
	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += WAIT_S;
	for (const struct file *file = files; file; file = file->next)
		if (pthread_clockjoin_np(file->thread, NULL, CLOCK_MONOTONIC, &until))
			fprintf(stderr,
				"daxfault-keeper: file %llu does not answer: what programs stored may be lost\n",
				(unsigned long long)file->id);
}
