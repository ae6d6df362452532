/* SPDX-License-Identifier: Apache-2.0
 *
 * verify.c - with DAXFAULT_VERIFY=1 in the environment: compares a page cache with the backing file
 * when it is released, after the write-back.  A difference is a lost store, or a change that was
 * not noticed: it is logged and counted, and with DAXFAULT_VERIFY=abort it aborts the process.
 * Must not change anything.
 *
 * For tests and debugging only: unlike all other code, it reads the backing file under file->lock.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "internal.h"

#define SLICE (RANGE / 2)

static atomic_uint_fast64_t differences;

uint64_t df_verify_differences(void)
{
	return atomic_load(&differences);
}

static void report(const struct df_file *file, uint64_t offset, const char *how)
{
	fprintf(stderr, "daxfault: file %llu, byte %#llx: page cache and backing file differ\n",
		(unsigned long long)file->id, (unsigned long long)offset);
	atomic_fetch_add(&differences, 1);
	if (!strcmp(how, "abort"))
		abort();
}

/* The first byte of [start, end) that differs, or `end`. */
static uint64_t first_difference(struct df_file *file, uint64_t start, uint64_t end)
{
	char *cached = read_buffer(), *backing = cached + SLICE;
	int64_t n;

	if (!cached || pages_read(file, cached, start, end - start))
		return end;
	n = source_read(&file->source, backing, start, end - start, false);
	for (uint64_t i = 0; n >= 0 && i < end - start; i++)
		if (i >= (uint64_t)n || cached[i] != backing[i])
			return start + i;
	return end;
}

/* Dirty pages are skipped: they could not be written. */
static uint64_t find_difference(struct df_file *file)
{
	for (uint64_t at = 0, end; pages_next(file, &at, &end, SLICE, PAGE_FILLED); at = end) {
		uint64_t stop = end < file->size ? end : file->size, found;

		if (at >= stop)
			break;
		found = first_difference(file, at, stop);
		if (found < stop && !pages_in(file, PAGE_DOWN(found), PAGE_DIRTY))
			return found;
	}
	return UINT64_MAX;
}

void verify(struct df_file *file)
{
	const char *how = getenv("DAXFAULT_VERIFY");
	struct file_look look;
	uint64_t found;

	if (!how || file->cache < 0 || file->source.fetch)
		return;
	found = find_difference(file);
	/* Another process may have just changed the backing file. */
	file_look(file, &look);
	if (found != UINT64_MAX && !change_saw(file, &look))
		report(file, found, how);
}
