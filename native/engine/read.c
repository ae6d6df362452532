/* SPDX-License-Identifier: Apache-2.0
 *
 * read.c - reads from a page source into the page cache.  Must not install pages in guests, nor
 * decide the meaning of EOF.
 *
 * Pages that the kernel has in memory are read at once, under file->lock.  Others are read by a
 * fill: its bytes stay in the thread's buffer until they are written to the page cache, under
 * file->lock, and only if the range has not changed since.
 */
#include <errno.h>
#include <string.h>

#include "internal.h"

static pthread_key_t buffer_key;
static pthread_once_t buffer_once = PTHREAD_ONCE_INIT;

static void make_key(void)
{
	pthread_key_create(&buffer_key, free);
}

char *read_buffer(void)
{
	char *buffer;

	pthread_once(&buffer_once, make_key);
	buffer = pthread_getspecific(buffer_key);
	if (!buffer) {
		buffer = aligned_alloc(PAGE, RANGE);
		pthread_setspecific(buffer_key, buffer);
	}
	return buffer;
}

static void report_size(struct df_file *file)
{
	GUARD(&file->lock);
	file->unreported |= DF_CHANGED_SIZE;
}

/* -> the injected result of this read: 0 or a positive errno. */
static int injected(struct df_fill *fill, bool may_block)
{
	struct source_ask ask = { fill->start, fill->len, may_block, true, { 0 } };
	struct df_file *file = fill->file;
	uint64_t truncate, page;
	int error;

	if (!source_injects(&file->source))
		return 0;
	pthread_mutex_lock(&file->lock);
	for (const struct df_fault *w = fill->waiters; w; w = w->next) {
		ask.retry &= w->retry != NULL;
		page = (w->offset - fill->start) / PAGE;
		ask.stores[page / 64] |= (uint64_t)!!w->write << page % 64;
	}
	pthread_mutex_unlock(&file->lock);
	error = source_ask(&file->source, &ask, &truncate);
	if (truncate == SOURCE_UNTRUNCATED)
		return error;
	/* Not a call of the file server, so report the size to it, before and after. */
	report_size(file);
	error = -change_truncate(file, truncate);
	report_size(file);
	return error;
}

/* Write the `got` bytes read at `start` to the page cache.  A partial last page is the last page
 * of the file, or else it is not used, because the rest of it is unknown. */
static int settle(struct df_file *file, char *bytes, uint64_t start, uint64_t got)
{
	uint64_t end = start + got, tail = PAGE_UP(end);
	int error = 0;

	if (end >= file->size) {
		memset(bytes + got, 0, tail - end);
		end = tail;
	}
	end = PAGE_DOWN(end);
	if (start < end)
		error = pages_fill(file, bytes, start, end);
	if (start < end && !error)
		evict(file, start, end);
	return error;
}

/* -> bytes; *error as source_bring() */
static uint64_t read_source(struct df_fill *fill, char *bytes, bool may_block, int *error)
{
	struct df_source *source = &fill->file->source;

	*error = bytes ? injected(fill, may_block) : ENOMEM;
	if (*error)
		return 0;
	return may_block ? source_bring(source, bytes, fill->start, fill->len, error)
			 : source_peek(source, bytes, fill->start, fill->len, error);
}

struct df_fault *read_fill(struct df_fill *fill, bool may_block, bool *wait)
{
	struct df_file *file = fill->file;
	struct df_fault *waiters;
	char *bytes = read_buffer();
	struct file_look look;
	uint64_t got = 0, looked;
	int error = 0, bits;

	*wait = !may_block && fill->present;
	if (!fill->present) {
		got = read_source(fill, bytes, may_block, &error);
		*wait = !may_block && error == EAGAIN;
	}
	if (*wait)
		return NULL;

	looked = now_ns();
	file_look(file, &look); /* check that EOF has not moved */
	pthread_mutex_lock(&file->lock);
	bits = change_saw(file, &look);
	waiters = fill_end(fill);
	COUNT(fill->engine, filled, got);
	TRACE(&fill->engine->tracer, .kind = DF_TRACE_FILL_END, .file = file->id,
	      .offset = fill->start, .vcpu = -1, .value = (uint32_t)got, .error = error);
	for (struct df_fault *fault = waiters; fault; fault = fault->next) {
		fault->looked = fault->arrived <= looked;
		fault->look_error = look.error;
	}
	if (fill->stale) {
		/* Read across a change: these bytes are neither old nor new. */
		COUNT(fill->engine, retries, 1);
	} else {
		int refused = fill->present ? 0 : settle(file, bytes, fill->start, got);

		if (refused)
			error = -refused;
		else if (!error && !fill->present && got < fill->len &&
			 fill->start + got < file->size && look.looks == atomic_load(&file->looks))
			error = EIO; /* neither bytes, nor EOF, nor an error */
		/* The error may be that of another page than the waiter's: each waiter reads its
		 * own page alone once more. */
		for (struct df_fault *fault = waiters; fault && error; fault = fault->next) {
			if (fill->len == PAGE)
				fault->error = bits < 0 ? -bits : error;
			fault->single = true;
		}
	}
	file_unlock(file);
	file_put(file);
	free(fill);
	return waiters;
}

/* Under file->lock nothing can change the file meanwhile, so there is no
 * generation to compare. */
int read_now(struct df_engine *engine, struct df_file *file, uint64_t offset, uint64_t start,
	     uint64_t end)
{
	char *bytes = read_buffer();
	uint64_t got;
	int error;

	if (!bytes)
		return -ENOMEM;
	fill_narrow(file, offset, &start, &end);
	got = source_peek(&file->source, bytes, start, end - start, &error);
	COUNT(engine, filled, got);
	if (error)
		return -error;
	if (got < end - start && start + got < file->size)
		return -EIO;
	return settle(file, bytes, start, got);
}
