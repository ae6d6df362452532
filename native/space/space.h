/* SPDX-License-Identifier: Apache-2.0
 *
 * space.h - a guest's address space: its userfaultfd, its regions (ranges of addresses that map
 * files), and its poisoned pages.  The only room that installs, poisons, protects and wakes.  Must
 * not know parked faults, nor the answers to failed ones: each step returns its verdict.
 *
 * space->lock (rw) protects the regions; it is held for reading across an install, so that a range
 * that is being unmapped never receives a page.  It is taken before file->lock, which protects
 * struct file_mappings.
 */
#ifndef DAXFAULT_SPACE_H
#define DAXFAULT_SPACE_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/uffd.h"
#include "cache/cache.h"

/* DF_CDEF_BEGIN */

/* Store the ids, at most `most`, of the files that are mapped in a range of a process, as the
 * kernel shows it, including inherited and moved mappings.  -> their number, or a negative
 * errno. */
int df_process_files(int pid, uint64_t start, uint64_t len, uint64_t *ids, int most);

/* DF_CDEF_END */

struct df_space {
	uint64_t id; /* of the guest */
	int uffd;
	bool tracks;		   /* its userfaultfd has WP_UNPOPULATED */
	bool program;		   /* its mappings are read from the kernel */
	atomic_bool dead;	   /* no install from here on; set under `lock` */
	atomic_bool stuck;	   /* its reader does not return from read(2) */
	atomic_uint_fast64_t turn; /* odd: events are being read or applied */
	pthread_rwlock_t lock;
	struct df_region **regions; /* sorted by start, disjoint */
	size_t nregions, room;
};

struct df_region {
	struct df_region *next; /* of the file, under file->lock; or of those removed */
	struct df_space *space;
	uint64_t start, len;  /* guest addresses */
	struct df_file *file; /* counted */
	uint64_t offset;      /* in the file, of `start` */
	bool writable;
	bool tracked;	       /* pages stay write-protected until the first store */
	bool last;	       /* removed: the space does not map the file any more */
	uint32_t around;       /* bytes to fill and map together; grows when sequential */
	uint64_t expected;     /* the next fault of a sequential reader */
	uint32_t store_around; /* the same for first stores */
	uint64_t store_expected;
};

/* A poisoned page. */
struct df_poison {
	struct df_poison *next;
	struct df_poison *next_retry;
	struct df_space *space;
	struct df_file *file;
	uint64_t page, offset; /* in the guest, in the file */
	bool trying;	       /* it is being read again */
};

/* The mappings of a file; file->lock. */
struct file_mappings {
	struct df_region *first;
	uint64_t n, nwritable;
	struct df_poison **poisons; /* hashed by space and page */
	size_t poison_slots;
	uint64_t npoisons;
};

/* ---- space.c */
/* Takes `uffd` over. */
void space_init(struct df_space *space, uint64_t id, int uffd, bool tracks, bool program);
void space_destroy(struct df_space *space);
int space_unblock(struct df_space *space); /* poll() requires O_NONBLOCK */
bool space_alive(const struct df_space *space);
bool space_shows(struct df_space *space, uint64_t address);
int space_wake(const struct df_space *space, uint64_t address); /* the page's waiters */
void space_wake_file(const struct df_file *file); /* all that waits on a file; file->lock */
/* Wait until all events that were read have been applied; bounded. */
void space_settle(struct df_space *space);
/* Wait until all pending events have been read and applied; -> 0 or -EAGAIN */
int space_catch_up(struct df_space *space);
int space_map(struct df_space *space, uint64_t start, uint64_t len, struct df_file *file,
	      uint64_t offset, bool writable);
void space_unmap(struct df_space *space, uint64_t start, uint64_t end, struct df_region **removed);
/* Poison every page that is absent; -EAGAIN: not all, the address space is changing. */
int space_poison_absent(struct df_space *space);
/* The same for the child of a fork that cannot be served; `parent` has the regions. */
void space_poison_child(struct df_space *parent, int uffd);
/* Write-protect these pages of a file in all guests, so that the next store is noticed; file->lock.
 * false: not possible in some guest (not tracked, or its address space is changing). */
bool space_protect(struct df_file *file, uint64_t start, uint64_t end);

/* ---- region.c; space->lock, for writing where the table changes.  `removed` is a list that is
 * added to: each with its file still counted, to be freed by region_free(). */
