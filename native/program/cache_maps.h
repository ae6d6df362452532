/* SPDX-License-Identifier: Apache-2.0
 *
 * cache_maps.h - which of a process's mappings show page caches of the host.
 *
 * Owns the reading of /proc/PID/maps.  May be called from a signal handler and after
 * fork(); must not map, and remembers nothing.
 */
#ifndef DAXFAULT_PROGRAM_CACHE_MAPS_H
#define DAXFAULT_PROGRAM_CACHE_MAPS_H

#include <stdbool.h>
#include <stdint.h>

struct cache_mapping {
	uint64_t start, end;		/* bytes, half-open */
	bool private;			/* MAP_PRIVATE */
};

#define MAPS_SELF "/proc/self/maps"

/* Show `visit` every mapping of a page cache that overlaps [start, end), in ascending
 * order, until it returns true; it may change those it has been shown.  maps: the path of
 * the process's proc_pid_maps(5).
 * -> 1 when it returned true, 0 when it never did, -errno when they cannot be read. */
int maps_each_cache(const char *maps, uint64_t start, uint64_t end,
		    bool (*visit)(const struct cache_mapping *, void *), void *arg);

#endif
