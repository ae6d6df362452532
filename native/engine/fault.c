/* SPDX-License-Identifier: Apache-2.0
 *
 * fault.c - one fault, from the address to its page or its failure: look up,
 * fill, decide under the file's lock.  Must not choose the answer to a failed
 * fault: Python does.
 *
 * Every path ends in one of: the page is installed; the fault is parked on a fill with a deadline;
 * the fault is handed to Python with a deadline; a wake-up, because the mapping is gone and the
 * repeated access gets the kernel's error.
 */
#include <errno.h>

#include "internal.h"

#define TRIES_MAX 3
#define DENSE ((uint64_t)(16 * PAGE))
#define FILL_NOW ((uint64_t)(16 * PAGE)) /* read under the lock at most; more is a fill */

/* The result of one step of a fault */
enum step {
	DONE,
	WAITS,	/* a copy of the fault waits on a fill */
	FILL,	/* ... on a new one, which the caller must run */
	AGAIN,	/* the guest's address space is changing: after its events */
	REPEAT, /* look again, at once */
};

static struct install install_of(const struct df_fault *fault)
{
	return (struct install){
		.page = PAGE_DOWN(fault->address),
		.offset = fault->offset,
		.write = fault->write,
		.alone = fault->single,
		.retry = fault->retry,
	};
}

static unsigned bucket(uint64_t ns)
{
	unsigned log2 = ns ? 63u - (unsigned)__builtin_clzll(ns) : 0;

	return log2 < DF_HISTOGRAM ? log2 : DF_HISTOGRAM - 1;
}

static void installed(struct df_fault *fault, struct df_file *file, const struct install *install)
{
	struct df_guest *guest = fault->guest;

	guest_resolved(guest, install->page);
	TRACE(&guest->engine->tracer, .kind = DF_TRACE_INSTALL, .guest = guest->space.id,
	      .file = file->id, .address = fault->address, .offset = fault->offset,
	      .token = fault->apf.token, .tid = fault->tid,
	      .vcpu = fault->asked ? fault->apf.vcpu : -1, .value = (uint32_t)install->bytes);
	if (fault->retry) {
		poison_tried(file, &guest->space, install->page, true);
		COUNT(guest->engine, healed, 1);
	} else {
		COUNT(guest->engine, latency[bucket(now_ns() - fault->arrived)], 1);
	}
}

static enum step install(struct df_fault *fault, struct df_region *region)
{
	struct df_guest *guest = fault->guest;
	struct install install = install_of(fault);
	enum verdict verdict = fault->stored ? install_store(region, &install)
					     : install_page(region, &install);

	COUNT(guest->engine, installed, install.pages);
	switch (verdict) {
	case VERDICT_INSTALLED:
		installed(fault, region->file, &install);
		return DONE;
	case VERDICT_DONE:
		return DONE;
	case VERDICT_AGAIN:
		COUNT(guest->engine, again, 1);
		return AGAIN;
	case VERDICT_LOST:
		if (fault->tries++ <= TRIES_MAX)
			return REPEAT;
		break;
	case VERDICT_UNMAPPED:
		/* If it was unmapped meanwhile, the access gets SIGSEGV.  If it faults again, it
		 * is a mapping that cannot take our page. */
		if (!fault->retry && guest_attempt(guest, install.page) == 1) {
			space_wake(&guest->space, install.page);
			return DONE;
		}
		break;
	case VERDICT_FAILED:
		break;
	}
	engine_fail(fault, region->file, DF_REASON_INSTALL, install.error);
	return DONE;
}

/* The range to fill for this fault.  Near earlier faults of a random reader fill more: it may
 * return, and a fault costs more than reading a few pages that are not used. */
static void fill_window(const struct df_fault *fault, struct df_region *region, uint64_t *start,
			uint64_t *end)
{
	uint64_t around = region->around, block = fault->offset & ~(DENSE - 1);
	struct install install = install_of(fault);

	if (region->file->source.fetch) {
		/* fetch() may fail, or loop, on a page that was not requested. */
		*start = fault->offset;
		*end = fault->offset + PAGE;
		return;
	}
	for (uint64_t at = block; at < block + DENSE && around < DENSE; at += PAGE)
		if (pages_filled(region->file, at))
			around = DENSE;
	install_window(region, &install, around, start, end);
}

/* Try to read the page at once, before fstat(): a page that is read in full was not past EOF.
 * Only from a local source. */
