/* SPDX-License-Identifier: Apache-2.0
 *
 * internal.h - the engine's own structures: guests, faults, fills, failures, and the rules of all
 * locks.  Read by the engine's own C files only; each calls those above it in the second list.
 *
 * Lock order, outermost first:
 *   space->lock (rw)   regions; held for reading across an install, so a range
 *                      that is being unmapped never receives a page
 *   file->changing     one call at a time changes the backing file; never with a space's
 *   file->lock         size, generation, page cache, fills, mappings, poisons:
 *                      "same generation?" and the install are one step under it
 *   engine->lock       failures, list of guests and fills; a leaf
 *   apf->lock          tokens of a guest's vCPUs, and what the host writes into their
 *                      slots; a leaf, but for the tracer's
 *   guest->small, source->lock, the jobs': leaves
 *
 * No thread may wait for Python, a guest or a backing file with one of these held, except
 * file->changing, for which other changes of the file wait.
 */
#ifndef DAXFAULT_INTERNAL_H
#define DAXFAULT_INTERNAL_H

#include <stddef.h>

#include "apf/apf.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/thread.h"
#include "base/trace.h"
#include "cache/cache.h"
#include "engine.h"
#include "source/jobs.h"
#include "space/space.h"

/* ------------------------------------------------------------------ faults */

/* A pending fault.  It is on the stack of the thread that reads it from the guest, and copied to
 * the heap when it must wait (the copy holds a reference to the guest). */
struct df_fault {
	struct df_fault *next;
	struct df_guest *guest;
	uint64_t address;  /* exact */
	uint64_t arrived;  /* ns, CLOCK_MONOTONIC */
	uint64_t seen;	   /* when the thread last was in it; at first `arrived` */
	uint64_t deadline; /* of the page source, when parked */
	int32_t tid;
	uint32_t write;
	uint64_t offset;       /* of the page in the file, once looked up */
	uint32_t tries;	       /* installs whose page was gone from the page cache */
	int error;	       /* of a fill of this page alone */
	bool stored;	       /* a store to a page that is present, write-protected */
	bool single;	       /* fill this one page only: a larger fill failed */
	bool waited;	       /* a heap copy */
	bool readonly;	       /* the mapping is read-only */
	bool looked;	       /* the backing file was checked since it arrived, ... */
	int look_error;	       /* ... with this, a negative errno or 0 */
	bool asked;	       /* `apf` is known: fault_ask() */
	struct apf_wait apf;   /* its token ends with the fault */
	struct df_file *retry; /* not a fault: a poisoned page of this file is read again */
};

/* One read from the page source into the page cache. */
struct df_fill {
	struct job job;
	struct df_fill *next;	  /* of the file; file->lock */
	struct df_fill *next_all; /* of the engine; engine->lock */
	struct df_engine *engine;
	struct df_file *file; /* counted */
	uint64_t start, len;  /* bytes, page aligned */
	bool stale;	      /* the range changed since it began */
	bool present;	      /* its page is filled: only check the backing file */
	bool slow;	      /* it waits for the source, so send "not present" */
	uint64_t looked;      /* the last round of deadlines.c; engine->lock */
	struct df_fault *waiters;
};

/* The waiters of a file; file->lock. */
struct file_waits {
	struct job_queue jobs; /* fills that wait for the source */
	struct df_file *file;
	struct df_fill *fills;
	struct df_fault *released; /* decided again after the lock is released */
	bool retried;		   /* the caller may rely on poisoned pages being read again */
	atomic_uint retries;	   /* pending reads of poisoned pages */
};

/* ------------------------------------------------------------------ guests */

#define ATTEMPTS 64

struct df_guest {
	struct df_guest *next; /* of the engine; engine->lock */
	struct df_engine *engine;
	atomic_int refs;
	struct df_space space;
	struct df_apf apf;
	bool child; /* came by UFFD_EVENT_FORK */
	int kick;   /* eventfd: check `again`, or end */
	int asides; /* epoll: `kick` and the doorbell, or `kick` alone; polled beside faults */
	pthread_t thread;
	pthread_mutex_t small; /* the rest; a leaf */
	pthread_cond_t end;
	bool ended;		/* the reader */
	struct df_fault *again; /* the reader decides these after the next events */
	struct {
		uint64_t page;
		uint32_t count;
	} attempts[ATTEMPTS];
	atomic_uint nattempts;
	unsigned oldest;
};

