/* SPDX-License-Identifier: Apache-2.0
 *
 * mapping.h - maps a page cache in place of its file.
 *
 * Owns the order of the system calls.  struct caller makes them in the program's address space:
 * this process, or a tracee.  Must not speak to the host, and keeps no state.
 *
 * No page of a cache may be touched before the host has registered the mapping: the kernel would
 * fill it with zeros, for every process that maps the file.  So it is mapped PROT_NONE first.  That
 * also keeps MAP_POPULATE, MAP_LOCKED and mlockall(MCL_FUTURE) from touching it.  The first two are
 * done later; with MCL_FUTURE, pages are locked when they are touched, and not populated.
 * A mapping that replaces others (MAP_FIXED), which other threads may be reading, is made elsewhere
 * and then moved over them atomically.
 *
 * May be called from a signal handler and after fork().
 */
#ifndef DAXFAULT_PROGRAM_PLACE_H
#define DAXFAULT_PROGRAM_PLACE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "abi/abi.h"

#define IN_PAGE \
	((uint64_t)DF_PAGE_SIZE - 1) /* the bits of an address that are its offset in the page */

/* The arguments of mmap(2). */
struct map_request {
	uint64_t addr, len;
	int prot, flags, fd;
	int64_t offset;
};

/* The program: this process, or a tracee. */
struct caller {
	/* A system call in its address space.  -> its result, or -errno. */
	long (*call)(struct caller *, long number, const uint64_t args[6]);
	/* Copy a descriptor of ours to the program, and the reverse.  -> the copy, or -errno.
	 * NULL: the program is this process. */
	long (*lend)(struct caller *, int fd);
	int (*take)(struct caller *, int fd);
};

struct mapping {
	uint64_t at, len; /* the mapping, now */
	uint64_t target;  /* its final address; if it is not `at`, the mapping is moved there */
};

bool request_is_shared(const struct map_request *q);

/* -> true: the kernel refuses this mmap(2) for a file of any kind, so leave it to the kernel for the
 * right errno.  access: F_GETFL of the file, or -1. */
bool request_is_refused(const struct map_request *q, int access);

/* -> true: a descriptor of the calling process is a regular file on `device`.  Sends no request to
 * the file system. */
bool request_is_on(int fd, dev_t device);

/* Map `cache` with PROT_NONE.  private: MAP_PRIVATE in place of MAP_SHARED. -> 0 or errno. */
int mapping_make(struct mapping *m, const struct map_request *q, int cache, bool private,
		 struct caller *c);

/* After the host has registered it: set its protection and move it to its target.  -> 0, or the
 * errno for mmap(); then the mapping has been removed. */
int mapping_finish(struct mapping *m, const struct map_request *q, struct caller *c);

/* The call that populates the mapping; mmap() ignores its result.  -> its number, or -1: none. */
long mapping_populates(const struct mapping *m, const struct map_request *q, uint64_t args[6]);

#endif
