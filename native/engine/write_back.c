/* SPDX-License-Identifier: Apache-2.0
 *
 * write_back.c - what guests stored to goes to the backing file.  Must not decide when.
 */
#include <errno.h>

#include "internal.h"

#define SLICE ((uint64_t)1 << 20)	/* bytes written back under one hold of the lock */

/* Write one run of pages, all of it or an error. */
static int write_pages(struct df_file *file, const char *bytes, uint64_t start, uint64_t len)
{
	uint64_t done = 0;
	int error = 0;

	while (done < len && !error) {
		int64_t n = source_write(&file->source, bytes + done, start + done, len - done);

		if (n > 0)
			done += (uint64_t)n;
		else
			error = n < 0 ? (int)n : -ENOSPC;
	}
	exposed_written(file, bytes, start, done);
	pages_mark(file, start, start + done, PAGE_UNSYNCED, true);
	file->writes++;
	file_stamp(file);
	return error;
}

/* Write what differs of `len` bytes of the page cache from `start`, a page boundary, on. */
static int write_differing(struct df_file *file, const char *bytes, uint64_t start, uint64_t len, bool *some)
{
	int error = 0;

	for (uint64_t from = 0, to; from < len && !error; from = to) {
		to = from + PAGE;
		if (!exposed_differs(file, bytes + from, start + from))
			continue;
		while (to < len && exposed_differs(file, bytes + to, start + to))
			to += PAGE;
		error = write_pages(file, bytes + from, start + from, (to < len ? to : len) - from);
		*some |= !error;
	}
	return error;
}

/* Write what guests stored to one run of exposed pages.  Protected first and read then: a store
 * that comes in between makes the page dirty again, after us. */
static int write_run(struct df_file *file, uint64_t start, uint64_t end, bool *some)
{
	uint64_t at = start, stop = end < file->size ? end : file->size, most = RANGE;
	char *bytes = read_buffer();
	int error = bytes ? 0 : -ENOMEM;

	if (space_protect(file, start, end))
		pages_mark(file, start, end, PAGE_DIRTY, false);
	atomic_store(&file->used, 0);	/* there are clean pages again, and old ones */
	while (at < stop && !error) {
		uint64_t len = stop - at < most ? stop - at : most;

		if (!pages_filled(file, at)) {
			at += PAGE;	/* lost with what was stored to it */
			continue;
		}
		error = pages_read(file, bytes, at, PAGE_UP(len));
		if (error == -ESTALE) {
			error = 0;
			most = PAGE;	/* the others are to be written all the same */
		} else if (!error) {
			error = write_differing(file, bytes, at, len, some);
			at += PAGE_UP(len);
		}
	}
	if (error)
		pages_mark(file, start, end, PAGE_DIRTY, true);
	return error;
}

/* `all`: also what is not known to be dirty, but may have changed without a fault. */
static int write_back(struct df_file *file, bool all)
{
	enum page_state state = all ? PAGE_EXPOSED : PAGE_DIRTY;
	uint64_t at = 0, freed = 0;
	bool some = false;
	int error = 0;

	while (!error) {
		uint64_t end;

		pthread_mutex_lock(&file->lock);
		if (file->cache < 0 || !file->source.writable) {
			file_unlock(file);
			break;
		}
		change_notice(file);	/* never write past an EOF that moved */
		if (!pages_next(file, &at, &end, SLICE, state) || at >= file->size) {
			file_unlock(file);
			break;
		}
		error = write_run(file, at, end, &some);
		freed += evict_written(file);
		file_unlock(file);
		at = end;
	}
	if (error || some)
		evict_tried(!freed);
	return error ? error : some;
}

int df_file_write_back(struct df_file *file)
{
	return write_back(file, false);
}

uint64_t df_file_sync_errors(struct df_file *file)
{
	GUARD(&file->lock);
	return file->sync_errors;
}

/* The kernel reports an error of writing once for each open file, and takes the pages for clean
 * then (mm/filemap.c, file_check_and_advance_wb_err()).  Here they are written again, and each
 * of those who share our descriptor hears of it once. */
int df_file_sync(struct df_file *file, int datasync, uint64_t *seen)
{
	int error = write_back(file, true), synced;
	uint64_t writes;

	pthread_mutex_lock(&file->lock);
	writes = file->writes;
	pthread_mutex_unlock(&file->lock);
	synced = source_sync(&file->source, datasync);

	GUARD(&file->lock);
	if (synced) {
		file->sync_errors++;
		file->sync_error = synced;
		exposed_sync_failed(file);
	} else if (file->writes == writes) {
		pages_mark(file, 0, CACHE_SIZE, PAGE_UNSYNCED, false);
	}
	if (*seen != file->sync_errors)
		synced = file->sync_error;
	*seen = file->sync_errors;
	return error < 0 ? error : synced;
}

int df_file_retire(struct df_file *file)
{
	int some = write_back(file, true), error = 0;
	uint64_t end;

	if (some < 0)
		return some;
	pthread_mutex_lock(&file->lock);
	if (file->mappings->n || file->waits->fills ||
	    (file->source.writable && pages_next(file, &(uint64_t){ 0 }, &end, PAGE, PAGE_DIRTY))) {
		error = -EBUSY;
	} else {
		pages_free(file);
		file_deactivate(file);
	}
	pthread_mutex_unlock(&file->lock);
	return error ? error : some;
}
