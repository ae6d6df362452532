/* SPDX-License-Identifier: Apache-2.0
 *
 * internal.h - between the parts of the guard, lowest first: pages moved aside (aside.c), the
 * signal (sigbus.c), guards and their threads (guards.c), the interpreter (interpreter.c).
 *
 * One lock, in guards.c, is held wherever aside.c is entered, and only with all signals
 * blocked: a thread that holds it must not be interrupted by a handler that takes it.  Everything
 * under it is safe in a signal handler: system calls, no malloc, no touch of any mapping
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

/* ---- aside.c */

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
/* Put every page back where what stands in for it is still there.  `stored` is called for
 * each range whose stand-ins have been stored to. */
void stand_down(void (*stored)(uint64_t start, uint64_t end));

/* ---- sigbus.c */

/* A fault of the calling thread, all signals blocked.  -> true: its access may be repeated now. */
typedef bool sigbus_catch(uint64_t address, int code, bool write);

/* Make SIGBUS ours, and have `function` asked about each fault; the earlier handler is called for those
 * that it does not catch. */
int sigbus_install(sigbus_catch *function);

/* ---- guards.c */

/* Called, in a signal handler, when a guard of the process' main thread has noted a fault. */
extern void (*guards_notify)(void);

#endif
