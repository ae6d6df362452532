/* SPDX-License-Identifier: Apache-2.0
 *
 * calls.h - the system calls of a program that can touch a mapping, and what becomes of each.
 *
 * Owns the one table of them, for both ways into a program: the preloaded library's wrappers ask
 * it, the tracer's seccomp filter is made from it, and the tracer asks it where that stops.  Makes
 * no call of the program's and must not speak to the host.  May be called from a signal handler
 * and after fork().
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
	long number;			/* SYS_* */
	uint64_t args[CALL_ARGS];
};

/* What the answer depends on, besides the call. */
struct call_view {
	int task;			/* whose mappings: MAPS_SELF, or the tracee's thread */
	bool mapped;			/* there may be mappings of page caches */
	bool demoted;			/* some may be private only because we made them so */
	/* F_GETFL of a descriptor that is a regular file on the mount, or -1. */
	int (*file)(struct call_view *, int fd);
	/* Where the first demoted mapping in [start, end) begins, at the earliest `start`, or `end`. */
	uint64_t (*first_demoted)(struct call_view *, uint64_t start, uint64_t end);
};

enum call_action {
	CALL_LEAVE,			/* to the kernel, as it is */
	CALL_REFUSE,			/* it fails with `error`, and is not made */
	CALL_MAP,			/* mmap() of a file on the mount: of its page cache instead */
	CALL_MAKE,			/* `make` in its place, and then, if that succeeds: */
};

enum call_after {
	AFTER_NOTHING,
	AFTER_FAIL,			/* it fails with `error` all the same */
	AFTER_CALL,			/* `then` is made; calls_error_after() has what that means */
	AFTER_SYNC,			/* the host writes [start, start + len) back; ENOMEM is success here: there
					 * are holes in the range, and the rest was synced */
};

struct call_decision {
	enum call_action action;
	enum call_after after;
	int error;
	struct call make, then;
	uint64_t start, len;
};

struct call_decision calls_decide(const struct call *c, struct call_view *v);

/* The errno of a call whose `then` failed with `error`, or 0. */
int calls_error_after(const struct call_decision *d, int error);

struct map_request calls_map_request(const struct call *c);

/* ---- the table */

/* Of the low 32 bits of an argument, which is all that the arguments tested have. */
struct call_test {
	enum { TEST_END, TEST_IS, TEST_IS_NOT, TEST_ANY, TEST_NONE } kind;	/* ANY, NONE: of these bits */
	int arg;
	uint32_t value;
};

struct call_row {
	const char *name;
	long number;
	const char *why;		/* it is left to the kernel, or treated as it is */
	/* NULL: it is left to the kernel, always.  Otherwise a call that passes all tests is decided. */
	void (*decide)(const struct call *, struct call_view *, struct call_decision *);
	struct call_test tests[CALL_TESTS];
};

extern const struct call_row calls_table[];
extern const size_t calls_rows;

#endif
