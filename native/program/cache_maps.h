/* SPDX-License-Identifier: Apache-2.0
 *
 * cache_maps.h - finds the mappings of the host's page caches in a process.
 *
 * Owns how a page cache is recognized.  May be called from a signal handler and after fork().
 * Must not map, and keeps no state.
 */
#ifndef DAXFAULT_PROGRAM_CACHE_MAPS_H
#define DAXFAULT_PROGRAM_CACHE_MAPS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/maps.h"

#define USER_END (UINT64_C(1) << 47) /* mmap() goes beyond it only with a hint above it */

/* Call `visit` for every mapping of a page cache that overlaps [start, end), in ascending order,
 * until it returns true.  It may change the mapping it is called for.  `task` is MAPS_SELF or a
 * live thread.
 * -> 1 when `visit` returned true, 0 at the end, or a negative errno. */
int cache_maps_each(int task, uint64_t start, uint64_t end,
		    bool (*visit)(const struct maps_area *, void *), void *arg);

/* -> 1: there is such a mapping; otherwise as cache_maps_each(). */
int cache_maps_any(int task, uint64_t start, uint64_t end);

/* The first such mapping, with its flags if /proc/PID/smaps can be read.  -> as cache_maps_each(). */
int cache_maps_first(int task, uint64_t start, uint64_t end, struct maps_area *out);

/* Find the first private mapping of a page cache in [start, end) that has all `flags` (enum
 * maps_flag).
 * -> as cache_maps_each(); if 1, *at is where it begins, but not before `start`. */
int cache_maps_private(int task, uint64_t start, uint64_t end, unsigned int flags, uint64_t *at);

#endif
