/* SPDX-License-Identifier: Apache-2.0
 *
 * calls.h - the table of system calls that can touch a mapping, and the decision about each.
 *
 * Both ways into a program use it: the wrappers of the preloaded library, and the tracer, which
 * also generates its seccomp filter from it.  Makes no call on the program's behalf and must not
 * speak to the host.  May be called from a signal handler and after fork().
 */
#ifndef DAXFAULT_PROGRAM_CALLS_H
#define DAXFAULT_PROGRAM_CALLS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "mapping.h"

enum {
	CALL_ARGS = 6,
	CALL_TESTS = 3,
};

struct call {
	long number; /* SYS_* */
	uint64_t args[CALL_ARGS];
};

/* The state of the process that a decision depends on. */
struct call_view {
	int task;     /* as for cache_maps_each(): MAPS_SELF, or the tracee's thread */
	bool mapped;  /* there may be mappings of page caches */
	bool demoted; /* some may be demoted: MAP_PRIVATE in place of MAP_SHARED */
	/* F_GETFL of a descriptor that is a regular file on the mount, or -1. */
	int (*file)(struct call_view *, int fd);
	/* Have the kernel drop what it has cached of the file that was last asked for. */
	void (*drop)(struct call_view *, int fd);
	/* -> where the first demoted mapping in [start, end) begins, but not before `start`; or `end`. */
	uint64_t (*first_demoted)(struct call_view *, uint64_t start, uint64_t end);
};

enum call_action {
	CALL_LEAVE,  /* to the kernel, as it is */
	CALL_REFUSE, /* it fails with `error`, and is not made */
	CALL_MAP,    /* mmap() of a file on the mount: of its page cache instead */
	CALL_MAKE,   /* `make` in its place, and then, if that succeeds: */
};

enum call_after {
	AFTER_NOTHING,
	AFTER_FAIL, /* the program's call fails with `error` */
	AFTER_CALL, /* `then` is made; calls_error_after() gives the result */
	AFTER_SYNC, /* the host writes [start, start + len) back; ENOMEM is success here: the
					 * range has holes, and the rest was synced */
};

struct call_decision {
	enum call_action action;
	enum call_after after;
	int error;
	struct call make, then;
	uint64_t start, len;
};

struct call_decision calls_decide(const struct call *c, struct call_view *v);

/* -> the errno of the program's call when its `then` failed with `error`, or 0. */
int calls_error_after(const struct call_decision *d, int error);

struct map_request calls_map_request(const struct call *c);

/* ---- the table */

/* A test of the low 32 bits of an argument; the tested arguments are ints. */
struct call_test {
	enum {
		TEST_END,
		TEST_IS,
		TEST_IS_NOT,
		TEST_ANY,
		TEST_NONE
	} kind; /* ANY, NONE: of these bits */
	int arg;
	uint32_t value;
};

struct call_row {
	const char *name;
	long number;
	const char *why; /* the reason for the decision */
	/* NULL: always left to the kernel.  Otherwise `decide` is called if the call passes all
	 * tests. */
	void (*decide)(const struct call *, struct call_view *, struct call_decision *);
	struct call_test tests[CALL_TESTS];
};

extern const struct call_row calls_table[];
extern const size_t calls_rows;

#endif
