/* SPDX-License-Identifier: Apache-2.0
 *
 * file.c - a file: its backing descriptor, its page cache, and the one function
 * that owns "this file changed" (file_changed).  Must not know who faults, nor
 * what becomes of a failed fault.
 *
 * A truncation, whoever made it, ends in file_changed() under file->lock:
 *
 *   generation += 1    a failure decided before it is not delivered any more
 *   drop past EOF      the page cache forgets, every guest's mapping is zapped
 *   zero the tail      of the last page, as truncate_pagecache() does
 *   release            faults parked on a fill of what changed, and poisoned
 *                      pages; that fill's bytes will be thrown away
 *
 * and what was released is decided anew by file_unlock(), before the caller's
 * setattr answers.  A page can therefore not be installed from before the change.
 */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <unistd.h>

#include "engine/internal.h"

#define MEND_NS 1000000000u	/* how long a caller waits for poisoned pages to be read again */

static atomic_uint_fast64_t next_file_id = 1;

int df_file_new(int fd, int writable, struct df_file **out)
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
	file->cache = -1;
	file->size = (uint64_t)st.st_size;
	file->mtime = st.st_mtim;
	atomic_init(&file->generation, 1);
	*out = file;
	return 0;
}

void df_file_fetch(struct df_file *file, int (*fetch)(void *context, uint64_t offset, uint64_t len),
		   void *context)
{
	file_lock(file);
	file->source.fetch = fetch;
	file->source.fetch_context = context;
	file->source.memory = false;
	file->source.blocks = true;
	file_unlock(file);
}

void file_get(struct df_file *file)
{
	atomic_fetch_add(&file->refs, 1);
}

void df_file_put(struct df_file *file)
{
	if (atomic_fetch_sub(&file->refs, 1) != 1)
		return;
	/* Regions, fills and failures count their file: none is left, nor a
	 * poisoned page, which lies in a region. */
	free(file->poisons);
	pages_free(file);
	file_deactivate(file);
	source_close(&file->source);
	pthread_mutex_destroy(&file->lock);
	free(file);
}

int df_file_fd(struct df_file *file)
{
	return file->source.fd;
}

int df_file_upgrade(struct df_file *file, int fd)
{
	int error;

	file_lock(file);
	error = source_upgrade(&file->source, fd);
	file_unlock(file);
	return error;
}

void file_lock(struct df_file *file)
{
	pthread_mutex_lock(&file->lock);
}

/* Outstanding attempts to mend a page, of all files: rare enough to share this. */
static pthread_mutex_t mends_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t mends_ended = PTHREAD_COND_INITIALIZER;

void file_mend_begun(struct df_file *file)
{
	file_get(file);
	atomic_fetch_add(&file->mends, 1);
}

void file_mend_ended(struct df_file *file)
{
	if (atomic_fetch_sub(&file->mends, 1) == 1) {
		pthread_mutex_lock(&mends_lock);
		pthread_cond_broadcast(&mends_ended);
		pthread_mutex_unlock(&mends_lock);
	}
	df_file_put(file);
}

static void wait_for_mends(struct df_file *file)
{
	uint64_t until = now_ns() + MEND_NS;

	pthread_mutex_lock(&mends_lock);
	while (atomic_load(&file->mends) && clock_wait(&mends_ended, &mends_lock, until))
		;
	pthread_mutex_unlock(&mends_lock);
}

/* Give back the lock, then do what the change under it set free.  Must not be
 * called with a guest's lock held. */
void file_unlock(struct df_file *file)
{
	struct df_fault *released = file->released;
	bool mends = file->mended;

	file->released = NULL;
	file->mended = false;
	pthread_mutex_unlock(&file->lock);

	if (released)
		faults_submit(released);
	/* Who made the file longer may rely on it when the call returns; but a
	 * source that does not answer holds up nobody for long, and the engine's
	 * own threads not at all. */
	if (mends && !thread_is_ours())
		wait_for_mends(file);
}

/* Remember what the backing file looks like after a change of our own. */
void file_stamp(struct df_file *file)
{
	struct stat st;

	if (!source_look(&file->source, &st))
		file->mtime = st.st_mtim;
}