static bool filled_now(const struct df_fault *fault, struct df_region *region)
{
	struct df_engine *engine = fault->guest->engine;
	struct df_file *file = region->file;
	uint64_t start, end;

	if (fault->stored || fault->error || fault->offset >= file_end(file) ||
	    source_injects(&file->source) || pages_filled(file, fault->offset) ||
	    fill_find(file, fault->offset))
		return false;
	fill_window(fault, region, &start, &end);
	return end - start <= FILL_NOW && !read_now(engine, file, fault->offset, start, end) &&
	       pages_filled(file, fault->offset);
}

static enum step fail(struct df_fault *fault, struct df_file *file, enum df_reason reason, int error)
{
	engine_fail(fault, file, reason, error);
	return DONE;
}

/* `present`: the page is filled, or past EOF, so only check the backing file. */
static enum step begin_fill(struct df_fault *fault, struct df_region *region, bool present,
			    struct df_fill **fill)
{
	struct df_file *file = region->file;
	struct df_engine *engine = fault->guest->engine;
	struct df_fault *copy;
	uint64_t start, end;

	/* A source that is slower than the writers of the page. */
	if (now_ns() - fault->arrived > engine->options.source_ns)
		return fail(fault, file, DF_REASON_TIMEOUT, ETIMEDOUT);

	start = fault->offset;
	end = start + PAGE;
	if (!present)
		fill_window(fault, region, &start, &end);
	copy = fault_copy(fault);
	*fill = copy ? fill_begin(engine, file, fault->offset, start, end) : NULL;
	if (!*fill) {
		if (copy)
			fault_free(copy);
		return fail(fault, file, DF_REASON_IO, ENOMEM);
	}
	(*fill)->present = present;
	fill_wait(*fill, copy);
	return FILL;
}

static enum step wait_for(struct df_fill *fill, struct df_fault *fault)
{
	struct df_fault *copy;

	if (fill_awaited(fill, fault))
		return WAITS;
	if (fill->slow)
		fault_ask(fault);
	copy = fault_copy(fault);
	if (!copy)
		return fail(fault, fill->file, DF_REASON_IO, ENOMEM);
	fill_wait(fill, copy);
	return WAITS;
}

static bool drop_clean(struct df_file *file, uint64_t offset)
{
	uint64_t at = offset;

	return exposed_drop_clean(file, &at, offset + PAGE, 1);
}

/* Check the backing file in a fill's thread, because fstat() may wait. */
static enum step look_first(struct df_fault *fault, struct df_region *region, struct df_fill **fill)
{
	struct df_file *file = region->file;

	*fill = fill_find(file, fault->offset);
	if (*fill)
		return wait_for(*fill, fault);
	return begin_fill(fault, region,
			  fault->offset >= file_end(file) || pages_filled(file, fault->offset), fill);
}

/* The page cache is being truncated to 0: waiters are woken after that. */
static enum step ended(const struct df_fault *fault, struct df_file *file)
{
	struct df_space *space = &fault->guest->space;

	if (fault->retry)
		poison_tried(file, space, PAGE_DOWN(fault->address), false);
	else if (file->cache < 0)
		space_wake(space, fault->address);
	return DONE;
}

/* Under space->lock and file->lock. */
static enum step decide_locked(struct df_fault *fault, struct df_region *region, struct df_fill **fill)
{
	struct df_space *space = &fault->guest->space;
	struct df_file *file = region->file;
	int bits, error;

	if (file->ended)
		return ended(fault, file);
	if (filled_now(fault, region))
		return install(fault, region);
	/* A first store to a present page needs no check of the backing file. */
	if (!file->source.local && !fault->looked && !fault->stored)
		return look_first(fault, region, fill);
	bits = file->source.local ? change_notice(file) : fault->look_error;
	if (bits < 0)
		return fail(fault, file, DF_REASON_IO, -bits);
	if (fault->stored && source_injects_store(&file->source, fault->offset) &&
	    drop_clean(file, fault->offset)) {
		/* The store is repeated, and faults for a writable page. */
		space_wake(space, fault->address);
		return DONE;
	}
	if (fault->stored)
		return install(fault, region);
	if (fault->offset >= file_end(file) && file->sized) {
		/* The kernel itself raises SIGBUS past EOF.  This fault is from before the
		 * truncation, or a process has changed the i_size. */
		file_fit(file);
		if (fault->retry)
			poison_tried(file, space, PAGE_DOWN(fault->address), true);
		else
			space_wake(space, fault->address);
		return DONE;
	}
	if (fault->offset >= file_end(file)) {
		error = file->source.local ? source_gup_error(&file->source, fault->offset) : EFAULT;
		if (!error)
			return REPEAT; /* it grew while we looked */
		return fail(fault, file, DF_REASON_EOF, error);
	}
	if (pages_filled(file, fault->offset))
		return install(fault, region);

