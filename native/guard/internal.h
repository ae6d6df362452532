/* SPDX-License-Identifier: Apache-2.0
 *
 * internal.h - between the parts of the guard, lowest first: pages moved aside (aside.c), the
 * signal (sigbus.c), guards and their threads (guards.c), the interpreter (interpreter.c).
 *
 * Callers of aside.c hold the one lock, in guards.c.  It is taken only with all signals blocked,
 * so that no handler that takes it interrupts its holder.  Code under it is async-signal-safe:
 * system calls, no malloc, no access to a mapping that may fail.
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

struct origin { /* the file and offset behind a page that has a stand-in */
	uint64_t device, inode, offset;
};

/* Map the templates, once.  -> 0 or -errno; may be called again. */
int stand_in_prepare(void);
/* -> the protection key of private stand-ins, or -1: this CPU or kernel has none. */
int stand_in_key(void);
/* Replace the page at `page` by a stand-in, or keep the one that is there.  `private`: only
 * threads that have the key can access it.  -> 0, or -errno with nothing changed: -ENOENT when
 * nothing is mapped there, -EOPNOTSUPP for huge pages. */
int stand_in(uint64_t page, bool private, struct origin *of);
/* Put back every page whose stand-in is still in place.  Calls `stored` for each range whose
 * stand-ins have been stored to. */
void stand_down(void (*stored)(uint64_t start, uint64_t end));

/* ---- sigbus.c */

/* A fault of the calling thread, all signals blocked.  -> true: the access can be repeated. */
typedef bool sigbus_catch(uint64_t address, int code, bool write);

/* Install the handler of SIGBUS.  It calls `function` for each fault, and the earlier handler for
 * those that `function` does not catch.  -> 0 or -errno. */
int sigbus_install(sigbus_catch *function);

/* ---- guards.c */

/* Called in a signal handler after a guard of the process's main thread has noted a fault. */
extern void (*guards_notify)(void);

#endif
