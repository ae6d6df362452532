/* SPDX-License-Identifier: Apache-2.0
 *
 * write_back.c - what guests stored to goes to the backing file.  Must not decide when.
 */
#include <errno.h>

#include "internal.h"

#define SLICE ((uint64_t)1 << 20)	/* bytes written back at a time */

/* What one call of write_slice() is to write: runs of pages that differ from the backing file. */
struct slice {
	char *bytes;			/* of the page cache, from `start` on */
	uint64_t start, end;
	unsigned nruns;
	struct run {
		uint64_t start, len;	/* ends at EOF at the latest */
		uint64_t written;
	} runs[SLICE / PAGE / 2];	/* no two touch */
};

static void add_run(struct slice *slice, uint64_t at, uint64_t len)
{
	struct run *last = slice->nruns ? &slice->runs[slice->nruns - 1] : NULL;

	if (last && last->start + last->len == at)
		last->len += len;
	else
		slice->runs[slice->nruns++] = (struct run){ at, len, 0 };
}

/* Protected first and read then: a store that comes in between makes the page dirty again, after
 * us.  Under file->lock. */
static int collect(struct df_file *file, struct slice *slice)
{
	uint64_t stop = slice->end < file->size ? slice->end : file->size, most = SLICE, len;
	int error = 0;

	if (space_protect(file, slice->start, slice->end))
		pages_mark(file, slice->start, slice->end, PAGE_DIRTY, false);
	atomic_store(&file->used, 0);	/* there are clean pages again, and old ones */
	for (uint64_t at = slice->start; at < stop && !error; at += len) {
		char *bytes = slice->bytes + (at - slice->start);

		len = PAGE;		/* lost with what was stored to it */
		if (!pages_filled(file, at))
			continue;
		len = PAGE_UP(stop - at < most ? stop - at : most);
		error = pages_read(file, bytes, at, len);
		if (error == -ESTALE) {
			error = 0;
			len = 0;
			most = PAGE;	/* the others are to be written all the same */
		}
		for (uint64_t page = 0; page < len && !error; page += PAGE)
			if (exposed_differs(file, bytes + page, at + page))
				add_run(slice, at + page, stop - at - page < PAGE ? stop - at - page : PAGE);
	}
	return error;
}

/* Without the lock.  Until exposed_written() the pages differ from the backing file as far as is
 * known, so they are not dropped meanwhile. */
static int write_runs(const struct df_file *file, struct slice *slice)
{
	for (struct run *run = slice->runs; run < slice->runs + slice->nruns; run++)
		while (run->written < run->len) {
			uint64_t at = run->start + run->written;
			int64_t n = source_write(&file->source, slice->bytes + (at - slice->start), at,
						 run->len - run->written);

			if (n <= 0)
				return n < 0 ? (int)n : -ENOSPC;
			run->written += (uint64_t)n;
		}
	return 0;
}

/* Write what guests stored to one slice of exposed pages.  Takes and returns with the lock. */
static int write_slice(struct df_file *file, struct slice *slice, bool *some)
{
	struct file_look after = { .error = -EIO };
	int error = slice->bytes ? collect(file, slice) : -ENOMEM;

	if (!error && slice->nruns) {
		pthread_mutex_unlock(&file->lock);
		error = write_runs(file, slice);
		file_look(file, &after);
		pthread_mutex_lock(&file->lock);
		for (struct run *run = slice->runs; run < slice->runs + slice->nruns; run++) {
			exposed_written(file, slice->bytes + (run->start - slice->start), run->start,
					run->written);
			pages_mark(file, run->start, run->start + run->written, PAGE_UNSYNCED, true);
			*some |= run->written;
		}
		file->writes++;
	}
	if (error)
		pages_mark(file, slice->start, slice->end, PAGE_DIRTY, true);
	file_call_end(file, &after);
	return error;
}

/* `all`: also what is not known to be dirty, but may have changed without a fault. */
static int write_back(struct df_file *file, bool all)
{
	enum page_state state = all ? PAGE_EXPOSED : PAGE_DIRTY;
	uint64_t at = 0, freed = 0;
	bool some = false, more = true;
	int error = 0;

	while (!error && more) {
		struct slice slice = { .bytes = read_buffer() };

		change_begin(file, CALL_WRITE);	/* never write past an EOF that moved */
		more = file->cache >= 0 && file->source.writable &&
		       pages_next(file, &at, &slice.end, SLICE, state) && at < file->size;
		slice.start = at;
		if (!more)
			file_call_end(file, &(struct file_look){ .error = -EIO });
		else
			error = write_slice(file, &slice, &some);
		at = slice.end;
		freed += more ? evict_written(file) : 0;
		change_end(file);
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
	pthread_mutex_lock(&file->changing);
	pthread_mutex_lock(&file->lock);
	if (file->mappings->n || file->waits->fills ||
	    (file->source.writable && pages_next(file, &(uint64_t){ 0 }, &end, PAGE, PAGE_DIRTY))) {
		error = -EBUSY;
	} else {
		pages_free(file);
		file_deactivate(file);
	}
	pthread_mutex_unlock(&file->lock);
	pthread_mutex_unlock(&file->changing);
	return error ? error : some;
}
