/* SPDX-License-Identifier: Apache-2.0
 *
 * laps.h - timing first touches: the same loop for the stand-in and for the programs it is
 * compared with.  Owns no state.
 */
#ifndef DAXFAULT_LAPS_H
#define DAXFAULT_LAPS_H

#include <stdint.h>

struct laps {
	uint64_t count;
	uint64_t total;		 /* ns, of all loads together */
	uint64_t p50, p99, most; /* ns, of one load */
};

/* Load one byte every `stride` bytes of `len` and time each load.  seed 0: in ascending order;
 * otherwise in a random order that defeats read-ahead.  `room` holds one uint32_t per load. */
void laps_run(const volatile uint8_t *from, uint64_t len, uint64_t stride, uint64_t seed,
	      uint32_t *room, struct laps *out);

#endif
