/* SPDX-License-Identifier: Apache-2.0
 *
 * cache.h - a file and its page cache: a memfd, the state of each page (filled, exposed, dirty),
 * the size, the generation.  Must not know faults, mappings or waiters.
 *
 * file->lock covers all of it, and is held across no call that may hang.  A change of the file,
 * whoever made it, is recorded in file->change; whoever holds the lock applies it to those who wait
 * and map before the lock is released (engine/change.c).
 */
#ifndef DAXFAULT_CACHE_H
#define DAXFAULT_CACHE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <time.h>

#include "keeper/known.h"
#include "source/source.h"

/* DF_CDEF_BEGIN */

/* Evict clean pages when the page caches of this process exceed `bytes`.  0: no limit */
int df_cache_limit(uint64_t bytes);
/* -> a descriptor, readable when dirty pages keep the page caches over their limit; -1: no limit. */
int df_cache_full_fd(void);
void df_cache_state(struct df_cache_state *out);

/* DF_CDEF_END */

/* The i_size of the page cache, unless it is `sized`.  It is not the file's size: the host
 * decides each fault past EOF. */
#define CACHE_SIZE ((uint64_t)1 << 62)

#define NOTHING_CLEAN UINT64_MAX /* df_file.used: nothing there for evict() */
#define CHUNK_SIZE KNOWN_SIZE
#define CHUNK_PAGES KNOWN_PAGES

enum page_state {
	PAGE_FILLED,   /* holds the file's bytes */
	PAGE_EXPOSED,  /* ... and a guest could store to it, at some time since */
	PAGE_DIRTY,    /* ... and may have, since it was last compared (exposed.c) */
	PAGE_UNSYNCED, /* written to the backing file since its last fsync(2) */
	PAGE_STATES,
};

/* The page states of 1 GiB of a file's page cache. */
struct df_chunk {
	uint64_t index;
	uint64_t *pages[PAGE_STATES];		      /* a bit a page */
	uint64_t bits[PAGE_STATES][CHUNK_PAGES / 64]; /* where they are, but for PAGE_EXPOSED */
	struct known *known; /* that one, and the hashes of exposed pages */
};

/* A file that has changed.  [start, end): bytes read there before are not the file's any more; may
 * be empty. */
struct change {
	bool any;
	bool content; /* by another process: clean pages are out of date */
	uint64_t start, end;
};

/* A call of the host that changes the backing file. */
enum file_call {
	CALL_NONE,
	CALL_WRITE,
	CALL_TRUNCATE,
};

/* The result of fstat() on the backing file. */
struct file_look {
	unsigned looks; /* df_file.looks, from before */
	int error;
	struct stat st;
};

struct file_mappings;
struct file_waits;

struct df_file {
	uint64_t id;
	atomic_int refs;
	pthread_mutex_t lock;
	struct df_source source;
	int cache;  /* memfd; -1 until a guest maps the file */
	bool sized; /* its i_size is the file's: the kernel raises SIGBUS past EOF */
	bool ended; /* no more faults are answered: df_file_end() */
	struct df_file *next_active, **before_active; /* all that have a memfd */
	dev_t cache_device;
	uint64_t cache_inode;
	uint64_t size;
	struct timespec mtime, ctime; /* after the host's last change */
	int unreported;		      /* enum df_change bits since df_file_recheck() */
	/* Held across a call that changes the backing file, before `lock`: one at a time. */
	pthread_mutex_t changing;
	enum file_call call; /* ... that is in progress */
	atomic_uint looks;   /* counts events that make an older struct file_look stale */
	atomic_uint_fast64_t generation; /* counts changes of the file's contents */
	struct change change;		 /* since the last file_take_change() */
	bool unsettled;			 /* dirty pages must still be compared for it (change.c) */
	struct df_chunk **chunks;	 /* sorted by index */
	size_t nchunks;
	uint64_t writes;      /* to pages that were in the page cache */
	uint64_t sync_errors; /* of fsync(2), and the last of them */
	int sync_error;
	uint64_t resident;
	uint64_t hand;		   /* evict.c: the clock's hand */
	atomic_uint_fast64_t used; /* evict.c: when it was last filled, of all fills */
	/* What the rooms above keep with a file, under its lock.  Freed with it. */
	struct file_mappings *mappings; /* space.h */
	struct file_waits *waits;	/* engine/internal.h */
};

