/* SPDX-License-Identifier: Apache-2.0
 *
 * fault.c - one fault, from the address to its page or its failure: look up,
 * fill, decide under the file's lock.  Must not choose what becomes of
 * a failed fault: that is Python's.
 *
 * Every path ends in one of: the page installed; the fault parked on a fill that
 * has a deadline; the fault handed to Python with a deadline; a wake-up, because
 * the mapping it was for is gone and the kernel will say so.
 */
#include <errno.h>
#include <stdlib.h>

#include "internal.h"

#define DENSE ((uint64_t)(16 * PAGE))
#define FILL_NOW ((uint64_t)(16 * PAGE))	/* read under the lock at most; more is a fill */

struct df_fault *fault_copy(struct df_fault *fault)
{
	struct df_fault *copy = malloc(sizeof(*copy));

	if (copy) {
		*copy = *fault;
		copy->next = NULL;
		copy->waited = true;
		fault->token = 0;
		guest_get(copy->guest);
		if (copy->mends)
			file_mend_begun(copy->mends);
	}
	return copy;
}

void fault_free(struct df_fault *fault)
{
	struct df_file *mended = fault->mends;

	apf_ready(fault);
	guest_put(fault->guest);
	free(fault);
	if (mended)
		file_mend_ended(mended);
}

/* What to fill for this fault.  Where a random reader has been before it may come
 * again, and a fault costs more than a few pages read in vain. */
static void fill_window(const struct df_fault *fault, struct df_region *region, uint64_t *start,
			uint64_t *end)
{
	uint64_t around = region->around, block = fault->offset & ~(DENSE - 1);

	if (region->file->source.fetch) {
		/* A page nobody asked for can fail, or loop, for who has to bring it. */
		*start = fault->offset;
		*end = fault->offset + PAGE;
		return;
	}
	for (uint64_t at = block; at < block + DENSE && around < DENSE; at += PAGE)
		if (pages_filled(region->file, at))
			around = DENSE;
	install_window(region, fault, around, start, end);
}

/* A page that can be had at once, before anything else is asked: one that is read
 * in full was not past EOF, so it needs no fstat(). */
static bool filled_now(const struct df_fault *fault, struct df_region *region)
{
	struct df_engine *engine = fault->guest->engine;
	struct df_file *file = region->file;
	uint64_t start, end;

	if (fault->stored || fault->error || fault->offset >= file_end(file) || source_injects(&file->source) ||
	    pages_filled(file, fault->offset) || fill_find(file, fault->offset))
		return false;
	fill_window(fault, region, &start, &end);
	return end - start <= FILL_NOW && !fill_now(engine, file, fault->offset, start, end) &&
	       pages_filled(file, fault->offset);
}

static enum verdict fill_page(struct df_fault *fault, struct df_region *region,
			      struct df_fill **fill)
{
	struct df_file *file = region->file;
	struct df_engine *engine = fault->guest->engine;
	struct df_fault *copy;
	uint64_t start, end;

	/* A source that is slower than those who write to the page. */
	if (now_ns() - fault->arrived > engine->options.source_ns) {
		engine_fail(fault, file, DF_REASON_TIMEOUT, ETIMEDOUT);
		return DONE;
	}

	fill_window(fault, region, &start, &end);
	copy = fault_copy(fault);
	*fill = copy ? fill_begin(engine, file, fault->offset, start, end) : NULL;
	if (!*fill) {
		if (copy)
			fault_free(copy);
		engine_fail(fault, file, DF_REASON_IO, ENOMEM);
		return DONE;
	}
	fill_wait(*fill, copy);
	return FILL;
}

static bool drop_clean(struct df_file *file, uint64_t offset)
{
	uint64_t at = offset;

	return pages_drop_clean(file, &at, offset + PAGE, 1);
}

/* Under guest->lock and file->lock. */
static enum verdict decide_locked(struct df_fault *fault, struct df_region *region, uint64_t page,
				  struct df_fill **fill)
{
	struct df_file *file = region->file;
	int bits, error;