	*fill = fill_find(file, fault->offset);
	if (*fill)
		return wait_for(*fill, fault);
	if (fault->error)
		return fail(fault, file, DF_REASON_IO, fault->error);
	return begin_fill(fault, region, false, fill);
}

static enum step decide_unknown(struct df_fault *fault)
{
	struct df_space *space = &fault->guest->space;

	/* The mapping of a fault that waited may be gone or moved: a thread that is still in it
	 * faults again. */
	if (fault->waited)
		space_wake(space, fault->address);
	else if (space_discover(space, PAGE_DOWN(fault->address), fault->tid))
		return REPEAT;
	else
		engine_fail(fault, NULL, DF_REASON_NOREGION, EFAULT);
	return DONE;
}

static enum step decide(struct df_fault *fault, struct df_fill **fill)
{
	struct df_space *space = &fault->guest->space;
	uint64_t page = PAGE_DOWN(fault->address);
	enum step step;

	do {
		struct df_region *region;
		struct df_file *file;

		pthread_rwlock_rdlock(&space->lock);
		if (atomic_load(&space->dead)) {
			pthread_rwlock_unlock(&space->lock);
			return DONE;
		}
		region = region_find(space, page);
		if (region && fault->retry && region->file != fault->retry)
			region = NULL; /* the address shows another file by now */
		if (!region) {
			pthread_rwlock_unlock(&space->lock);
			step = decide_unknown(fault);
			continue;
		}
		file = region->file;
		file_get(file);
		fault->readonly = !region->writable;
		fault->offset = region->offset + (page - region->start);
		pthread_mutex_lock(&file->lock);
		step = decide_locked(fault, region, fill);
		pthread_rwlock_unlock(&space->lock);
		file_unlock(file);
		file_put(file);
	} while (step == REPEAT);
	return step;
}

static void run_slow(struct job *job)
{
	struct df_fill *fill = (struct df_fill *)((char *)job - offsetof(struct df_fill, job));
	struct df_engine *engine = fill->engine;
	bool wait;

	faults_run(read_fill(fill, true, &wait));
	GUARD(&engine->lock);
	if (!--engine->slow)
		pthread_cond_broadcast(&engine->tick);
}

/* Its waiters have a deadline, whenever its turn comes. */
static void submit(struct df_fill *fill)
{
	fill_slow(fill);
	pthread_mutex_lock(&fill->engine->lock);
	fill->engine->slow++;
	pthread_mutex_unlock(&fill->engine->lock);
	fill->job.run = run_slow;
	file_get(fill->file); /* released after the job: see df_file_new() */
	jobs_submit(&fill->file->waits->jobs, &fill->job);
}

static struct df_fault *run(struct df_fault *fault)
{
	struct df_guest *guest = fault->guest;
	struct df_fault *more = NULL, *copy;
	struct df_fill *fill = NULL;
	bool wait;

	switch (decide(fault, &fill)) {
	case FILL:
		more = read_fill(fill, false, &wait);
		if (wait) {
			COUNT(guest->engine, parked, 1);
			submit(fill);
		}
		break;
	case AGAIN:
		copy = fault_copy(fault);
		if (copy)
			fault_again(copy);
		else
			space_wake(&guest->space, fault->address);
		break;
	case WAITS:
		COUNT(guest->engine, parked, 1);
		break;
	case DONE:
	case REPEAT:
		break;
	}
	return more;
}

void faults_run(struct df_fault *list)
{
	while (list) {
		struct df_fault *fault = list, *more;

		list = fault->next;
		fault->next = NULL;
		more = run(fault);
		faults_append(&more, list);
		list = more;
		fault_free(fault);
	}
}

void fault_arrived(const struct df_fault *fault)
{
	struct df_fault copy = *fault;

	TRACE(&fault->guest->engine->tracer, .kind = DF_TRACE_FAULT, .guest = fault->guest->space.id,
	      .address = fault->address, .tid = fault->tid, .vcpu = -1, .value = fault->write);
	faults_run(run(&copy));
	fault_ready(&copy);
}
