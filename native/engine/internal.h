/* SPDX-License-Identifier: Apache-2.0
 *
 * internal.h - the engine's own structures: guests and faults, with cache.h the
 * files, and the rules of their locks.  Read by the engine's own C files only.
 *
 * Lock order, outermost first:
 *   guest->lock (rw)   regions; held for reading across an install, so a range
 *                      that is being unmapped never receives a page
 *   file->lock         size, generation, page cache, fills, mappings, poisons:
 *                      "same generation?" and the install are one step under it
 *   engine->lock       failures, list of guests and fills; a leaf
 *   guest->apf_lock    tokens of its vCPUs, and what the host writes into their
 *                      slots; a leaf, but for the tracer's
 *
 * Nobody waits for Python, for a guest or for a page source's bytes under any of
 * them.
 */
#ifndef DAXFAULT_INTERNAL_H
#define DAXFAULT_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#include "apf/apf.h"
#include "engine.h"
#include "cache/cache.h"
#include "base/clock.h"
#include "base/thread.h"
#include "base/trace.h"
#include "base/uffd.h"
#include "source/jobs.h"

#define DF_TRIES_MAX 3

struct df_region;
struct df_fault;
struct df_fill;

/* ------------------------------------------------------------------ faults */

/* A fault under way.  On the stack of the thread that reads it from the guest;
 * copied to the heap when it has to wait (then it counts its guest). */
struct df_fault {
	struct df_fault *next;
	struct df_guest *guest;
	uint64_t address;		/* exact */
	uint64_t arrived;		/* ns, CLOCK_MONOTONIC */
	uint64_t seen;			/* when the thread last was in it; at first `arrived` */
	uint64_t deadline;		/* of the page source, when parked */
	int32_t tid;
	uint32_t write;
	uint64_t offset;		/* of the page in the file, once looked up */
	uint32_t tries;			/* installs whose page was gone from the page cache */
	int error;			/* of a fill of this page alone */
	bool stored;			/* a store to a page that is present, write-protected */
	bool single;			/* fill this one page only: a larger fill failed */
	bool waited;			/* a copy of what the reader has read */
	bool readonly;			/* the mapping is not for stores */
	bool asked;			/* the following are known: apf_ask() */
	uint32_t wait;			/* enum df_wait */
	uint32_t token;			/* told "not present": whoever ends the fault ends it */
	int32_t vcpu;			/* its slot, or -1 */
	uint32_t state;			/* enum df_cpu_state */
	struct df_file *mends;		/* not a fault: an attempt to mend a poisoned page */
};

/* A poisoned page of one guest. */
struct df_poison {
	struct df_poison *next;
	struct df_guest *guest;
	uint64_t page, offset;		/* in the guest, in the file */
	bool trying;			/* an attempt to mend it is under way */
};

/* ------------------------------------------------------------------ guests */

struct df_region {
	struct df_region *next;		/* of the file; file->lock */
	struct df_guest *guest;
	uint64_t start, len;		/* guest addresses */
	struct df_file *file;		/* counted */
	uint64_t offset;		/* in the file, of `start` */
	bool writable;
	bool tracked;			/* pages stay write-protected until the first store */
	uint32_t around;		/* bytes to fill and map together; grows when sequential */
	uint64_t expected;		/* where a sequential reader faults next */
	uint32_t store_around;		/* the same for first stores */
	uint64_t store_expected;
};

#define ATTEMPTS 64

struct df_guest {
	struct df_guest *next;		/* of the engine; engine->lock */
	struct df_engine *engine;
	uint64_t id;
	atomic_int refs;
	atomic_bool dead;
	atomic_bool stuck;		/* its reader does not come back from read(2) */
	atomic_uint_fast64_t turn;	/* odd: the reader reads events, or acts upon them */
	int uffd;
	int pid;			/* 0 for a forked child: only its tids are known */
	int kick;			/* eventfd: look at `again`, or end */
	int asides;			/* epoll: `kick` and `doorbell`; a fault is polled for with it */
	struct df_guest_options options;
	struct df_slot *slots;		/* shared with the guest: trust nothing in it */
	int doorbell;			/* our end: a byte for every MSR the guest wrote */
	int doorbell_guest;		/* its end, until it is handed over */
	pthread_mutex_t apf_lock;
	struct df_vcpu *vcpus;		/* DF_VCPU_MAX, or NULL without slots */
	bool tracks;			/* its userfaultfd has WP_UNPOPULATED */
	bool child;			/* came by UFFD_EVENT_FORK */
	pthread_t thread;
	pthread_rwlock_t lock;
	struct df_region **regions;	/* sorted by start, disjoint */
	size_t nregions, room;
	pthread_mutex_t small;		/* `again`, `attempts` and `ended`; a leaf */
	pthread_cond_t end;
	bool ended;			/* the reader's last word */
	struct df_fault *again;		/* met EAGAIN: after the next events */
	struct {
		uint64_t page;
		uint32_t count;
	} attempts[ATTEMPTS];
	atomic_uint nattempts;
	unsigned oldest;
};

/* reader.c */
void *events_read(void *guest);			/* a reader's life; puts the guest */

/* guest.c */
int guest_alloc(struct df_engine *engine, int uffd, int pid, struct df_guest **out);
int guest_unblock(struct df_guest *guest);
void guest_settle(struct df_guest *guest);	/* what was read of its events is acted upon */
int guest_catch_up(struct df_guest *guest);	/* ... and all there are were read; or -EAGAIN */
int guest_poison(struct df_guest *guest);
bool guest_shows(struct df_guest *guest, uint64_t address);
struct df_fault *guest_take_again(struct df_guest *guest);
void guest_get(struct df_guest *guest);
void guest_put(struct df_guest *guest);
int guest_start(struct df_guest *guest);
void guest_retry(struct df_guest *guest, struct df_fault *fault);	/* takes a heap fault */
uint32_t guest_attempt(struct df_guest *guest, uint64_t page);
void guest_resolved(struct df_guest *guest, uint64_t start, uint64_t end);