static inline struct df_guest *guest_of(struct df_space *space)
{
	return (struct df_guest *)((char *)space - offsetof(struct df_guest, space));
}

/* ------------------------------------------------------------------ engine */

/* A failed fault that waits for its answer, or for the end of its delivery. */
struct df_pending {
	struct df_pending *next;
	struct df_failure record;
	struct df_guest *guest; /* counted */
	struct df_file *file;	/* counted, or NULL */
	uint64_t deadline;
	uint64_t seen; /* the thread, in this fault */
	int slot;      /* >= 0: an event was sent and not yet taken */
	bool stopped;  /* the vCPU is stopped until the file changes */
	bool read;     /* Python has the record */
	bool over;     /* ended, but Python must still read the record */
};

struct df_engine {
	struct df_engine_options options;
	pthread_mutex_t lock;
	pthread_cond_t tick;
	bool stopping;
	unsigned slow; /* fills in a thread that waits for a source */
	struct df_guest *guests;
	struct df_fill *fills;
	atomic_uint parked;
	struct df_pending *pending, **last_pending;
	unsigned npending;
	uint64_t next_id;
	int failures_fd;
	struct unmapped *unmapped; /* unmapped.c */
	int unmapped_fd;
	atomic_int spare; /* a descriptor to be closed for a forked child's, or -1 */
	pthread_t deadlines;
	struct df_tracer tracer;
	struct df_counters counters; /* by __atomic adds */
};

#define COUNT(engine, field, n) \
	__atomic_fetch_add(&(engine)->counters.field, (uint64_t)(n), __ATOMIC_RELAXED)

/* Wake the reader of an eventfd. */
static inline void notify(int eventfd)
{
	uint64_t one = 1;

	if (write(eventfd, &one, sizeof(one)) < 0) {
		/* the counter is full: its reader is awake */
	}
}

static inline void take_notice(int eventfd)
{
	uint64_t value;

	if (read(eventfd, &value, sizeof(value)) < 0) {
		/* no new notification */
	}
}

/* ---- guest.c: references, attempts */
int guest_alloc(struct df_engine *engine, int uffd, bool tracks, bool program, struct df_guest **out);
void guest_get(struct df_guest *guest);
void guest_put(struct df_guest *guest);
void guest_kick(struct df_guest *guest);
/* Count a failure of this page; -> failures in a row. */
uint32_t guest_attempt(struct df_guest *guest, uint64_t page);
void guest_resolved(struct df_guest *guest, uint64_t page);

/* ---- parked.c: faults that wait */
struct df_fault *fault_copy(struct df_fault *fault); /* takes over its token */
void fault_free(struct df_fault *fault);
void faults_append(struct df_fault **list, struct df_fault *more);
/* Decide, once, how this fault waits, and deliver "not present" if it waits with a token. */
void fault_ask(struct df_fault *fault);
/* End the record's token, with an error if `bad`.  false: the guest has dropped it. */
bool token_end(struct df_guest *guest, const struct df_failure *record, bool bad);
/* The fault has ended without an error. */
void fault_ready(struct df_fault *fault);
/* Have the guest's reader decide it; takes a heap fault. */
void fault_again(struct df_fault *fault);
struct df_fault *faults_take_again(struct df_guest *guest);
/* Have poisoned pages read again by their guests' readers.  Under their file's lock; or, if
 * `moved`, under their space's, or before it is served. */
void faults_retry(struct df_poison *list, bool moved);
/* Wait, bounded, for pending retries of this file's pages. */
void faults_wait_retries(struct df_file *file);