void file_changed(struct df_file *file, uint64_t size, bool content)
{
	uint64_t old = file->size;

	file->size = size;
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
			pages_drop_unexposed(file);
	}
	if (content)
		fill_release(file, 0, CACHE_SIZE);
	else if (size < old)
		fill_release(file, size, CACHE_SIZE);
	else
		fill_release(file, old, size);
	if (file->mappings)
		TRACE(&file->mappings->guest->engine->tracer, .kind = DF_TRACE_CHANGED, .file = file->id,
		      .offset = size, .vcpu = -1);
	deliver_withdraw(file);
	poison_mend(file);
}

/* Look at the backing file; a change we did not make is a change now. */
int file_notice(struct df_file *file)
{
	struct stat st;
	int bits = 0, error = source_look(&file->source, &st);

	if (error)
		return error;
	if ((uint64_t)st.st_size != file->size)
		bits |= DF_CHANGED_SIZE;
	/* who brings the bytes of a file writes to it: that is no change */
	if (!file->source.fetch &&
	    (st.st_mtim.tv_sec != file->mtime.tv_sec || st.st_mtim.tv_nsec != file->mtime.tv_nsec))
		bits |= DF_CHANGED_CONTENT;
	if (bits) {
		file->mtime = st.st_mtim;
		file->untold |= bits;
		file_changed(file, (uint64_t)st.st_size, bits & DF_CHANGED_CONTENT);
	}
	return bits;
}

int df_file_recheck(struct df_file *file)
{
	int bits;

	file_lock(file);
	bits = file_notice(file);
	/* a fault may have met the change first: it is news to this caller */
	if (bits >= 0) {
		bits = file->untold;
		file->untold = 0;
		file->mended |= bits;
	}
	file_unlock(file);
	return bits;
}

int df_file_truncate(struct df_file *file, uint64_t size)
{
	int error;

	if (size > (uint64_t)LLONG_MAX)
		return -EFBIG;
	file_lock(file);
	file_notice(file);	/* our stamp must not hide a stranger's change */
	error = source_truncate(&file->source, size);
	if (!error) {
		file_stamp(file);
		file_changed(file, size, false);
	}
	file_unlock(file);
	return error;
}

int df_file_inject(struct df_file *file, const struct df_inject_options *options)
{
	uint64_t at = options->start, end = at + options->len;
	int error = source_inject(&file->source, options);

	if (error || !(options->flags & DF_INJECT_EVICT))
		return error;
	file_lock(file);
	pages_drop_clean(file, &at, end < CACHE_SIZE ? end : CACHE_SIZE, UINT64_MAX);
	file_unlock(file);
	return 0;
}

void df_file_inject_remove(struct df_file *file, uint64_t tag)
{
	source_inject_remove(&file->source, false, tag);
}

void df_file_inject_clear(struct df_file *file)
{
	source_inject_remove(&file->source, true, 0);
}

int df_file_heal(struct df_file *file)
{
	int pages;

	file_lock(file);
	pages = (int)file->npoisons;
	poison_mend(file);
	file_unlock(file);
	return pages;
}

void df_file_state(struct df_file *file, struct df_file_state *out)
{
	struct stat st;

	file_lock(file);
	*out = (struct df_file_state){
		.id = file->id,
		.size = source_look(&file->source, &st) ? file->size : (uint64_t)st.st_size,
		.known_size = file->size,
		.generation = atomic_load(&file->generation),
		.resident = file->resident,
		.poisoned = file->npoisons,
		.mending = atomic_load(&file->mends),
		.mappings = file->nmappings,
		.writable_mappings = file->nwritable,
	};
	for (struct df_region *region = file->mappings; region; region = region->next)
		out->child_mappings += region->guest->child;
	for (struct df_fill *fill = file->fills; fill; fill = fill->next) {
		out->fills++;
		for (struct df_fault *fault = fill->waiters; fault; fault = fault->next)
			out->waiting++;
	}
	file_unlock(file);
}