/* adopt.c */
/* Whether the kernel shows a page cache where we know of no region: then there is one now. */
bool program_discover(struct df_guest *guest, uint64_t page, int tid);
/* The guest may have lost its last mapping of the file. */
void program_unmapped(struct df_guest *guest, struct df_file *file);
void program_free(struct df_engine *engine);

/* region.c */
struct df_region *region_find(struct df_guest *guest, uint64_t address);
struct df_region *region_next(struct df_guest *guest, uint64_t address);	/* or the first after it */
int region_add(struct df_guest *guest, uint64_t start, uint64_t len, struct df_file *file,
	       uint64_t offset, bool writable);
void region_remove(struct df_guest *guest, uint64_t start, uint64_t end);
int region_move(struct df_guest *guest, uint64_t from, uint64_t to, uint64_t len);
int region_copy(struct df_guest *to, struct df_guest *from);

/* ------------------------------------------------------------------ engine */

/* A failed fault, from the decision to its end. */
struct df_pending {
	struct df_pending *next;
	struct df_failure record;
	struct df_guest *guest;		/* counted */
	struct df_file *file;		/* counted, or NULL */
	uint64_t deadline;
	uint64_t seen;			/* the thread, in this fault */
	int slot;			/* >= 0: an event was sent and not yet taken */
	bool stopped;			/* the vCPU stands still until the file changes */
	bool read;			/* Python has the record */
	bool over;			/* ... and is yet to have it; nothing else is left to do */
};

struct df_engine {
	struct df_engine_options options;
	pthread_mutex_t lock;
	pthread_cond_t tick;
	struct job_pool pool;
	bool stopping;
	struct df_guest *guests;
	struct df_fill *fills;
	atomic_uint parked;
	struct df_pending *pending, **last_pending;
	unsigned npending;
	uint64_t next_id;
	int failures_fd;
	struct df_left *left;		/* adopt.c */
	int left_fd;
	pthread_t warden;
	struct df_tracer tracer;
	struct df_counters counters;	/* by __atomic adds */
};

#define COUNT(engine, field, n) \
	__atomic_fetch_add(&(engine)->counters.field, (uint64_t)(n), __ATOMIC_RELAXED)

/* What became of a fault for now */
enum verdict {
	DONE,
	WAITS,		/* a copy of the fault waits on a fill */
	FILL,		/* ... on a new one, which the caller must run */
	AGAIN,		/* the guest's address space is changing: after its events */
	REPEAT,		/* look again, at once */
};

/* install.c; under guest->lock and file->lock */
void install_window(const struct df_region *region, const struct df_fault *fault, uint64_t around,
		    uint64_t *start, uint64_t *end);
enum verdict install(struct df_fault *fault, struct df_region *region, uint64_t page);
enum verdict install_store(struct df_fault *fault, struct df_region *region, uint64_t page);

/* fault.c */
void faults_run(struct df_fault *list, bool may_block);	/* takes heap faults */
void faults_submit(struct df_fault *list);		/* the same, in a thread that may wait */
void fault_arrived(const struct df_fault *fault);	/* from the reader of a guest */
struct df_fault *fault_copy(struct df_fault *fault);	/* takes its token over */
void fault_free(struct df_fault *fault);

/* fill.c */
char *fill_buffer(void);		/* RANGE bytes of this thread's own; NULL: no memory */
/* Read now, under file->lock, what of [start, end) around `offset` is missing: 0,
 * -EAGAIN when it would block, or what is wrong with the page. */
int fill_now(struct df_engine *engine, struct df_file *file, uint64_t offset, uint64_t start,
	     uint64_t end);
/* The fill to wait on for this page, NULL: begin one. */
struct df_fill *fill_find(struct df_file *file, uint64_t offset);
struct df_fill *fill_begin(struct df_engine *engine, struct df_file *file, uint64_t offset,
			   uint64_t start, uint64_t end);
void fill_wait(struct df_fill *fill, struct df_fault *fault);
bool fill_awaited(const struct df_fill *fill, const struct df_fault *fault);
/* Its waiters have to wait for a disk, or worse. */
void fill_slow(struct df_fill *fill);
/* Read and settle.  -> the waiters to decide again, or NULL with *wait set when
 * the source would block and may_block is false. */
struct df_fault *fill_run(struct df_fill *fill, bool may_block, bool *wait);
/* [start, end) of the file changed: what is being read there is not to be used. */
void fill_release(struct df_file *file, uint64_t start, uint64_t end);
/* The guest unmaps the region: its faults there do not wait any longer. */
void fill_leave(struct df_region *region);
void fill_expire(struct df_engine *engine, struct df_file *file, uint64_t now);

/* failures.c */
/* Hands the fault to Python, or poisons at once when that cannot be; file->lock
 * is held when there is a file.  The fault's token goes with it. */
void engine_fail(struct df_fault *fault, struct df_file *file, enum df_reason reason, int error);
void failures_keep(struct df_engine *engine, uint64_t now);	/* those that are overdue */
void failures_free(struct df_engine *engine);

/* deadlines.c */
void *warden_run(void *engine);

/* deliver.c; file->lock is held when there is a file */
enum df_delivery deliver(struct df_pending *pending, enum df_answer answer,
			 enum df_answer otherwise);
enum df_delivery deliver_poison(struct df_guest *guest, struct df_file *file, uint64_t address);
bool deliver_untaken(const struct df_pending *pending);
bool deliver_overdue(struct df_pending *pending);
void deliver_withdraw(struct df_file *file);

#endif
