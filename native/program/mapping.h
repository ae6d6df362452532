/* SPDX-License-Identifier: Apache-2.0
 *
 * mapping.h - a page cache, mapped where the program asked for its file.
 *
 * Owns the order of the system calls.  struct caller makes them in the program's address space:
 * this process, or a tracee.  Must not speak to the host, and keeps no state.
 *
 * No page of a cache may be touched before the host has registered the mapping: the kernel would
 * make it of zeros, for every process that has the file mapped.  So it is mapped PROT_NONE at
 * first.  That also keeps MAP_POPULATE, MAP_LOCKED and mlockall(MCL_FUTURE) from touching it: the
 * first two are done later; with MCL_FUTURE, pages are locked as they come, and not read ahead.
 * A mapping that replaces others (MAP_FIXED), which other threads may be reading, is made
 * elsewhere and then moved over them in one step, or, if that fails, not at all.
 *
 * May be called from a signal handler and after fork().
 */
#ifndef DAXFAULT_PROGRAM_PLACE_H
#define DAXFAULT_PROGRAM_PLACE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "abi/abi.h"

#define IN_PAGE ((uint64_t)DF_PAGE_SIZE - 1)	/* the bits of an address that lie within its page */

/* What mmap(2) was asked for. */
struct map_request {
	uint64_t addr, len;
	int prot, flags, fd;
	int64_t offset;
};

/* The program: this process, or a tracee. */
struct caller {
	/* A system call in its address space.  -> its result, or -errno. */
	long (*call)(struct caller *, long number, const uint64_t args[6]);
	/* A descriptor of ours as one of its own, and the reverse.  -> the copy, or -errno.  NULL: they
	 * are the same. */
	long (*lend)(struct caller *, int fd);
	int (*take)(struct caller *, int fd);
};

struct mapping {
	uint64_t at, len;		/* what is mapped now */
	uint64_t target;		/* where it is to be; other than `at`: it is moved there */
};

bool request_is_shared(const struct map_request *q);

/* Whether the kernel refuses it, for a file of any kind: mmap(2) is to be left to it, for the
 * right errno.  access: what fcntl(F_GETFL) says of the file, or -1. */
bool request_is_refused(const struct map_request *q, int access);

/* Whether an open descriptor of the calling process is a regular file of `device`.  Asks no
 * file system. */
bool request_is_on(int fd, dev_t device);

/* Map `cache`, inaccessible.  private: MAP_PRIVATE in place of MAP_SHARED. -> 0 or errno. */
int mapping_make(struct mapping *m, const struct map_request *q, int cache, bool private, struct caller *c);

/* It is registered: open it to the program, where the program wants it.  -> 0, or the errno
 * that mmap() fails with when it has been unmapped at m->at. */
int mapping_finish(struct mapping *m, const struct map_request *q, struct caller *c);

/* The call that mmap() makes at last, and does not report.  -> its number, or -1: none. */
long mapping_populates(const struct mapping *m, const struct map_request *q, uint64_t args[6]);

#endif
