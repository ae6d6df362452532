/* SPDX-License-Identifier: Apache-2.0
 *
 * cache.h - files and their page caches, as the engine's C files know them.  The
 * rules of their locks are in internal.h.
 */
#ifndef DAXFAULT_CACHE_H
#define DAXFAULT_CACHE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#include "engine/engine.h"
#include "source/source.h"

/* The page cache's own i_size, unless it is `sized`.  It never says where a file ends:
 * the host decides that, fault by fault. */
#define CACHE_SIZE ((uint64_t)1 << 62)

struct df_fault;
struct df_poison;
struct df_region;

#define NOTHING_CLEAN UINT64_MAX	/* df_file.used: nothing there for evict() */
#define CHUNK_SHIFT 30
#define CHUNK_SIZE ((uint64_t)1 << CHUNK_SHIFT)
#define CHUNK_PAGES (CHUNK_SIZE / PAGE)

/* What is known of 1 GiB of a file's page cache. */
struct df_chunk {
	uint64_t index;
	uint64_t filled[CHUNK_PAGES / 64];	/* holds the file's bytes */
	uint64_t exposed[CHUNK_PAGES / 64];	/* ... and a guest may have stored to it */
};

/* One read from the page source into the page cache. */
struct df_fill {
	struct df_fill *next;		/* of the file; file->lock */
	struct df_fill *next_all;	/* of the engine; engine->lock */
	struct df_engine *engine;
	struct df_file *file;		/* counted */
	uint64_t start, len;		/* bytes, page aligned */
	bool stale;			/* the range changed since it began */
	bool slow;			/* its source is waited for: so are its waiters told */
	uint64_t looked;		/* the warden's last round; engine->lock */
	struct df_fault *waiters;
};

struct df_file {
	uint64_t id;
	atomic_int refs;
	pthread_mutex_t lock;
	struct df_source source;
	int cache;			/* memfd; -1 until a guest maps the file */
	bool sized;			/* its i_size is the file's: the kernel settles EOF */
	struct df_file *next_active, **before_active;	/* all that have a memfd */
	dev_t cache_device;
	uint64_t cache_inode;
	uint64_t size;
	struct timespec mtime;		/* after our own last change */
	int untold;			/* enum df_change bits since df_file_recheck() */
	atomic_uint_fast64_t generation;	/* counts changes of what a page should hold */
	struct df_chunk **chunks;	/* sorted by index */
	size_t nchunks;
	uint64_t resident;
	uint64_t hand;			/* evict.c: how far it has come */
	atomic_uint_fast64_t used;	/* evict.c: when it was last filled, of all fills */
	struct df_fill *fills;
	struct df_region *mappings;
	uint64_t nmappings, nwritable;
	struct df_poison **poisons;	/* hashed by guest and page */
	size_t poison_slots;
	uint64_t npoisons;
	atomic_uint mends;		/* attempts under way to mend a poisoned page */
	/* for file_unlock() */
	struct df_fault *released;	/* to be decided anew */
	bool mended;			/* attempts have begun that a caller may rely on */
};

/* memfd.c: the memfd; under file->lock */
int file_activate(struct df_file *file, bool sized);	/* -EBUSY: it is the other kind */
void file_deactivate(struct df_file *file);
void file_fit(struct df_file *file);		/* the i_size of a sized page cache */
/* Another file with a page cache, whose lock was free and is now held: the one whose pages
 * have been there longest.  Counted; NULL: none. */
struct df_file *file_other_locked(const struct df_file *than);
struct df_file *file_of_cache(dev_t device, uint64_t inode);	/* counted, or NULL; no lock */

/* evict.c */
/* [start, end) of the file was just filled: keep within the limit, at the cost of others. */
void evict(struct df_file *file, uint64_t start, uint64_t end);
/* Some of the file was written back; file->lock.  -> pages that went. */
uint64_t evict_written(struct df_file *file);
/* All of a file was, and whether for the limit that was in vain. */
void evict_tried(bool in_vain);
/* Hold up who stores faster than that; no locks held. */
void evict_hold(void);

/* keep.c: what the keeper has of a program's */
void keep_cache(const struct df_file *file);
void keep_uffd(const struct df_guest *guest);
void keep_nothing_of_file(const struct df_file *file);
void keep_nothing_of_guest(const struct df_guest *guest);

/* file.c: life, size and content changes */
void file_get(struct df_file *file);
void file_lock(struct df_file *file);
void file_unlock(struct df_file *file);		/* and what the change set free */
int file_notice(struct df_file *file);		/* fstat: -> enum df_change bits; locked */
void file_changed(struct df_file *file, uint64_t size, bool content);
void file_stamp(struct df_file *file);
void file_mend_begun(struct df_file *file);	/* count one more attempt */
void file_mend_ended(struct df_file *file);
static inline uint64_t file_end(const struct df_file *file)	/* first byte past the last page */
{
	return PAGE_UP(file->size);
}

/* poison.c; under file->lock */
void poison_add(struct df_region *region, uint64_t page);
void poison_tried(struct df_file *file, const struct df_guest *guest, uint64_t page, bool healed);
void poison_forget(struct df_file *file, const struct df_guest *guest, uint64_t start, uint64_t end);
/* What is poisoned in `from` is poisoned in `to`, which shows the same, too. */
void poison_copy(const struct df_region *from, struct df_region *to);
void poison_mend(struct df_file *file);

/* pages.c: the page cache; all under file->lock */
struct df_chunk *pages_chunk(struct df_file *file, uint64_t offset, bool create);
/* -ESTALE: a guest has taken some of them out of the memfd, and those are forgotten. */
int pages_read(struct df_file *file, char *to, uint64_t offset, uint64_t len);
int pages_write(struct df_file *file, const char *from, uint64_t offset, uint64_t len);
/* Whole pages from the source, [start, end) in at most two chunks. */
int pages_fill(struct df_file *file, const char *from, uint64_t start, uint64_t end);
bool pages_filled(struct df_file *file, uint64_t offset);
bool pages_present(struct df_file *file, uint64_t offset);	/* in the memfd, whoever put it there */
/* end of the run of pages in the same state as the first, at most `end` */
uint64_t pages_run(struct df_file *file, uint64_t offset, uint64_t end, bool *filled);
void pages_set_exposed(struct df_file *file, uint64_t start, uint64_t end);
/* the first run of exposed pages at or after *start, inside one chunk */
bool pages_next_exposed(struct df_file *file, uint64_t *start, uint64_t *end, uint64_t most);
bool pages_any_exposed(struct df_file *file);
void pages_clear_exposed(struct df_file *file, uint64_t start, uint64_t end);
void pages_drop(struct df_file *file, uint64_t start, uint64_t end);
void pages_drop_unexposed(struct df_file *file);
/* At most `most` pages of [*at, end) that nobody stored to; -> how many. *at is where to go on. */
uint64_t pages_drop_clean(struct df_file *file, uint64_t *at, uint64_t end, uint64_t most);
uint64_t pages_resident(void);		/* of all files; no lock */
void pages_zero(struct df_file *file, uint64_t start, uint64_t end);
void pages_free(struct df_file *file);

#endif
