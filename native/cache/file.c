/* SPDX-License-Identifier: Apache-2.0
 *
 * file.c - a file: its lifetime, and the one function that applies changes of it (file_changed).
 * Must not know faults, nor their answers.
 *
 * Every truncation, by any process, ends in file_changed() under file->lock:
 *
 *   generation += 1    a failure decided before it is not delivered any more
 *   drop past EOF      from the page cache, zapping every guest's mapping
 *   zero the tail      of the last page, as truncate_pagecache() does
 *   record             the range that changed, for the faults parked on a fill of it and the
 *                      poisoned pages, which are decided again before the caller's setattr answers
 *
 * A page can therefore not be installed from before the change.
 */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "cache.h"

static atomic_uint_fast64_t next_file_id = 1;

int file_new(int fd, bool writable, struct df_file **out)
{
	struct df_file *file = calloc(1, sizeof(*file));
	struct stat st;
	int error;

	*out = NULL;
	if (!file) {
		close(fd);
		return -ENOMEM;
	}
	error = source_open(&file->source, fd, writable, &st);
	if (error) {
		free(file);
		return error;
	}
	file->id = atomic_fetch_add(&next_file_id, 1);
	atomic_init(&file->refs, 1);
	pthread_mutex_init(&file->lock, NULL);
	pthread_mutex_init(&file->changing, NULL);
	file->cache = -1;
	file->size = (uint64_t)st.st_size;
	file->mtime = st.st_mtim;
	file->ctime = st.st_ctim;
	atomic_init(&file->generation, 1);
	*out = file;
	return 0;
}

void file_get(struct df_file *file)
{
	atomic_fetch_add(&file->refs, 1);
}

void file_put(struct df_file *file)
{
	if (atomic_fetch_sub(&file->refs, 1) != 1)
		return;
	/* Mappings and waiters hold references, so there are none. */
	free(file->mappings);
	free(file->waits);
	pages_free(file);
	file_deactivate(file);
	source_close(&file->source);
	pthread_mutex_destroy(&file->changing);
	pthread_mutex_destroy(&file->lock);
	free(file);
}

static void record(struct df_file *file, uint64_t start, uint64_t end)
{
	struct change *change = &file->change;

	if (!change->any || change->start >= change->end) {
		*change = (struct change){ true, change->any && change->content, start, end };
	} else if (start < end) {
		change->start = start < change->start ? start : change->start;
		change->end = end > change->end ? end : change->end;
	}
}

struct change file_take_change(struct df_file *file)
{
	struct change change = file->change;

	file->change.any = file->change.content = false;
	return change;
}

void file_changed(struct df_file *file, uint64_t size, bool content)
{
	uint64_t old = file->size;

	if (file->cache >= 0 && size < old)
		exposed_cut(file, size);
	file->size = size;
	for (size_t i = 0; i < file->nchunks; i++)
		file->chunks[i]->known->size = size;
	atomic_fetch_add(&file->generation, 1);
	if (file->cache >= 0) {
		if (size < old) {
			/* beyond the old end too: a guest may have created a page past EOF in
			 * the memfd */
			pages_drop(file, PAGE_UP(size), CACHE_SIZE);
			pages_zero(file, size, PAGE_UP(size));
			file_fit(file); /* and the private copies past EOF */
		} else if (size > old) {
			file_fit(file);
			/* a guest's stores past the old EOF were never part of the file */
			pages_zero(file, old, PAGE_UP(old) < size ? PAGE_UP(old) : size);
		}
		if (content)
			exposed_drop_clean(file, &(uint64_t){ 0 }, CACHE_SIZE, UINT64_MAX);
	}
	if (content)
		record(file, 0, CACHE_SIZE);
	else if (size < old)
		record(file, size, CACHE_SIZE);
	else
		record(file, old, size);
	file->change.content |= content;
}

void file_look(const struct df_file *file, struct file_look *look)
{
	look->looks = atomic_load(&file->looks);
	look->error = source_look(&file->source, &look->st);
}

static bool same_time(struct timespec a, struct timespec b)
{
	return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec;
}

static void stamp(struct df_file *file, const struct stat *st)
{
	file->mtime = st->st_mtim;
	file->ctime = st->st_ctim;
}

/* Whether the contents were changed by another process.  fetch() writes to the backing file,
 * which does not count.  A program can set the mtime, but not the ctime. */
static bool other_content(struct df_file *file, const struct stat *st)
{
	bool written = source_written_by_others(&file->source);

	return !file->source.fetch && (written || !same_time(st->st_mtim, file->mtime) ||
				       !same_time(st->st_ctim, file->ctime));
}

/* Apply a change by another process.  While a call of the host is in progress, its effects
 * cannot be distinguished from such a change; but a shorter size always counts. */
int file_saw(struct df_file *file, const struct file_look *look)
{
	const struct stat *st = &look->st;
	int bits = 0;

	if (look->error)
		return look->error;
	if (look->looks != atomic_load(&file->looks) ||
	    (file->call != CALL_NONE && (uint64_t)st->st_size >= file->size))
		return 0;
	if ((uint64_t)st->st_size != file->size)
		bits |= DF_CHANGED_SIZE;
	if (file->call == CALL_NONE && other_content(file, st))
		bits |= DF_CHANGED_CONTENT;
	if (bits) {
		stamp(file, st);
		file->unreported |= file->call == CALL_TRUNCATE ? 0 : bits;
		atomic_fetch_add(&file->looks, 1);
		file_changed(file, (uint64_t)st->st_size, bits & DF_CHANGED_CONTENT);
	}
	return bits;
}

int file_notice(struct df_file *file)
{
	struct file_look look;

	if (!file->source.local)
		return 0;
	file_look(file, &look);
	return file_saw(file, &look);
}

void file_call_begin(struct df_file *file, enum file_call call)
{
	file->call = call;
}

void file_call_end(struct df_file *file, const struct file_look *after)
{
	file->call = CALL_NONE;
	atomic_fetch_add(&file->looks, 1);
	if (!after->error)
		stamp(file, &after->st); /* the host's own change */
}

void file_attributes_set(struct df_file *file, const struct file_look *after)
{
	const struct stat *st = &after->st;

	if (!after->error && after->looks == atomic_load(&file->looks) && file->call == CALL_NONE &&
	    same_time(st->st_mtim, file->mtime) && (uint64_t)st->st_size == file->size)
		file->ctime = st->st_ctim;
}

/* The bytes of a write that are in the page cache. */
static void update(struct df_file *file, const char *bytes, uint64_t offset, uint64_t len)
{
	for (uint64_t at = offset; at < offset + len;) {
		bool filled;
		uint64_t end = pages_run(file, at, offset + len, &filled);

		if (filled) {
			exposed_overwritten(file, bytes + (at - offset), at, end - at);
			pages_mark(file, PAGE_DOWN(at), end, PAGE_UNSYNCED, true);
			file->writes++;
		}
		/* Pages that cannot be updated must not keep the old bytes. */
		if (filled && pages_write(file, bytes + (at - offset), at, end - at))
			pages_drop(file, PAGE_DOWN(at), PAGE_UP(end));
		at = end;
	}
}

void file_written(struct df_file *file, const char *bytes, uint64_t offset, uint64_t len,
		  uint64_t size)
{
	file_changed(file, size, false);
	record(file, offset, offset + len);
	if (offset < size)
		update(file, bytes, offset, len < size - offset ? len : size - offset);
}
