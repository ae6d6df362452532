/* SPDX-License-Identifier: Apache-2.0
 *
 * write_back.c - what guests stored to goes to the backing file.  Must not decide when.
 */
#include <errno.h>

#include "internal.h"

#define SLICE ((uint64_t)1 << 20) /* bytes written back at a time */
#define LAST_ROUNDS 8

/* What one call of write_slice() is to write: runs of pages that differ from the backing file. */
struct slice {
	char *bytes; /* of the page cache, from `start` on */
	uint64_t start, end;
	unsigned nruns;
	struct run {
		uint64_t start, len; /* ends at EOF at the latest */
	} runs[SLICE / PAGE / 2];    /* no two touch */
	bool failed[SLICE / PAGE];   /* pages of runs that could not be written */
};

static void add_run(struct slice *slice, uint64_t at, uint64_t len)
{
	struct run *last = slice->nruns ? &slice->runs[slice->nruns - 1] : NULL;

	if (last && last->start + last->len == at)
		last->len += len;
	else
		slice->runs[slice->nruns++] = (struct run){ at, len };
}

/* Protected first and read then: a store that comes in between makes the page dirty again, after
 * us.  Under file->lock. */
static int collect(struct df_file *file, struct slice *slice)
{
	uint64_t stop = slice->end < file->size ? slice->end : file->size, most = SLICE, len;
	int error = 0;

	if (space_protect(file, slice->start, slice->end))
		pages_mark(file, slice->start, slice->end, PAGE_DIRTY, false);
	atomic_store(&file->used, 0); /* there are clean pages again, and old ones */
	for (uint64_t at = slice->start; at < stop && !error; at += len) {
		char *bytes = slice->bytes + (at - slice->start);

		len = PAGE; /* lost with what was stored to it */
		if (!pages_filled(file, at))
			continue;
		len = PAGE_UP(stop - at < most ? stop - at : most);
		error = pages_read(file, bytes, at, len);
		if (error == -ESTALE) {
			error = 0;
			len = 0;
			most = PAGE; /* the others are to be written all the same */
		}
		for (uint64_t page = 0; page < len && !error; page += PAGE)
			if (exposed_differs(file, bytes + page, at + page))
				add_run(slice, at + page,
					stop - at - page < PAGE ? stop - at - page : PAGE);
	}
	return error;
}

static bool *failed_page(struct slice *slice, uint64_t at)
{
	return &slice->failed[(at - slice->start) / PAGE];
}

/* Without the lock.  Until exposed_written() the pages differ from the backing file as far as is
 * known, so they are not dropped meanwhile.  A page that cannot be written does not hold up the
 * others: on a full disk those that have their blocks need no more.  -> the first error */
static int write_runs(const struct df_file *file, struct slice *slice)
{
	int error = 0;

	for (const struct run *run = slice->runs; run < slice->runs + slice->nruns; run++) {
		uint64_t at = run->start, end = run->start + run->len;

		while (at < end) {
			int64_t n = source_write(&file->source, slice->bytes + (at - slice->start),
						 at, end - at);

			if (n > 0) {
				at += (uint64_t)n;
				continue;
			}
			if (!error)
				error = n < 0 ? (int)n : -ENOSPC;
			*failed_page(slice, at) = true;
			at = PAGE_DOWN(at) + PAGE;
		}
	}
	return error;
}

/* -> whether anything of the run was written */
static bool settle(struct df_file *file, struct slice *slice, const struct run *run)
{
	bool some = false;

	for (uint64_t at = run->start, end = run->start + run->len, next; at < end; at = next) {
		bool failed = *failed_page(slice, at);

		next = at + PAGE;
		while (next < end && *failed_page(slice, next) == failed)
			next += PAGE;
		if (next > end)
			next = end;
		if (failed) {
			exposed_unwritten(file, at, PAGE_UP(next));
			continue;
		}
		exposed_written(file, slice->bytes + (at - slice->start), at, next - at);
		pages_mark(file, at, next, PAGE_UNSYNCED, true);
		some = true;
	}
	return some;
}

/* Write what guests stored to one slice of exposed pages.  Takes and returns with the lock. */
static int write_slice(struct df_file *file, struct slice *slice, bool *some)
{
	struct file_look after = { .error = -EIO };
	int error = slice->bytes ? collect(file, slice) : -ENOMEM;

	if (error)
		pages_mark(file, slice->start, slice->end, PAGE_DIRTY, true);
	else if (slice->nruns) {
		pthread_mutex_unlock(&file->lock);
		error = write_runs(file, slice);
		file_look(file, &after);
		pthread_mutex_lock(&file->lock);
		for (unsigned i = 0; i < slice->nruns; i++)
			*some |= settle(file, slice, &slice->runs[i]);
		file->writes++;
	}
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

	while (more) {
		int failed = 0;
		struct slice slice = { .bytes = read_buffer() };

		change_begin(file, CALL_WRITE); /* never write past an EOF that moved */
		more = file->cache >= 0 && file->source.writable &&
		       pages_next(file, &at, &slice.end, SLICE, state) && at < file->size;
		slice.start = at;
		if (!more)
			file_call_end(file, &(struct file_look){ .error = -EIO });
		else
			failed = write_slice(file, &slice, &some);
		error = error ? error : failed;
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

uint64_t df_file_unwritten(struct df_file *file)
{
	uint64_t at = 0, end, bytes = 0;

	GUARD(&file->lock);
	if (file->cache < 0 || !file->source.writable)
		return 0;
	for (; pages_next(file, &at, &end, UINT64_MAX, PAGE_DIRTY) && at < file->size; at = end)
		bytes += (end < file->size ? end : file->size) - at;
	return bytes;
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
		verify(file);
		pages_free(file);
		file_deactivate(file);
	}
	pthread_mutex_unlock(&file->lock);
	pthread_mutex_unlock(&file->changing);
	return error ? error : some;
}

int df_file_end(struct df_file *file, uint64_t *lost)
{
	int some = 0;

	pthread_mutex_lock(&file->lock);
	file->ended = true;
	pthread_mutex_unlock(&file->lock);
	/* Who stores to a page that is protected waits from now on.  Until nothing is found: the
	 * protection can fail while an address space is changing. */
	for (int i = 0; i < LAST_ROUNDS && (some = write_back(file, true)) > 0; i++)
		;
	*lost = some < 0 ? df_file_unwritten(file) : 0;
	GUARD(&file->changing);
	GUARD(&file->lock);
	if (!some)
		verify(file);
	pages_free(file);
	file_deactivate(file);
	space_wake_file(file); /* they touch the page again, and find it gone */
	return some < 0 ? some : 0;
}
