/* SPDX-License-Identifier: Apache-2.0
 *
 * file.c - what a file server does with a file: read(2), write(2), truncate(2), a look at the
 * backing file, a descriptor of the page cache.  What is in the page cache is the truth for its
 * pages, the backing file for the others.  Must not fill the cache: only a guest's fault does.
 */
#include <errno.h>
#include <limits.h>

#include "internal.h"

/* After a job that had counted the file. */
static void release(struct job_queue *jobs)
{
	file_put(((struct file_waits *)((char *)jobs - offsetof(struct file_waits, jobs)))->file);
}

int df_file_new(int fd, int writable, struct df_file **out)
{
	struct df_file *file;
	int error = file_new(fd, writable, &file);

	*out = NULL;
	if (error)
		return error;
	file->mappings = calloc(1, sizeof(*file->mappings));
	file->waits = calloc(1, sizeof(*file->waits));
	if (!file->mappings || !file->waits) {
		file_put(file);
		return -ENOMEM;
	}
	jobs_init(&file->waits->jobs, release);
	file->waits->file = file;
	*out = file;
	return 0;
}

void df_file_put(struct df_file *file)
{
	file_put(file);
}

int df_file_fd(struct df_file *file)
{
	return file->source.fd;
}

void df_file_fetch(struct df_file *file, int (*fetch)(void *context, uint64_t offset, uint64_t len),
		   void *context)
{
	GUARD(&file->lock);
	file->source.fetch = fetch;
	file->source.fetch_context = context;
	file->source.memory = false;
	file->source.blocks = true;
}

int df_file_upgrade(struct df_file *file, int fd)
{
	int error = source_upgrade(&file->source, fd);

	GUARD(&file->lock);
	file->source.writable |= !error;
	if (!error)
		file_keep_source(file);
	return error;
}

/* All or an error: the kernel takes a short answer for EOF, zeroes the rest of the page and
 * shrinks i_size (fs/fuse/file.c, fuse_short_read()), and so do programs that copy a file. */
int64_t df_file_read(struct df_file *file, void *buffer, uint64_t offset, uint64_t len, int nowait)
{
	uint64_t done = 0;

	if (len > LLONG_MAX || offset > LLONG_MAX - len)
		return -EINVAL;
	if (nowait && !file->source.local)
		return -EAGAIN;
	while (done < len) {
		uint64_t at = offset + done, end = offset + len;
		struct file_look look;
		int64_t n = -1;
		bool filled = false;

		file_look(file, &look);
		pthread_mutex_lock(&file->lock);
		/* a reader past an old EOF may expect that mappings reach there, too */
		if (file->cache >= 0 && (file->resident || file->sized)) {
			int bits = change_saw(file, &look);

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
			continue; /* the source has them */
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
			break; /* EOF */
	}
	return (int64_t)done;
}

int64_t df_file_write(struct df_file *file, const void *bytes, uint64_t offset, uint64_t len,
		      int nowait)
{
	struct file_look after;
	uint64_t end;
	int64_t n;

	if (len > LLONG_MAX || offset > LLONG_MAX - len)
		return -EFBIG;
	if (nowait && !change_try(file, CALL_WRITE))
		return -EAGAIN;
	if (!nowait)
		change_begin(file, CALL_WRITE);
	pthread_mutex_unlock(&file->lock);
	n = source_write(&file->source, bytes, offset, len);
	file_look(file, &after);
	pthread_mutex_lock(&file->lock);
	end = offset + (uint64_t)(n > 0 ? n : 0);
	after.error = n > 0 ? after.error : -EIO; /* its times are not ours */
	file_call_end(file, &after);
	if (n > 0 && file->cache < 0 && end > file->size)
		file->size = end;
	else if (n > 0 && file->cache >= 0)
		file_written(file, bytes, offset, (uint64_t)n, end > file->size ? end : file->size);
	change_end(file);
	return n;
}

int df_file_truncate(struct df_file *file, uint64_t size)
{
	return change_truncate(file, size);
}

void df_file_attributes_set(struct df_file *file)
{
	struct file_look look;

	file_look(file, &look);
	GUARD(&file->lock);
	file_attributes_set(file, &look);
}

int df_file_recheck(struct df_file *file)
{
	struct file_look look;
	int bits;

	file_look(file, &look);
	pthread_mutex_lock(&file->lock);
	bits = change_saw(file, &look);
	/* a fault may have noticed the change first: it is news to this caller */
	if (bits >= 0) {
		bits = file->unreported;
		file->unreported = 0;
		file->waits->retried |= bits;
	}
	file_unlock(file);
	return bits;
}

int df_file_inject(struct df_file *file, const struct df_inject_options *options)
{
	uint64_t at = options->start, end = at + options->len;
	int error = source_inject(&file->source, options);

	if (error || !(options->flags & DF_INJECT_EVICT))
		return error;
	GUARD(&file->lock);
	exposed_drop_clean(file, &at, end < CACHE_SIZE ? end : CACHE_SIZE, UINT64_MAX);
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
	struct df_poison *retry = NULL;
	int pages;

	pthread_mutex_lock(&file->lock);
	pages = (int)file->mappings->npoisons;
	file->waits->retried |= poison_retry(file, &retry);
	faults_retry(retry, false);
	file_unlock(file);
	return pages;
}

int df_file_cache_fd(struct df_file *file, int flags)
{
	struct file_look look;
	int fd;

	file_look(file, &look);
	pthread_mutex_lock(&file->lock);
	change_saw(file, &look);
	fd = file_activate(file, flags & DF_CACHE_SIZED);
	if (!fd)
		fd = file_cache_fd(file, flags & DF_CACHE_WRITABLE);
	file_unlock(file);
	return fd;
}

void df_file_state(struct df_file *file, struct df_file_state *out)
{
	struct file_look look = { .error = -EAGAIN };

	if (file->source.local)
		file_look(file, &look);
	GUARD(&file->lock);
	*out = (struct df_file_state){
		.id = file->id,
		.size = look.error ? file->size : (uint64_t)look.st.st_size,
		.local = file->source.local,
		.known_size = file->size,
		.generation = atomic_load(&file->generation),
		.resident = file->resident,
		.poisoned = file->mappings->npoisons,
		.retrying = atomic_load(&file->waits->retries),
		.mappings = file->mappings->n,
		.writable_mappings = file->mappings->nwritable,
	};
	for (struct df_region *region = file->mappings->first; region; region = region->next)
		out->child_mappings += guest_of(region->space)->child;
	fill_state(file, out);
}
