/* SPDX-License-Identifier: Apache-2.0
 *
 * fault.c - one fault, from the address to its page or its failure: look up,
 * fill, decide under the file's lock, install.  Must not choose what becomes of
 * a failed fault: that is Python's.
 *
 * Every path ends in one of: the page installed; the fault parked on a fill that
 * has a deadline; the fault handed to Python with a deadline; a wake-up, because
 * the mapping it was for is gone and the kernel will say so.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "internal.h"

#define AROUND_MIN ((uint32_t)PAGE)
#define AROUND_MAX ((uint32_t)RANGE)
#define STORE_AHEAD ((uint32_t)(64 * PAGE))	/* from here on a writer counts as sequential */

enum verdict {
	DONE,
	WAITS,		/* a copy of the fault waits on a fill */
	FILL,		/* ... on a new one, which the caller must run */
	AGAIN,		/* the guest's address space is changing: after its events */
	REPEAT,		/* look again, at once */
};

struct df_fault *fault_copy(const struct df_fault *fault)
{
	struct df_fault *copy = malloc(sizeof(*copy));

	if (copy) {
		*copy = *fault;
		copy->next = NULL;
		guest_get(copy->guest);
	}
	return copy;
}

void fault_free(struct df_fault *fault)
{
	guest_put(fault->guest);
	free(fault);
}

/* The errno get_user_pages() has for this page of the file: the very error KVM
 * meets when it resolves a guest's fault on a truncated file.  0: it has a page. */
static int gup_error(const struct df_file *file, uint64_t offset)
{
	char byte;
	char *map = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, file->fd, (off_t)offset);
	struct iovec to = { &byte, 1 }, from = { map, 1 };
	int error;

	if (map == MAP_FAILED)
		return EFAULT;		/* cannot be mapped at all: direct I/O files */
	error = process_vm_readv(getpid(), &to, 1, &from, 1, 0) == 1 ? 0 : errno;
	munmap(map, PAGE);
	return error;
}

/* How much to fill and map together: more and more for a sequential reader, down
 * to the page itself for a random one. */
static void adapt(struct df_region *region, uint64_t page)
{
	if (page == region->expected)
		region->around = region->around * 4 < AROUND_MAX ? region->around * 4 : AROUND_MAX;
	else if (region->around > AROUND_MIN)
		region->around /= 2;
}

