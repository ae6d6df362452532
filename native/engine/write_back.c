/* SPDX-License-Identifier: Apache-2.0
 *
 * write_back.c - a file's bytes for read(2), write(2) and fsync(2) of the mount: what
 * is in the page cache is the truth for its pages, the backing file for the
 * others.  Must not fill the cache: only a guest's fault does.
 */
#include <errno.h>
#include <limits.h>

#include "engine/internal.h"

#define SLICE ((uint64_t)1 << 20)	/* bytes written back under one hold of the lock */

/* All or an error: the kernel takes a short answer for EOF, zeroes the rest of the page and
 * shrinks i_size (fs/fuse/file.c, fuse_short_read()), and so do programs that copy a file. */
int64_t df_file_read(struct df_file *file, void *buffer, uint64_t offset, uint64_t len, int nowait)
{
	uint64_t done = 0;

	if (len > LLONG_MAX || offset > LLONG_MAX - len)
		return -EINVAL;
	while (done < len) {
		uint64_t at = offset + done, end = offset + len;
		int64_t n = -1;
		bool filled = false;

		file_lock(file);
		/* who has read past an old EOF may expect that mappings reach there, too */
		if (file->cache >= 0 && (file->resident || file->sized)) {
			int bits = file_notice(file);

			if (bits < 0) {
				file_unlock(file);
				return bits;
			}
			end = pages_run(file, at, end, &filled);
			if (filled && end > file->size)
				end = file->size;
			if (filled && end <= at) {
				file_unlock(file);
				break;
			}
		}
		if (filled)
			n = pages_read(file, (char *)buffer + done, at, end - at);
		file_unlock(file);

		if (filled && n == -ESTALE)
			continue;		/* the source has them */
		if (filled && n)
			return n;
		/* Without the lock: a slow source must not hold up a truncation.
		 * Against a store or write that runs at the same time either order
		 * is right. */
		n = filled ? (int64_t)(end - at)
			   : source_read(&file->source, (char *)buffer + done, at, end - at, nowait);
		if (n < 0)
			return n;
		done += (uint64_t)n;
		if ((uint64_t)n < end - at)
			break;			/* EOF */
	}
	return (int64_t)done;
}

/* The bytes of a write that are in the page cache. */
static void update_cache(struct df_file *file, const char *bytes, uint64_t offset, uint64_t len)
{
	for (uint64_t at = offset; at < offset + len;) {
		bool filled;
		uint64_t end = pages_run(file, at, offset + len, &filled);

		/* Pages that cannot take them must not keep the old bytes. */
		if (filled && pages_write(file, bytes + (at - offset), at, end - at))
			pages_drop(file, PAGE_DOWN(at), PAGE_UP(end));
		at = end;
	}
}

int64_t df_file_write(struct df_file *file, const void *bytes, uint64_t offset, uint64_t len)
{
	int64_t n;

	if (len > LLONG_MAX || offset > LLONG_MAX - len)
		return -EFBIG;
	file_lock(file);
	if (file->cache < 0) {
		/* Nobody maps it: no need to hold up others for a slow disk. */
		pthread_mutex_unlock(&file->lock);
		n = source_write(&file->source, bytes, offset, len);
		if (n < 0)
			return n;
		file_lock(file);
		if (file->cache >= 0) {
			/* A guest began to meanwhile: what it filled, or is filling,
			 * may be from before this write. */
			file_notice(file);
			file_changed(file, file->size, false);
			fill_release(file, offset, offset + (uint64_t)n);
			if (offset < file->size)
				update_cache(file, bytes, offset,
					     (uint64_t)n < file->size - offset
					     ? (uint64_t)n : file->size - offset);
		} else {
			file_stamp(file);
			if (offset + (uint64_t)n > file->size)
				file->size = offset + (uint64_t)n;
		}
		file_unlock(file);
		return n;
	}
	file_notice(file);
	n = source_write(&file->source, bytes, offset, len);
	if (n > 0) {
		uint64_t end = offset + (uint64_t)n;
		uint64_t size = end > file->size ? end : file->size;

		file_stamp(file);
		file_changed(file, size, false);
		fill_release(file, offset, end);
		update_cache(file, bytes, offset, (uint64_t)n);
	}
	file_unlock(file);
	return n;
}

/* Make sure that the next store to these pages is noticed.  false: some guest may
 * store unseen (not tracked, or its address space is changing just now). */
static bool protect(struct df_file *file, uint64_t start, uint64_t end)
{
	bool all = true;

	for (struct df_region *region = file->mappings; region; region = region->next) {
		uint64_t from = start > region->offset ? start : region->offset;
		uint64_t to = region->offset + region->len;
		int error;

		if (to > end)
			to = end;
		if (!region->writable || from >= to)
			continue;
		error = region->tracked
			? uffd_protect(region->guest->uffd, region->start + (from - region->offset),
				       to - from, true)
			: -EOPNOTSUPP;
		/* What its reader has read of forks and moves does not change the
		 * table before it has acted upon it. */
		all &= error == -ESRCH || (!error && !(atomic_load(&region->guest->turn) % 2));
	}
	return all;
}

/* Write one run of exposed pages.  Protected first and read then: a store that
 * comes in between makes the page exposed again, after us. */
static int write_back_run(struct df_file *file, uint64_t start, uint64_t end)
{
	uint64_t stop = end < file->size ? end : file->size, most = RANGE;
	char *bytes = fill_buffer();
	int error = 0;
	int64_t n;

	if (protect(file, start, end))
		pages_clear_exposed(file, start, end);
	atomic_store(&file->used, 0);	/* there are clean pages again, and old ones */
	while (start < stop && !error) {
		uint64_t len = stop - start < most ? stop - start : most;

		if (!pages_filled(file, start)) {
			start = PAGE_DOWN(start) + PAGE;	/* lost with what was stored to it */
			continue;
		}
		error = bytes ? pages_read(file, bytes, start, len) : -ENOMEM;
		if (error == -ESTALE) {
			error = 0;
			most = PAGE;	/* the others are to be written all the same */
		} else if (!error) {
			n = source_write(&file->source, bytes, start, len);
			error = n < 0 ? (int)n : n == 0 ? -ENOSPC : 0;
			start += n > 0 ? (uint64_t)n : 0;
		}
	}
	if (error)
		pages_set_exposed(file, PAGE_DOWN(start), end);
	return error;
}

int df_file_write_back(struct df_file *file)
{
	uint64_t at = 0, freed = 0;
	int error = 0, some = 0;

	while (!error) {
		uint64_t end;

		file_lock(file);
		if (file->cache < 0 || !file->source.writable) {
			file_unlock(file);
			break;
		}
		file_notice(file);	/* never write past an EOF that moved */
		if (!pages_next_exposed(file, &at, &end, SLICE) || at >= file->size) {
			file_unlock(file);
			break;
		}
		error = write_back_run(file, at, end);
		file_stamp(file);
		freed += evict_written(file);
		file_unlock(file);
		some |= !error;
		at = end;
	}
	if (error || some)
		evict_tried(!freed);
	return error ? error : some;
}

int df_file_sync(struct df_file *file, int datasync)
{
	int error = df_file_write_back(file), synced = source_sync(&file->source, datasync);

	return error < 0 ? error : synced;
}