struct df_region *region_find(struct df_space *space, uint64_t address);
struct df_region *region_next(struct df_space *space, uint64_t address); /* or the first after it */
int region_add(struct df_space *space, uint64_t start, uint64_t len, struct df_file *file,
	       uint64_t offset, bool writable);
void region_remove(struct df_space *space, uint64_t start, uint64_t end, struct df_region **removed);
/* `retry`: poisoned pages that are to be read again where they are now. */
void region_move(struct df_space *space, uint64_t from, uint64_t to, uint64_t len,
		 struct df_region **removed, struct df_poison **retry);
int region_copy(struct df_space *to, struct df_space *from, struct df_poison **retry);
void region_free(struct df_region *region);

/* ---- events.c */
enum space_event_kind {
	SPACE_OTHER, /* applied */
	SPACE_FAULT,
	SPACE_FORK, /* `uffd` is the child's; the caller closes or keeps it */
};

struct space_event {
	enum space_event_kind kind;
	uint32_t what; /* UFFD_EVENT_* */
	uint64_t address;
	int tid;
	bool write;
	bool stored; /* a store to a page that is present, write-protected */
	int uffd;
	struct df_region *removed; /* for the caller to free */
	struct df_poison *retry;
};

/* Read events; the caller applies them and then calls space_events_end().  -> their number, or a
 * negative errno */
int space_events_begin(struct df_space *space, struct uffd_msg *msgs, int most);
/* Apply an event.  Under space->lock, for writing unless it is UFFD_EVENT_PAGEFAULT. */
void space_event(struct df_space *space, const struct uffd_msg *msg, struct space_event *out);
void space_events_end(struct df_space *space);

/* ---- poison.c; file->lock */
void poison_add(struct df_region *region, uint64_t page);
void poison_tried(struct df_file *file, const struct df_space *space, uint64_t page, bool healed);
void poison_forget(struct df_file *file, const struct df_space *space, uint64_t start, uint64_t end);
/* Copy the poison of `from` to `to`, a region of the same bytes. */
void poison_copy(const struct df_region *from, struct df_region *to, struct df_poison **retry);
/* List the poisoned pages inside the file that are not being read again yet.  -> whether there are
 * any. */
bool poison_retry(struct df_file *file, struct df_poison **retry);
enum poison_result {
	POISON_DONE,
	POISON_GONE,	/* no guest is left */
	POISON_UNKNOWN, /* this kernel has no UFFDIO_POISON */
	POISON_WOKEN,	/* another entry is there: the access is repeated */
};
/* Poison the page of `address`; file: its lock is held, or NULL. */
enum poison_result poison_page(struct df_space *space, struct df_file *file, uint64_t address);

/* ---- install.c; space->lock and file->lock */
enum verdict {
	VERDICT_DONE, /* finished */
	VERDICT_INSTALLED,
	VERDICT_AGAIN,	  /* the address space is changing: after its events */
	VERDICT_LOST,	  /* the page was removed from the page cache: decide again */
	VERDICT_UNMAPPED, /* no mapping, or one that cannot take the page */
	VERDICT_FAILED,	  /* see `error` */
};

/* A page to install, and the result. */
struct install {
	uint64_t page;	 /* in the guest */
	uint64_t offset; /* in the file */
	bool write;
	bool alone;	/* no pages around it */
	bool retry;	/* not a fault: a poisoned page is read again */
	int error;	/* positive errno */
	uint64_t pages; /* installed */
	uint64_t bytes; /* examined, for the trace */
};

/* The range around the page to fill or map with it; file offsets. */
void install_window(const struct df_region *region, const struct install *install, uint64_t around,
		    uint64_t *start, uint64_t *end);
enum verdict install_page(struct df_region *region, struct install *install);
/* The first store to a page that was mapped for reading. */
enum verdict install_store(struct df_region *region, struct install *install);

/* ---- adopt.c: programs */
/* Register and serve the page caches mapped in a range of process `pid`.
 * -> the number of mappings, or a negative errno. */
int space_adopt(struct df_space *space, int pid, uint64_t start, uint64_t len,
		struct df_region **removed);
/* Whether the kernel shows a page cache at `page`; if so, adds a region for it. */
bool space_discover(struct df_space *space, uint64_t page, int tid);
/* -> a descriptor for maps_find(), for the thread that an event names, if its mappings match this
 * address space; the caller closes it.  Otherwise -1. */
int space_maps(struct df_space *space, int tid);
/* Store the ids, at most `most`, of the files that it maps; -> their number. */
int space_files(struct df_space *space, uint64_t *ids, int most);

#endif