/* file.c: life, size and changes */
int file_new(int fd, bool writable, struct df_file **out); /* takes `fd` over, also on failure */
void file_get(struct df_file *file);
void file_put(struct df_file *file);
/* Without the lock: the call may hang. */
void file_look(const struct df_file *file, struct file_look *look);
/* Under file->lock: */
/* Apply a look, unless it is stale.  -> enum df_change bits, or its error */
int file_saw(struct df_file *file, const struct file_look *look);
int file_notice(struct df_file *file); /* both, if the source is local; else 0 */
/* Around a call that changes the backing file, with file->changing held.  `after` it: a look. */
void file_call_begin(struct df_file *file, enum file_call call);
void file_call_end(struct df_file *file, const struct file_look *after);
/* Take the ctime as the host's own change, if no other attribute has changed. */
void file_attributes_set(struct df_file *file, const struct file_look *after);
void file_changed(struct df_file *file, uint64_t size, bool content);
/* `len` bytes were written to the backing file, which now has `size`. */
void file_written(struct df_file *file, const char *bytes, uint64_t offset, uint64_t len,
		  uint64_t size);
struct change file_take_change(struct df_file *file);
static inline uint64_t file_end(const struct df_file *file) /* first byte past the last page */
{
	return PAGE_UP(file->size);
}

/* memfd.c; under file->lock */
int file_activate(struct df_file *file, bool sized); /* -EBUSY: it is the other kind; -ENODEV: ended */
void file_deactivate(struct df_file *file);
void file_fit(struct df_file *file);			/* the i_size of a sized page cache */
int file_cache_fd(struct df_file *file, bool writable); /* a new descriptor of it */
void file_keep_source(struct df_file *file);		/* it is open for writing from now on */
/* Lock another file with a page cache, the one with the oldest pages, if its lock is free.  -> a
 * new reference to it, or NULL. */
struct df_file *file_other_locked(const struct df_file *than);
struct df_file *file_of_cache(dev_t device, uint64_t inode); /* counted, or NULL; no lock */

/* evict.c */
/* [start, end) of the file was just filled: evict other pages to stay within the limit. */
void evict(struct df_file *file, uint64_t start, uint64_t end);
/* Evict after a part of the file was written back; file->lock.  -> pages evicted. */
uint64_t evict_written(struct df_file *file);
/* A whole file was written back; `in_vain`: that freed nothing. */
void evict_tried(bool in_vain);
/* Throttle a guest that stores faster than that; no locks held. */
void evict_hold(void);

/* pages.c: the page cache; all under file->lock */
/* -ESTALE: a guest has removed some of the pages from the memfd; those are dropped. */
int pages_read(struct df_file *file, char *to, uint64_t offset, uint64_t len);
int pages_write(struct df_file *file, const char *from, uint64_t offset, uint64_t len);
/* Whole pages from the source, [start, end) in at most two chunks. */
int pages_fill(struct df_file *file, const char *from, uint64_t start, uint64_t end);
bool pages_filled(struct df_file *file, uint64_t offset);
bool pages_present(struct df_file *file, uint64_t offset); /* in the memfd, filled or not */
/* end of the run of pages in the same state as the first, at most `end` */
uint64_t pages_run(struct df_file *file, uint64_t offset, uint64_t end, bool *filled);
bool pages_in(struct df_file *file, uint64_t offset, enum page_state state);
void pages_mark(struct df_file *file, uint64_t start, uint64_t end, enum page_state state,
		bool value);
/* the first run of pages in that state at or after *start, inside one chunk */
bool pages_next(struct df_file *file, uint64_t *start, uint64_t *end, uint64_t most,
		enum page_state state);
struct df_chunk *pages_chunk(struct df_file *file, uint64_t offset); /* or NULL */
void pages_drop(struct df_file *file, uint64_t start, uint64_t end);
uint64_t pages_resident(void); /* of all files; no lock */
void pages_zero(struct df_file *file, uint64_t start, uint64_t end);
void pages_free(struct df_file *file);

/* exposed.c: pages that guests can store to; all under file->lock */
/* Before a guest may store to the filled pages of a range unnoticed. */
void exposed_begin(struct df_file *file, uint64_t start, uint64_t end);
/* Whether an exposed page with the bytes `page` may differ from the backing file. */
bool exposed_differs(struct df_file *file, const char *page, uint64_t offset);
/* `len` bytes at `offset`, a page boundary, were written from the page cache to the backing file. */
void exposed_written(struct df_file *file, const char *bytes, uint64_t offset, uint64_t len);
/* Bytes of write(2) were written to the backing file, and will be written to the page cache next. */
void exposed_overwritten(struct df_file *file, const char *bytes, uint64_t offset, uint64_t len);
/* Pages of a write that failed: the backing file may have any part of it. */
void exposed_unwritten(struct df_file *file, uint64_t start, uint64_t end);
/* fsync(2) failed: the kernel takes what was written for clean now, on the disk or not. */
void exposed_sync_failed(struct df_file *file);
/* The backing file was cut to `size`, which is not in file->size yet. */
void exposed_cut(struct df_file *file, uint64_t size);
/* Drop at most `most` pages of [*at, end) that equal the backing file's: never dirty ones.
 * -> how many.  *at is where to go on. */
uint64_t exposed_drop_clean(struct df_file *file, uint64_t *at, uint64_t end, uint64_t most);

#endif
