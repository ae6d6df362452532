/* SPDX-License-Identifier: Apache-2.0
 *
 * file.c - a file: its life, and the one function that owns "this file changed" (file_changed).
 * Must not know who faults, nor what becomes of a failed fault.
 *
 * A truncation, whoever made it, ends in file_changed() under file->lock:
 *
 *   generation += 1    a failure decided before it is not delivered any more
 *   drop past EOF      the page cache forgets, every guest's mapping is zapped
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
	/* Whoever maps it or waits for it counts it: nobody does. */
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
			/* not only up to the old end: a page past EOF that some
			 * guest conjured up in the memfd goes too */
			pages_drop(file, PAGE_UP(size), CACHE_SIZE);
			pages_zero(file, size, PAGE_UP(size));
			file_fit(file);	/* and the private copies past EOF */
		} else if (size > old) {
			file_fit(file);
			/* what a guest stored behind the old EOF was never part
			 * of the file */
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

/* fetch() writes the bytes it brings to the backing file: that is no change.  The mtime is a
 * program's to set, the ctime is not. */
static bool other_content(struct df_file *file, const struct stat *st)
{
	bool written = source_written_by_others(&file->source);

	return !file->source.fetch && (written || !same_time(st->st_mtim, file->mtime) ||
				       !same_time(st->st_ctim, file->ctime));
}

/* A change that we did not make is a change now.  While a call of ours is under way its effects
 * cannot be told from a stranger's; but a file that is shorter is so for whatever reason. */
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
		stamp(file, &after->st);	/* our own doing */
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
		/* Pages that cannot take them must not keep the old bytes. */
		if (filled && pages_write(file, bytes + (at - offset), at, end - at))
			pages_drop(file, PAGE_DOWN(at), PAGE_UP(end));
		at = end;
	}
}

void file_written(struct df_file *file, const char *bytes, uint64_t offset, uint64_t len, uint64_t size)
{
	file_changed(file, size, false);
	record(file, offset, offset + len);
	if (offset < size)
		update(file, bytes, offset, len < size - offset ? len : size - offset);
}
