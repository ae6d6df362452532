/* SPDX-License-Identifier: Apache-2.0
 *
 * cache_maps.h - which of the calling process's mappings show page caches of the host.
 *
 * Owns the reading of /proc/self/maps.  May be called from a signal handler and after
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

/* Show `visit` every mapping of a page cache that overlaps [start, end), in ascending
 * order, until it returns true.  `visit` may change those it has been shown.
 * -> 1 when it returned true, 0 when it never did, -errno when they cannot be read. */
int maps_each_cache(uint64_t start, uint64_t end, bool (*visit)(const struct cache_mapping *, void *), void *arg);

#endif
