/* SPDX-License-Identifier: Apache-2.0
 *
 * internal.h - between the parts of the guard: which threads are guarded (guards.c), what
 * stands in for which page (stand_in.c), the signal (sigbus.c), the interpreter (interpreter.c).
 *
 * One lock, in guards.c, is held wherever stand_in.c is entered, and only with all signals
 * blocked: a thread that holds it must not be interrupted by a handler that wants it.  What is
 * done under it may be done in a signal handler: system calls, no malloc, no touch of any mapping
 * that may fail.
 */
#ifndef DAXFAULT_GUARD_INTERNAL_H
#define DAXFAULT_GUARD_INTERNAL_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "guard.h"

enum {
	PAGE = 4096,
};

/* ---- stand_in.c */

struct origin {				/* what a page shows when nothing stands in for it */
	uint64_t device, inode, offset;
};

/* Make ready.  0 or -errno; may be called again. */
int stand_in_prepare(void);
/* The protection key of what stands in, or -1: this CPU or kernel has none. */
int stand_in_key(void);
/* Have zeros stand in for the page at `page`, or leave what does so already; `private`: only for
 * threads that have the key.  0, or -errno, and all is as it was: -ENOENT when nothing is mapped
 * there, -EOPNOTSUPP for huge pages. */
int stand_in(uint64_t page, bool private, struct origin *of);
/* Does anything stand in for any page? */
bool standing_in(void);
/* Put every page back where what stands in for it is still there.  `stored` is told of each
 * range whose stand-ins have been stored to. */
void stand_down(void (*stored)(uint64_t start, uint64_t end));

/* ---- guards.c */

/* A fault of the calling thread.  true: its access may be repeated now.  All signals are blocked. */
bool guards_catch(uint64_t address, int code, bool write);
/* Called, in a signal handler, when a guard of the process' main thread has noted a fault. */
extern void (*guards_tell)(void);

/* ---- sigbus.c */

/* See to it that SIGBUS is ours; who had it before is still called for what is not caught. */
int sigbus_install(void);

#endif
