/* SPDX-License-Identifier: Apache-2.0
 *
 * guard.h - lets a thread go on after a SIGBUS from a file mapping.
 * cffi reads the text between the markers (see abi.h).
 *
 * While a thread is guarded, a page that fails is moved aside and replaced by a page of zeros (its
 * stand-in), so that the access completes.  The guard notes the fault.  The holder of the guard
 * must read its notes before it uses any result computed meanwhile.  It then puts the pages back;
 * a page that still fails raises SIGBUS again.
 */
#ifndef DAXFAULT_GUARD_H
#define DAXFAULT_GUARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* DF_CDEF_BEGIN */

enum {
	DF_GUARD_FAULTS = 64, /* notes that a guard can hold */
};

struct df_guard; /* belongs to the thread that entered it */

struct df_guard_span { /* [start, start + len), addresses */
	uint64_t start;
	uint64_t len;
};

struct df_guard_fault {	  /* a page that failed, or several in a row */
	uint64_t address; /* exact, of the first access */
	uint64_t pages;	  /* number of pages that failed, from this address's page on */
	uint64_t device;  /* st_dev and st_ino of the file; */
	uint64_t inode;	  /* 0: no file */
	uint64_t offset;  /* of `address` in it, bytes */
	uint64_t time_ns; /* CLOCK_MONOTONIC */
	int32_t tid;	  /* of the access */
	int32_t code;	  /* si_code: BUS_ADRERR or BUS_MCEERR_AR */
	uint32_t write;	  /* 1: a store to the page was lost */
	uint32_t pad;
};

/* Guard the calling thread until df_guard_leave().  Guards nest: the innermost one catches.  With
 * spans, the guard catches faults in those only.  all_threads: it also catches the faults of
 * threads that have no guard for the address.
 * -> 0, or -errno: -ENOMEM; the first call may also return an error of its setup. */
int df_guard_enter(const struct df_guard_span *spans, size_t nspans, bool all_threads,
		   struct df_guard **out);
/* -> the number of notes.  Copies at most DF_GUARD_FAULTS of them to `out`, which may be NULL.
 * Any thread may call it. */
uint64_t df_guard_faults(struct df_guard *guard, struct df_guard_fault *out);
/* df_guard_faults(); then puts all pages back and clears the notes. */
uint64_t df_guard_take(struct df_guard *guard, struct df_guard_fault *out);
/* Stop catching, and put all pages back.  Any thread may call it. */
void df_guard_leave(struct df_guard *guard);
/* Leave the guard if it was not left, and free it. */
void df_guard_free(struct df_guard *guard);
/* Stand-ins are inaccessible to unguarded threads on this machine (pkeys(7)). */
bool df_guard_private(void);

/* DF_CDEF_END */

#endif
