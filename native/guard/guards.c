/* SPDX-License-Identifier: Apache-2.0
 *
 * guards.c - guards, the threads they guard, and the notes of faults.  Must not move pages.
 *
 * A fault is noted in the guard that caught it, and in every other thread's innermost guard that
 * covers the address: those threads may read the zeros without a fault of their own.  Entering a
 * guard puts all pages back first.  So a guard notes every page of zeros that its thread may have
 * read.  Without spans it may also note pages that its thread did not touch.
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

struct guarded {		      /* a thread that has entered a guard */
	struct guarded *next, **link; /* link NULL: its thread has ended, it is in no list */
	struct df_guard *innermost;
	pid_t tid;
};

struct df_guard {
	struct guarded *thread; /* NULL: left */
	struct df_guard *outer;
	uint64_t total; /* notes, including those that did not fit */
	bool all_threads;
	struct df_guard_fault faults[DF_GUARD_FAULTS];
	size_t nspans;
	struct df_guard_span spans[];
};

void (*guards_notify)(void);

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct guarded *threads;
static pthread_key_t at_exit;
static bool prepared;
/* Other models allocate it at its first use in a library, which a signal handler must not do. */
static __thread struct guarded *mine __attribute__((tls_model("initial-exec")));

static pid_t own_tid(void)
{
	return (pid_t)syscall(SYS_gettid);
}

static void lock_all(sigset_t *before)
{
	sigset_t all;

	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, before);
	pthread_mutex_lock(&lock);
}

static void unlock_all(const sigset_t *before)
{
	pthread_mutex_unlock(&lock);
	pthread_sigmask(SIG_SETMASK, before, NULL);
}

/* ---------------------------------------------------------------- threads */

static void unlink_thread(struct guarded *thread)
{
	if (!thread->link)
		return;
	*thread->link = thread->next;
	if (thread->next)
		thread->next->link = thread->link;
	thread->link = NULL;
}

static void thread_ends(void *arg)
{
	struct guarded *thread = arg;
	sigset_t before;

	lock_all(&before);
	mine = NULL;
	unlink_thread(thread);
	/* df_guard_free() of its last guard frees it */
	if (!thread->innermost)
		free(thread);
	unlock_all(&before);
}

/* ---------------------------------------------------------------- notes */

static bool is_about(const struct df_guard *guard, uint64_t page)
{
	for (size_t i = 0; i < guard->nspans; i++) {
		const struct df_guard_span *span = &guard->spans[i];

		if (span->len && page + PAGE > span->start && page < span->start + span->len)
			return true;
	}
	return !guard->nspans;
}

static struct df_guard *innermost_about(const struct guarded *thread, uint64_t page)
{
	struct df_guard *guard = thread ? thread->innermost : NULL;

	while (guard && !is_about(guard, page))
		guard = guard->outer;
	return guard;
}

static uint64_t page_of(uint64_t address)
{
	return address & ~((uint64_t)PAGE - 1);
}

static uint64_t end_of(const struct df_guard_fault *fault)
{
	return page_of(fault->address) + fault->pages * PAGE;
}

static uint64_t noted(const struct df_guard *guard)
{
	return guard->total < DF_GUARD_FAULTS ? guard->total : DF_GUARD_FAULTS;
}

/* A sweep over many pages is one note. */
static bool extends(struct df_guard_fault *last, const struct df_guard_fault *fault)
{
	uint64_t page = page_of(fault->address), ahead = page - page_of(last->address);

	if (last->tid != fault->tid || last->code != fault->code || last->device != fault->device ||
	    last->inode != fault->inode ||
	    fault->address - last->address != fault->offset - last->offset ||
	    page < page_of(last->address) || page > end_of(last))
		return false;
	last->write |= fault->write;
	if (last->pages < ahead / PAGE + 1)
		last->pages = ahead / PAGE + 1;
	return true;
}

static void note(struct df_guard *guard, const struct df_guard_fault *fault)
{
	for (uint64_t i = 0; i < noted(guard); i++)
		if (extends(&guard->faults[i], fault))
			return;
	if (guard->total < DF_GUARD_FAULTS)
		guard->faults[guard->total] = *fault;
	guard->total++;
}

/* A page that faulted on a load may have been stored to before it is put back. */
static void note_stores(uint64_t start, uint64_t end)
{
	for (struct guarded *thread = threads; thread; thread = thread->next)
		for (struct df_guard *guard = thread->innermost; guard; guard = guard->outer)
			for (uint64_t i = 0; i < noted(guard); i++) {
				struct df_guard_fault *fault = &guard->faults[i];

				if (page_of(fault->address) < end && end_of(fault) > start)
					fault->write = 1;
			}
}

static struct df_guard *guard_of_all(uint64_t page)
{
	for (const struct guarded *thread = threads; thread; thread = thread->next)
		for (struct df_guard *guard = thread->innermost; guard; guard = guard->outer)
			if (guard->all_threads && is_about(guard, page))
				return guard;
	return NULL;
}

