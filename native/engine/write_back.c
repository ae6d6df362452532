/* SPDX-License-Identifier: Apache-2.0
 *
 * write_back.c - what guests stored to goes to the backing file.  Must not decide when.
 */
#include <errno.h>

#include "internal.h"

#define SLICE ((uint64_t)1 << 20)	/* bytes written back under one hold of the lock */

/* Write one run of exposed pages.  Protected first and read then: a store that
 * comes in between makes the page exposed again, after us. */
static int write_back_run(struct df_file *file, uint64_t start, uint64_t end)
{
	uint64_t stop = end < file->size ? end : file->size, most = RANGE;
	char *bytes = read_buffer();
	int error = 0;
	int64_t n;

	if (space_protect(file, start, end))
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

		pthread_mutex_lock(&file->lock);
		if (file->cache < 0 || !file->source.writable) {
			file_unlock(file);
			break;
		}
		change_notice(file);	/* never write past an EOF that moved */
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

int df_file_retire(struct df_file *file)
{
	int some = df_file_write_back(file), error = 0;

	if (some < 0)
		return some;
	pthread_mutex_lock(&file->lock);
	if (file->mappings->n || file->waits->fills || pages_any_exposed(file)) {
		error = -EBUSY;
	} else {
		pages_free(file);
		file_deactivate(file);
	}
	pthread_mutex_unlock(&file->lock);
	return error ? error : some;
}
