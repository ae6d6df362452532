/* SPDX-License-Identifier: Apache-2.0
 *
 * guard.h - going on after a SIGBUS, for a thread that touches mappings that can fail.
 * The text between the markers is also cffi's (see abi.h).
 *
 * While a thread is guarded, a page that fails is moved aside and a page of zeros stands
 * in for it, so that the access ends and its caller goes on; the fault is noted in the
 * guard.  The holder of the guard must look at its notes before it believes anything that
 * was computed meanwhile, and then puts the pages back: whole, healed or failing.
 */
#ifndef DAXFAULT_GUARD_H
#define DAXFAULT_GUARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* DF_CDEF_BEGIN */

enum {
	DF_GUARD_FAULTS = 64,		/* notes a guard has room for */
};

struct df_guard;			/* belongs to the thread that entered it */

struct df_guard_span {			/* [start, start + len), addresses */
	uint64_t start;
	uint64_t len;
};

struct df_guard_fault {			/* a page that failed, or several in a row */
	uint64_t address;		/* exact, of the first access */
	uint64_t pages;			/* that failed, from this address's page on */
	uint64_t device;		/* st_dev and st_ino of the file; */
	uint64_t inode;			/* 0: no file */
	uint64_t offset;		/* of `address` in it, bytes */
	uint64_t time_ns;		/* CLOCK_MONOTONIC */
	int32_t tid;			/* of the access */
	int32_t code;			/* si_code: BUS_ADRERR or BUS_MCEERR_AR */
	uint32_t write;			/* 1: something was stored, which is lost */
	uint32_t pad;
};

/* Guard the calling thread until df_guard_leave(); it may be guarded already, then the inner
 * guard catches.  With spans, faults at other addresses are none of this guard's.  all_threads:
 * it also catches those of threads that have no guard for the address.
 * 0, or -errno: -ENOMEM; or, the first time, an error of setting up. */
int df_guard_enter(const struct df_guard_span *spans, size_t nspans, bool all_threads,
		   struct df_guard **out);
/* -> how many notes there are (at most DF_GUARD_FAULTS are copied to `out`, which may be
 * NULL); any thread may ask. */
uint64_t df_guard_faults(struct df_guard *guard, struct df_guard_fault *out);
/* df_guard_faults(), and begin again without notes, with all pages back in their places. */
uint64_t df_guard_take(struct df_guard *guard, struct df_guard_fault *out);
/* From now on it catches nothing; what stands in for pages that it has noted goes.  Any thread may. */
void df_guard_leave(struct df_guard *guard);
/* Leave it, if it was not left, and forget it. */
void df_guard_free(struct df_guard *guard);
/* Are pages that stand in out of reach of unguarded threads here (pkeys(7))? */
bool df_guard_private(void);

/* DF_CDEF_END */

#endif
