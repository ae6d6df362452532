/* SPDX-License-Identifier: Apache-2.0
 *
 * install.c - putting pages of the page cache into a guest: how many, with which
 * rights, and what each errno of UFFDIO_CONTINUE means.  Everything here runs under
 * guest->lock and file->lock.  Must not read page sources.
 */
#include <errno.h>

#include "engine/internal.h"

#define AROUND_MIN ((uint32_t)PAGE)
#define AROUND_MAX ((uint32_t)RANGE)
#define MAP_AROUND ((uint32_t)(16 * PAGE))
#define STORE_AHEAD ((uint32_t)(64 * PAGE))	/* from here on a writer counts as sequential */

/* How much to fill together: more and more for a sequential reader, down to the
 * page itself for a random one. */
static void adapt(struct df_region *region, uint64_t page)
{
	if (page == region->expected)
		region->around = region->around * 4 < AROUND_MAX ? region->around * 4 : AROUND_MAX;
	else if (region->around > AROUND_MIN)
		region->around /= 2;
}

void install_window(const struct df_region *region, const struct df_fault *fault, uint64_t around,
		   uint64_t *start, uint64_t *end)
{
	uint64_t region_end = region->offset + region->len, limit = file_end(region->file);

	if (fault->single || fault->mends)
		around = PAGE;
	*start = fault->offset & ~(around - 1);
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
static int map_pages(struct df_region *region, uint64_t from, uint64_t to, bool protect,
		     uint64_t *done, bool *present)
{
	struct df_guest *guest = region->guest;
	uint64_t at = from;

	while (at < to) {
		uint64_t mapped, va = region->start + (at - region->offset);
		int error = uffd_continue(guest->uffd, va, to - at, protect, &mapped);

		COUNT(guest->engine, installed, mapped / PAGE);
		at += mapped;
		if (!error)
			break;
		if (error == -EEXIST && at > from) {
			break;		/* it has this one, and so its neighbours */
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

static unsigned bucket(uint64_t ns)
{
	unsigned log2 = ns ? 63u - (unsigned)__builtin_clzll(ns) : 0;

	return log2 < DF_HISTOGRAM ? log2 : DF_HISTOGRAM - 1;
}

/* Which of the pages to be mapped may be stored to unseen.  With tracking, those
 * that are being stored to, and what lies ahead of a sequential writer. */
static bool protect_pages(struct df_region *region, const struct df_fault *fault, uint64_t *start,
			  uint64_t *end)
{
	if (!region->writable)
		return false;
	if (region->tracked && !fault->write)
		return true;
	if (region->tracked && region->around < STORE_AHEAD) {
		*start = fault->offset;
		*end = *start + PAGE;
	}
	pages_set_exposed(region->file, *start, *end);
	return false;
}

/* The first store to a page that was mapped for reading. */
enum verdict install_store(struct df_fault *fault, struct df_region *region, uint64_t page)
{
	struct df_file *file = region->file;
	struct df_guest *guest = fault->guest;
	uint64_t start = fault->offset, end;
	bool filled;
	int error;

	if (page == region->store_expected)
		region->store_around = region->store_around * 4 < AROUND_MAX
			? region->store_around * 4 : AROUND_MAX;
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
			pages_set_exposed(file, start, end);
		error = uffd_protect(guest->uffd, page, end - start, false);
		if (error == -ENOENT)
			error = uffd_protect(guest->uffd, page, PAGE, false);
		region->store_expected = page + (end - start);
		if (!error || error == -ESRCH)
			return DONE;
		if (error == -EAGAIN) {
			COUNT(guest->engine, again, 1);
			return AGAIN;
		}
	}
	/* The page is gone, by truncation or unmapping: the access will say so. */
	uffd_wake(guest->uffd, page, PAGE);
	return DONE;
}

enum verdict install(struct df_fault *fault, struct df_region *region, uint64_t page)
{
	struct df_file *file = region->file;
	struct df_guest *guest = fault->guest;
	uint64_t start, end, done;
	bool filled, protect, present = false;
	int error;

	if (!fault->mends)
		adapt(region, page);
	/* What is in the page cache costs little to map: as in do_fault_around(). */
	install_window(region, fault, region->around > MAP_AROUND ? region->around : MAP_AROUND, &start, &end);
	for (uint64_t at = start; at < fault->offset; at += PAGE)
		if (!pages_filled(file, at))
			start = at + PAGE;
	end = pages_run(file, fault->offset, end, &filled);
	protect = protect_pages(region, fault, &start, &end);

	error = map_pages(region, fault->offset, end, protect, &done, &present);
	if (error == -ENOENT && !done) {
		/* The range crosses a mapping's end, as after mprotect(): one page. */
		end = fault->offset + PAGE;
		error = map_pages(region, fault->offset, end, protect, &done, &present);
	}
	if (error == -EINVAL && protect && pages_present(file, fault->offset)) {
		/* Not registered for WP faults: every page may be stored to. */
		region->tracked = protect = false;
		pages_set_exposed(file, start, end);
		error = map_pages(region, fault->offset, end, protect, &done, &present);
	}
	if (!error || done) {
		/* EEXIST does not wake: another thread's install may have come
		 * between this thread's fault and its sleep. */
		if (present)
			uffd_wake(guest->uffd, page, PAGE);
		if (start < fault->offset)
			map_pages(region, start, fault->offset, protect, &done, &present);
		region->expected = region->start + (end - region->offset);
		guest_resolved(guest, page, page + PAGE);
		TRACE(&guest->engine->tracer, .kind = DF_TRACE_INSTALL, .guest = guest->id, .file = file->id,
		      .address = fault->address, .offset = fault->offset, .token = fault->token,
		      .tid = fault->tid, .vcpu = fault->asked ? fault->vcpu : -1,
		      .value = (uint32_t)(end - start));
		if (fault->mends) {
			poison_tried(file, guest, page, true);
			COUNT(guest->engine, healed, 1);
		} else {
			COUNT(guest->engine, latency[bucket(now_ns() - fault->arrived)], 1);
		}
		return DONE;
	}
	switch (error) {
	case -EAGAIN:
		COUNT(guest->engine, again, 1);
		return AGAIN;
	case -ESRCH:
		return DONE;		/* nobody left to answer */
	case -EINVAL:
	case -EFAULT:
		/* No page where the guest has mapped something: in the memfd, when
		 * a guest that may write to it has punched it out, and what the file
		 * holds comes from the source again; or in other shared memory that
		 * it mapped instead, which says nothing about the file. */
		if (pages_present(file, fault->offset))
			break;
		pages_drop(file, fault->offset, fault->offset + PAGE);
		if (fault->tries++ <= DF_TRIES_MAX)
			return REPEAT;
		break;
	case -ENOENT:
		/* Unmapped while we looked?  Then the access gets SIGSEGV.  If it
		 * comes back here it is a mapping that cannot take our page. */
		if (!fault->mends && guest_attempt(guest, page) == 1) {
			uffd_wake(guest->uffd, page, PAGE);
			return DONE;
		}
		break;
	}
	engine_fail(fault, file, DF_REASON_INSTALL, -error);
	return DONE;
}
