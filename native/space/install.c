/* SPDX-License-Identifier: Apache-2.0
 *
 * install.c - installs pages of the page cache in a guest: how many, with which protection, and the
 * meaning of each errno of UFFDIO_CONTINUE.  All of it runs under space->lock and file->lock.  Must
 * not read page sources, nor fail a fault.
 */
#include <errno.h>

#include "space.h"

#define AROUND_MIN ((uint32_t)PAGE)
#define AROUND_MAX ((uint32_t)RANGE)
#define MAP_AROUND ((uint32_t)(16 * PAGE))
#define STORE_AHEAD ((uint32_t)(64 * PAGE)) /* from here on a writer counts as sequential */

/* Adapt the size of a fill: it grows for a sequential reader, and shrinks to one page for a random
 * one. */
static void adapt(struct df_region *region, uint64_t page)
{
	if (page == region->expected)
		region->around = region->around * 4 < AROUND_MAX ? region->around * 4 : AROUND_MAX;
	else if (region->around > AROUND_MIN)
		region->around /= 2;
}

void install_window(const struct df_region *region, const struct install *install, uint64_t around,
		    uint64_t *start, uint64_t *end)
{
	uint64_t region_end = region->offset + region->len, limit = file_end(region->file);

	if (install->alone || install->retry)
		around = PAGE;
	*start = install->offset & ~(around - 1);
	*end = *start + around;
	if (*start < region->offset)
		*start = region->offset;
	if (*end > region_end)
		*end = region_end;
	if (*end > limit)
		*end = limit;
}

/* Map the filled pages of [from, to), file offsets; -> the first error, if any,
 * and the bytes looked at before it in *done. */
static int map_pages(const struct df_region *region, struct install *install, uint64_t from,
		     uint64_t to, bool protect, uint64_t *done, bool *present)
{
	uint64_t at = from;

	while (at < to) {
		uint64_t mapped, va = region->start + (at - region->offset);
		int error = uffd_continue(region->space->uffd, va, to - at, protect, &mapped);

		install->pages += mapped / PAGE;
		at += mapped;
		if (!error)
			break;
		if (error == -EEXIST && at > from) {
			break; /* this page is mapped, so the next ones probably are too */
		} else if (error == -EEXIST) {
			*present = true;
			at += PAGE;
		} else if (!mapped) {
			*done = at - from;
			return error;
		}
	}
	*done = to - from;
	return 0;
}

/* Choose the pages that are mapped writable, whose stores are not noticed.  With tracking, these
 * are the pages being stored to, and those ahead of a sequential writer. */
static bool protect_pages(struct df_region *region, const struct install *install, uint64_t *start,
			  uint64_t *end)
{
	if (!region->writable)
		return false;
	if (region->tracked && !install->write)
		return true;
	if (region->tracked && region->around < STORE_AHEAD) {
		*start = install->offset;
		*end = *start + PAGE;
	}
	exposed_begin(region->file, *start, *end);
	return false;
}

enum verdict install_store(struct df_region *region, struct install *install)
{
	struct df_file *file = region->file;
	uint64_t start = install->offset, page = install->page, end;
	int uffd = region->space->uffd, error;
	bool filled;

	if (page == region->store_expected)
		region->store_around = region->store_around * 4 < AROUND_MAX
					       ? region->store_around * 4
					       : AROUND_MAX;
	else if (region->store_around > PAGE)
		region->store_around /= 2;
	end = start + region->store_around;
	if (end > region->offset + region->len)
		end = region->offset + region->len;
	if (end > file_end(file))
		end = file_end(file);
	end = pages_filled(file, start) ? pages_run(file, start, end, &filled) : start;
	if (start < end) {
		/* a private mapping's store goes to a copy, not to the file */
		if (region->writable)
			exposed_begin(file, start, end);
		error = uffd_protect(uffd, page, end - start, false);
		if (error == -ENOENT)
			error = uffd_protect(uffd, page, PAGE, false);
		region->store_expected = page + (end - start);
		if (!error || error == -ESRCH)
			return VERDICT_DONE;
		if (error == -EAGAIN)
			return VERDICT_AGAIN;
	}
	/* The page is gone, by truncation or unmapping: the repeated access gets the error. */
	uffd_wake(uffd, page, PAGE);
	return VERDICT_DONE;
}

enum verdict install_page(struct df_region *region, struct install *install)
{
	struct df_file *file = region->file;
	uint64_t offset = install->offset, start, end, done;
	bool filled, protect, present = false;
	int error;

	if (!install->retry)
		adapt(region, install->page);
	/* Mapping more pages of the page cache costs little: as in do_fault_around(). */
	install_window(region, install, region->around > MAP_AROUND ? region->around : MAP_AROUND,
		       &start, &end);
	for (uint64_t at = start; at < offset; at += PAGE)
		if (!pages_filled(file, at))
			start = at + PAGE;
	end = pages_run(file, offset, end, &filled);
	protect = protect_pages(region, install, &start, &end);

	error = map_pages(region, install, offset, end, protect, &done, &present);
	if (error == -ENOENT && !done) {
		/* The range crosses a mapping's end, as after mprotect(): one page. */
		end = offset + PAGE;
		error = map_pages(region, install, offset, end, protect, &done, &present);
	}
	if (error == -EINVAL && protect && pages_present(file, offset)) {
		/* Not registered for WP faults: every page may be stored to. */
		region->tracked = protect = false;
		exposed_begin(file, start, end);
		error = map_pages(region, install, offset, end, protect, &done, &present);
	}
	if (!error || done) {
		/* EEXIST does not wake: another thread's install may have come
		 * between this thread's fault and its sleep. */
		if (present)
			uffd_wake(region->space->uffd, install->page, PAGE);
		if (start < offset)
			map_pages(region, install, start, offset, protect, &done, &present);
		region->expected = region->start + (end - region->offset);
		install->bytes = end - start;
		return VERDICT_INSTALLED;
	}
	install->error = -error;
	switch (error) {
	case -EAGAIN:
		return VERDICT_AGAIN;
	case -ESRCH:
		return VERDICT_DONE; /* the guest has ended */
	case -EINVAL:
	case -EFAULT:
		/* The mapped memory has no page.  Either a guest with write access has punched it
		 * out of the memfd, and the page is read from the source again; or the guest has
		 * mapped other shared memory there. */
		if (pages_present(file, offset))
			return VERDICT_FAILED;
		pages_drop(file, offset, offset + PAGE);
		return VERDICT_LOST;
	case -ENOENT:
		return VERDICT_UNMAPPED;
	default:
		return VERDICT_FAILED;
	}
}