	if (filled_now(fault, region))
		return install(fault, region, page);
	bits = file_notice(file);
	if (bits < 0) {
		engine_fail(fault, file, DF_REASON_IO, -bits);
		return DONE;
	}
	if (fault->stored && source_injects_store(&file->source, fault->offset) && drop_clean(file, fault->offset)) {
		/* The store is repeated, and asks for a page that is to be stored to. */
		uffd_wake(fault->guest->uffd, page, PAGE);
		return DONE;
	}
	if (fault->stored)
		return install_store(fault, region, page);
	if (fault->offset >= file_end(file) && file->sized) {
		/* The kernel settles that itself.  It asked because the fault is from before
		 * the truncation, or somebody has meddled with the i_size. */
		file_fit(file);
		if (fault->mends)
			poison_tried(file, fault->guest, page, true);
		else
			uffd_wake(fault->guest->uffd, page, PAGE);
		return DONE;
	}
	if (fault->offset >= file_end(file)) {
		error = source_gup_error(&file->source, fault->offset);
		if (!error)
			return REPEAT;		/* it grew while we looked */
		engine_fail(fault, file, DF_REASON_EOF, error);
		return DONE;
	}
	if (pages_filled(file, fault->offset))
		return install(fault, region, page);

	*fill = fill_find(file, fault->offset);
	if (*fill) {
		struct df_fault *copy;

		if (fill_awaited(*fill, fault))
			return WAITS;
		if ((*fill)->slow)
			apf_ask(fault);
		copy = fault_copy(fault);
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
	return fill_page(fault, region, fill);
}

static enum verdict decide(struct df_fault *fault, struct df_fill **fill)
{
	struct df_guest *guest = fault->guest;
	uint64_t page = PAGE_DOWN(fault->address);
	enum verdict verdict;

	do {
		struct df_region *region;
		struct df_file *file;

		verdict = DONE;
		pthread_rwlock_rdlock(&guest->lock);
		if (atomic_load(&guest->dead)) {
			pthread_rwlock_unlock(&guest->lock);
			return DONE;
		}
		region = region_find(guest, page);
		if (region && fault->mends && region->file != fault->mends)
			region = NULL;		/* the address shows another file by now */
		if (!region) {
			pthread_rwlock_unlock(&guest->lock);
			/* One that waited may have waited for a mapping that is gone, or has
			 * moved: who is still there faults once more. */
			if (fault->waited)
				uffd_wake(guest->uffd, page, PAGE);
			else if (program_discover(guest, page, fault->tid))
				verdict = REPEAT;
			else
				engine_fail(fault, NULL, DF_REASON_NOREGION, EFAULT);
			continue;
		}
		file = region->file;
		file_get(file);
		fault->readonly = !region->writable;
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

static void run_fill(void *fill)
{
	bool wait;

	faults_run(fill_run(fill, true, &wait), true);
}

static void run_released(void *faults)
{
	faults_run(faults, true);
}

void faults_submit(struct df_fault *list)
{
	jobs_submit(&list->guest->engine->pool, run_released, list);
}

static struct df_fault *run(struct df_fault *fault, bool may_block)
{
	struct df_fault *more = NULL, *copy;
	struct df_fill *fill = NULL;
	bool wait;

	switch (decide(fault, &fill)) {
	case FILL:
		if (may_block)
			fill_slow(fill);
		more = fill_run(fill, may_block, &wait);
		if (wait) {
			COUNT(fault->guest->engine, parked, 1);
			fill_slow(fill);
			jobs_submit(&fault->guest->engine->pool, run_fill, fill);
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

	TRACE(&fault->guest->engine->tracer, .kind = DF_TRACE_FAULT, .guest = fault->guest->id,
	      .address = fault->address, .tid = fault->tid, .vcpu = -1, .value = fault->write);
	faults_run(run(&copy, false), false);
	apf_ready(&copy);
}
