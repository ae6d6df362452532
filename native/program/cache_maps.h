/* SPDX-License-Identifier: Apache-2.0
 *
 * cache_maps.h - which of a process's mappings show page caches of the host.
 *
 * Owns how a page cache is recognized.  May be called from a signal handler and after fork();
 * must not map, and remembers nothing.
 */
#ifndef DAXFAULT_PROGRAM_CACHE_MAPS_H
#define DAXFAULT_PROGRAM_CACHE_MAPS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/maps.h"

#define USER_END (UINT64_C(1) << 47)	/* unless a program asks for more by a hint */

/* Show `visit` every mapping of a page cache that overlaps [start, end), in ascending order, until
 * it returns true; it may change those it has been shown.  `task` is MAPS_SELF or a live thread.
 * -> 1 when it returned true, 0 when it never did, or a negative errno. */
int cache_maps_each(int task, uint64_t start, uint64_t end, bool (*visit)(const struct maps_area *, void *),
		    void *arg);

/* Is there any?  -> as cache_maps_each(). */
int cache_maps_any(int task, uint64_t start, uint64_t end);

/* The first of them, with its flags where /proc/PID/smaps can be read.  -> as cache_maps_each(). */
int cache_maps_first(int task, uint64_t start, uint64_t end, struct maps_area *out);

/* Where in [start, end) the first private one begins, at the earliest `start`.  `flags`: only one
 * that has all these (enum maps_flag). -> as cache_maps_each(), and *at when it is 1. */
int cache_maps_private(int task, uint64_t start, uint64_t end, unsigned int flags, uint64_t *at);

#endif
