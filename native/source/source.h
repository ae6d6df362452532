/* SPDX-License-Identifier: Apache-2.0
 *
 * source.h - a backing file as a source of pages.  The only room that makes calls on a backing
 * descriptor.  Must not know the page cache, nor who waits for the bytes.
 *
 * Each call may hang, so none may be made under a file's lock, in a guest's reader thread, or in
 * the thread that keeps deadlines.  Exceptions are the calls that never wait: source_look(),
 * source_peek() and source_gup_error() of a source that is `local`.
 */
#ifndef DAXFAULT_SOURCE_H
#define DAXFAULT_SOURCE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

#include "abi/host.h"

#define PAGE ((uint64_t)DF_PAGE_SIZE)
#define RANGE ((uint64_t)DF_RANGE_SIZE)
#define PAGE_DOWN(x) ((x) & ~(PAGE - 1))
#define PAGE_UP(x) PAGE_DOWN((x) + PAGE - 1)

struct df_injection;
struct source_watch;

struct df_source {
	int fd;
	struct source_watch *watch; /* writers.c; or NULL */
	uint64_t writes;	    /* of it, that source_written_by_others() has returned */
	bool writable;
	bool local;	    /* fstat() and RWF_NOWAIT use only the kernel's memory */
	atomic_bool blocks; /* RWF_NOWAIT does not work here */
	bool memory;	    /* tmpfs: a read never waits */
	int (*fetch)(void *context, uint64_t offset, uint64_t len); /* or NULL: df_file_fetch() */
	void *fetch_context;
	pthread_mutex_t lock;		 /* the rest; a leaf */
	struct df_injection *injections; /* whether there are any can be read unlocked */
	uint64_t cleared;		 /* number of removals of injections */
};

/* Takes `fd` over, also on failure.  *st is the file as it is now. */
int source_open(struct df_source *source, int fd, bool writable, struct stat *st);
void source_close(struct df_source *source);
/* The same file, open for writing.  Takes `fd` over, also on failure.  The caller sets `writable`. */
int source_upgrade(const struct df_source *source, int fd);
int source_look(const struct df_source *source, struct stat *st);

/* Read for the page cache: up to `len` bytes, or to EOF.  -> bytes; if fewer, *error is the
 * positive errno.  source_peek() never waits (EAGAIN); source_bring() does. */
uint64_t source_peek(struct df_source *source, char *to, uint64_t offset, uint64_t len, int *error);
uint64_t source_bring(const struct df_source *source, char *to, uint64_t offset, uint64_t len,
		      int *error);
/* For read(2): -> bytes, or a negative errno; -EAGAIN: it would have to wait. */
int64_t source_read(struct df_source *source, void *to, uint64_t offset, uint64_t len, bool nowait);
int64_t source_write(const struct df_source *source, const void *from, uint64_t offset, uint64_t len);
int source_truncate(const struct df_source *source, uint64_t size);
int source_sync(const struct df_source *source, bool datasync);
/* -> the errno of get_user_pages() for this page of the file, which KVM gets for a guest's fault on a
 * truncated file.  0: the file has the page. */
int source_gup_error(const struct df_source *source, uint64_t offset);

/* ---- writers.c */
void source_watch(struct df_source *source);
void source_unwatch(struct df_source *source);
/* Whether another process has written to the file since the last call.  A write that ends in this
 * moment may be noticed by the next one. */
bool source_written_by_others(struct df_source *source);

/* ---- inject.c: fault injection */

/* A read about to be made, in whole pages. */
struct source_ask {
	uint64_t start, len; /* at most RANGE */
	bool may_block;
	bool retry; /* not a fault: a poisoned page is read again */
	uint64_t stores[DF_RANGE_SIZE / DF_PAGE_SIZE / 64]; /* a bit per page: a store waits for it */
};

#define SOURCE_UNTRUNCATED UINT64_MAX

int source_inject(struct df_source *source, const struct df_inject_options *options);
/* Remove those with this tag, or all. */
void source_inject_remove(struct df_source *source, bool all, uint64_t tag);
static inline bool source_injects(const struct df_source *source)
{
	return __atomic_load_n(&source->injections, __ATOMIC_ACQUIRE);
}
/* Whether an injection may hit stores to this page. */
bool source_injects_store(struct df_source *source, uint64_t offset);
/* Apply the injections to a read; -> its result, 0 or a positive errno.  A delay waits if
 * ask->may_block, and is EAGAIN otherwise.  *truncate: the size to truncate the file to first,
 * or SOURCE_UNTRUNCATED. */
int source_ask(struct df_source *source, const struct source_ask *ask, uint64_t *truncate);

#endif