static void window(const struct df_region *region, const struct df_fault *fault, uint64_t limit,
		   uint64_t *start, uint64_t *end)
{
	uint64_t around = fault->single || fault->heal ? PAGE : region->around;
	uint64_t region_end = region->offset + region->len;

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
		     uint64_t *done)
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
		if (error == -EEXIST) {
			at += PAGE;	/* this guest has it already */
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

/* The first store to a page that was mapped for reading.  Under file->lock. */
static enum verdict store(struct df_fault *fault, struct df_region *region, uint64_t page)
{
	struct df_file *file = region->file;
	struct df_guest *guest = fault->guest;
	uint64_t start = fault->offset, end;
	bool filled;
	int error;

	if (page == region->store_expected)
		region->store_around = region->store_around * 4 < AROUND_MAX
			? region->store_around * 4 : AROUND_MAX;
	else if (region->store_around > AROUND_MIN)
		region->store_around /= 2;
	end = start + region->store_around;
	if (end > region->offset + region->len)
		end = region->offset + region->len;
	if (end > file_end(file))
		end = file_end(file);
	end = pages_filled(file, start) ? pages_run(file, start, end, &filled) : start;
	if (start < end) {
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

static enum verdict install(struct df_fault *fault, struct df_region *region, uint64_t page)
{
	struct df_file *file = region->file;
	struct df_guest *guest = fault->guest;
	uint64_t start, end, done;
	bool filled, protect;
	int error;

	if (!fault->heal)
		adapt(region, page);
	window(region, fault, file_end(file), &start, &end);
	while (start < fault->offset && !pages_filled(file, start))
		start += PAGE;
	for (uint64_t at = start; at < fault->offset; at += PAGE)
		if (!pages_filled(file, at))
			start = at + PAGE;
	end = pages_run(file, fault->offset, end, &filled);
	protect = protect_pages(region, fault, &start, &end);

	error = map_pages(region, fault->offset, end, protect, &done);
	if (error == -ENOENT && !done) {
		/* The range crosses a mapping's end, as after mprotect(): one page. */
		end = fault->offset + PAGE;
		error = map_pages(region, fault->offset, end, protect, &done);
	}
	if (error == -EINVAL && protect) {
		/* Not registered for WP faults: every page may be stored to. */
		region->tracked = protect = false;
		pages_set_exposed(file, start, end);
		error = map_pages(region, fault->offset, end, protect, &done);
	}
	if (!error || done) {
		/* EEXIST does not wake: another thread's install may have come
		 * between this thread's fault and its sleep. */
		uffd_wake(guest->uffd, page, PAGE);
		if (start < fault->offset)
			map_pages(region, start, fault->offset, protect, &done);
		region->expected = region->start + (end - region->offset);
		guest_resolved(guest, page, page + PAGE);
		if (fault->heal)
			COUNT(guest->engine, healed, 1);
		else
			COUNT(guest->engine, latency[bucket(now_ns() - fault->arrived)], 1);
		return DONE;
	}
	switch (error) {
	case -EAGAIN:
		COUNT(guest->engine, again, 1);
		return AGAIN;
	case -ESRCH:
		return DONE;		/* nobody left to answer */
	case -EFAULT:
		/* The page is not in the memfd: a guest that may write to it has
		 * punched it out.  What the file holds comes from the source. */
		pages_drop(file, fault->offset, fault->offset + PAGE);
		if (fault->tries++ <= DF_TRIES_MAX)
			return REPEAT;
		break;
	case -ENOENT:
		/* Unmapped while we looked?  Then the access gets SIGSEGV.  If it
		 * comes back here it is a mapping that cannot take our page. */
		if (guest_attempt(guest, page) == 1) {
			uffd_wake(guest->uffd, page, PAGE);
			return DONE;
		}
		break;
	}
	engine_fail(fault, file, DF_REASON_INSTALL, -error);
	return DONE;
}

static enum verdict begin_fill(struct df_fault *fault, struct df_region *region,
			       struct df_fill **fill)
{
	struct df_file *file = region->file;
	struct df_fault *copy = fault_copy(fault);
	uint64_t start, end;

	window(region, fault, file_end(file), &start, &end);
	*fill = copy ? fill_begin(file, fault->offset, start, end) : NULL;
	if (!*fill) {
		if (copy)
			fault_free(copy);
		engine_fail(fault, file, DF_REASON_IO, ENOMEM);
		return DONE;
	}
	fill_wait(*fill, copy);
	return FILL;
}

/* Under guest->lock and file->lock. */
static enum verdict decide_locked(struct df_fault *fault, struct df_region *region, uint64_t page,
				  struct df_fill **fill)
{
	struct df_file *file = region->file;
	int bits = file_notice(file), error;

	if (bits < 0) {
		engine_fail(fault, file, DF_REASON_IO, -bits);
		return DONE;
	}
	if (fault->stored)
		return store(fault, region, page);
	if (fault->offset >= file_end(file)) {
		error = gup_error(file, fault->offset);
		if (!error)
			return REPEAT;		/* it grew while we looked */
		engine_fail(fault, file, DF_REASON_EOF, error);
		return DONE;
	}
	if (pages_filled(file, fault->offset))
		return install(fault, region, page);

	*fill = fill_find(file, fault->offset);
	if (*fill) {
		struct df_fault *copy = fault_copy(fault);

		if (!copy) {
			engine_fail(fault, file, DF_REASON_IO, ENOMEM);
			return DONE;
		}
		fill_wait(*fill, copy);
		return WAITS;
	}
	if (fault->error) {
		engine_fail(fault, file, DF_REASON_IO, fault->error);
		return DONE;
	}
	if (fault->tries >= DF_TRIES_MAX) {
		error = fill_locked(file, fault->offset);
		if (!error)
			return install(fault, region, page);
		engine_fail(fault, file, DF_REASON_IO, -error);
		return DONE;
	}
	return begin_fill(fault, region, fill);
}

static enum verdict decide(struct df_fault *fault, struct df_fill **fill)
{
	struct df_guest *guest = fault->guest;
	uint64_t page = PAGE_DOWN(fault->address);
	enum verdict verdict;

	do {
		struct df_region *region;
		struct df_file *file;

		pthread_rwlock_rdlock(&guest->lock);
		if (atomic_load(&guest->dead)) {
			pthread_rwlock_unlock(&guest->lock);
			return DONE;
		}
		region = region_find(guest, page);
		if (!region) {
			pthread_rwlock_unlock(&guest->lock);
			if (!fault->heal)
				engine_fail(fault, NULL, DF_REASON_NOREGION, EFAULT);
			return DONE;
		}
		file = region->file;
		file_get(file);
		fault->offset = region->offset + (page - region->start);
		file_lock(file);
		verdict = decide_locked(fault, region, page, fill);
		pthread_rwlock_unlock(&guest->lock);
		file_unlock(file);
		df_file_put(file);
	} while (verdict == REPEAT);
	return verdict;
}

static struct df_fault *join(struct df_fault *list, struct df_fault *more)
{
	struct df_fault **last = &list;

	while (*last)
		last = &(*last)->next;
	*last = more;
	return list;
}

static struct df_fault *run(struct df_fault *fault, bool may_block)
{
	struct df_fault *more = NULL, *copy;
	struct df_fill *fill = NULL;
	bool wait;

	switch (decide(fault, &fill)) {
	case FILL:
		more = fill_run(fill, may_block, &wait);
		if (wait) {
			COUNT(fault->guest->engine, parked, 1);
			engine_submit_fill(fault->guest->engine, fill);
		}
		break;
	case AGAIN:
		copy = fault_copy(fault);
		if (copy)
			guest_retry(fault->guest, copy);
		else
			uffd_wake(fault->guest->uffd, PAGE_DOWN(fault->address), PAGE);
		break;
	case WAITS:
		COUNT(fault->guest->engine, parked, 1);
		break;
	case DONE:
	case REPEAT:
		break;
	}
	return more;
}

void faults_run(struct df_fault *list, bool may_block)
{
	while (list) {
		struct df_fault *fault = list;

		list = fault->next;
		fault->next = NULL;
		list = join(run(fault, may_block), list);
		fault_free(fault);
	}
}

void fault_arrived(const struct df_fault *fault)
{
	struct df_fault copy = *fault;

	faults_run(run(&copy, false), false);
}