/* ---- fill.c: pending reads, and their waiters; file->lock */
/* -> the fill to wait on for this page; NULL: begin one. */
struct df_fill *fill_find(struct df_file *file, uint64_t offset);
/* Narrow [*start, *end) to the pages around `offset` that are not filled and not being read. */
void fill_narrow(struct df_file *file, uint64_t offset, uint64_t *start, uint64_t *end);
struct df_fill *fill_begin(struct df_engine *engine, struct df_file *file, uint64_t offset,
			   uint64_t start, uint64_t end);
struct df_fault *fill_end(struct df_fill *fill); /* -> its waiters */
void fill_wait(struct df_fill *fill, struct df_fault *fault);
bool fill_awaited(const struct df_fill *fill, const struct df_fault *fault);
void fill_slow(struct df_fill *fill); /* takes the lock */
void fill_state(const struct df_file *file, struct df_file_state *out);
/* [start, end) of the file changed: discard the bytes of pending reads there. */
void fill_release(struct df_file *file, uint64_t start, uint64_t end);
/* A region was removed: its faults do not wait any longer.  Takes the lock. */
void fill_leave(const struct df_region *region);
/* Remove and return the faults of an engine that are past their deadline. */
struct df_fault *fill_take_late(struct df_file *file, const struct df_engine *engine, uint64_t now);

/* ---- change.c: the consequences of a change of a file; file->lock */
void change_apply(struct df_file *file);
int change_notice(struct df_file *file); /* as file_notice(), and apply */
int change_saw(struct df_file *file, const struct file_look *look); /* as file_saw() */
/* Release the lock, then decide again the faults that a change released.  Not with a space's lock. */
void file_unlock(struct df_file *file);
/* Before a call of the host that changes the backing file: waits for other such calls, and takes
 * file->changing and file->lock.  The caller releases the lock for the call, and calls
 * file_call_end() with the lock after it.  -> the error of fstat() */
int change_begin(struct df_file *file, enum file_call call);
/* The same, unless that would wait for another call or for a server. */
bool change_try(struct df_file *file, enum file_call call);
void change_end(struct df_file *file);			  /* releases both */
int change_truncate(struct df_file *file, uint64_t size); /* no locks held */

/* ---- verify.c */
/* Compare the page cache, about to be released, with the backing file.  Under file->lock. */
void verify(struct df_file *file);

/* ---- unmapped.c */
/* These regions were removed; no locks held. */
void regions_removed(struct df_region *removed);
void unmapped_free(struct df_engine *engine);

/* ---- deliver.c; file->lock is held when there is a file */
enum df_delivery deliver(struct df_pending *pending, enum df_answer answer, enum df_answer otherwise);
enum df_delivery deliver_poison(struct df_guest *guest, struct df_file *file, uint64_t address);

/* ---- failures.c */
/* Hand the fault and its token to Python, or poison at once if that is not possible.  file->lock
 * is held if there is a file. */
void engine_fail(struct df_fault *fault, struct df_file *file, enum df_reason reason, int error);
void failures_keep(struct df_engine *engine, uint64_t now); /* those that are overdue */
void failures_free(struct df_engine *engine);

/* ---- read.c: from the page source into the page cache */
char *read_buffer(void); /* RANGE bytes of this thread's own; NULL: no memory */
/* Read the missing pages of [start, end) around `offset` now, under file->lock; -> 0, -EAGAIN if
 * it would block, or the error of the page. */
int read_now(struct df_engine *engine, struct df_file *file, uint64_t offset, uint64_t start,
	     uint64_t end);
/* Read and settle.  -> the waiters to decide again, or NULL with *wait set when
 * the source would block and may_block is false. */
struct df_fault *read_fill(struct df_fill *fill, bool may_block, bool *wait);

/* ---- fault.c */
void faults_run(struct df_fault *list);		  /* takes heap faults */
void fault_arrived(const struct df_fault *fault); /* from the reader of a guest */

/* ---- reader.c */
int reader_start(struct df_guest *guest);
void reader_end(struct df_guest *guest); /* poisons absent pages */

/* ---- deadlines.c */
void *deadlines_run(void *engine);

#endif