static bool catch_fault(uint64_t address, int code, bool write)
{
	bool caught = false, main_thread = false;
	struct df_guard_fault fault = { .address = address, .pages = 1, .code = code, .write = write };
	uint64_t page = page_of(address);
	struct df_guard *own, *of_all;
	struct timespec now;
	struct origin of;
	int error;

	clock_gettime(CLOCK_MONOTONIC, &now);
	fault.time_ns = (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
	fault.tid = own_tid();
	pthread_mutex_lock(&lock);
	own = innermost_about(mine, page);
	of_all = guard_of_all(page);
	if (own || of_all) {
		/* with a key, the threads that an all_threads guard protects would have no access */
		error = stand_in(page, !of_all, &of);
		if (error == -ENOSPC) {
			stand_down(note_stores);
			error = stand_in(page, !of_all, &of);
		}
		caught = !error;
	}
	if (caught) {
		fault.device = of.device;
		fault.inode = of.inode;
		fault.offset = of.offset + (address - page);
		if (!own)
			note(of_all, &fault);
		for (struct guarded *thread = threads; thread; thread = thread->next) {
			struct df_guard *guard = innermost_about(thread, page);

			if (guard && (own || guard != of_all))
				note(guard, &fault);
		}
		main_thread = (own ? own : of_all)->thread->tid == getpid();
	}
	pthread_mutex_unlock(&lock);
	if (main_thread && guards_notify)
		guards_notify();
	return caught;
}

/* ---------------------------------------------------------------- fork(2) */

static sigset_t before_fork;

static void fork_prepare(void)
{
	sigset_t before;

	lock_all(&before);
	before_fork = before;
}

static void fork_parent(void)
{
	sigset_t before = before_fork;

	unlock_all(&before);
}

/* The child has only the forking thread: the guards of the others are removed. */
static void fork_child(void)
{
	sigset_t before = before_fork;

	while (threads)
		unlink_thread(threads);
	if (mine) {
		mine->tid = own_tid();
		mine->next = NULL;
		mine->link = &threads;
		threads = mine;
	}
	if (!mine || !mine->innermost)
		stand_down(note_stores);
	unlock_all(&before);
}

/* ---------------------------------------------------------------- entering and leaving */

static int prepare(void)
{
	int error = stand_in_prepare();

	if (error || prepared)
		return error;
	error = pthread_key_create(&at_exit, thread_ends);
	if (!error)
		error = pthread_atfork(fork_prepare, fork_parent, fork_child);
	prepared = !error;
	return -error;
}

static int begin_thread(void)
{
	struct guarded *thread = calloc(1, sizeof(*thread));

	if (!thread)
		return -ENOMEM;
	if (pthread_setspecific(at_exit, thread)) {
		free(thread);
		return -ENOMEM;
	}
	thread->tid = own_tid();
	thread->next = threads;
	thread->link = &threads;
	if (threads)
		threads->link = &thread->next;
	threads = thread;
	mine = thread;
	return 0;
}

/* Only guarded threads may access stand-ins; a new thread inherits its creator's rights. */
static void open_to_thread(bool open)
{
	int key = stand_in_key();

	if (key >= 0)
		pkey_set(key, open ? 0 : PKEY_DISABLE_ACCESS);
}

int df_guard_enter(const struct df_guard_span *spans, size_t nspans, bool all_threads,
		   struct df_guard **out)
{
	struct df_guard *guard = calloc(1, sizeof(*guard) + nspans * sizeof(*spans));
	sigset_t before;
	int error;

	if (!guard)
		return -ENOMEM;
	guard->all_threads = all_threads;
	guard->nspans = nspans;
	if (nspans)
		memcpy(guard->spans, spans, nspans * sizeof(*spans));
	lock_all(&before);
	error = prepare();
	if (!error && !mine)
		error = begin_thread();
	if (!error && !mine->innermost)
		error = sigbus_install(catch_fault);
	if (!error) {
		stand_down(note_stores);
		guard->thread = mine;
		guard->outer = mine->innermost;
		mine->innermost = guard;
		open_to_thread(true);
	}
	unlock_all(&before);
	if (error)
		free(guard);
	else
		*out = guard;
	return error;
}

uint64_t df_guard_faults(struct df_guard *guard, struct df_guard_fault *out)
{
	uint64_t total;
	sigset_t before;

	lock_all(&before);
	total = guard->total;
	if (out)
		memcpy(out, guard->faults, noted(guard) * sizeof(*out));
	unlock_all(&before);
	return total;
}

uint64_t df_guard_take(struct df_guard *guard, struct df_guard_fault *out)
{
	uint64_t total;
	sigset_t before;

	lock_all(&before);
	/* a stand-in that stayed would have no note */
	stand_down(note_stores);
	total = guard->total;
	memcpy(out, guard->faults, noted(guard) * sizeof(*out));
	guard->total = 0;
	unlock_all(&before);
	return total;
}

void df_guard_leave(struct df_guard *guard)
{
	struct guarded *thread;
	struct df_guard **at;
	sigset_t before;

	lock_all(&before);
	thread = guard->thread;
	if (thread) {
		if (guard->total)
			stand_down(note_stores);
		for (at = &thread->innermost; *at != guard; at = &(*at)->outer)
			;
		*at = guard->outer;
		guard->thread = NULL;
		if (!thread->innermost && thread == mine)
			open_to_thread(false);
		if (!thread->innermost && !thread->link)
			free(thread); /* it ended before */
	}
	unlock_all(&before);
}

void df_guard_free(struct df_guard *guard)
{
	if (!guard)
		return;
	df_guard_leave(guard);
	free(guard);
}

bool df_guard_private(void)
{
	return stand_in_key() >= 0;
}
