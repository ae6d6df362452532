/* SPDX-License-Identifier: Apache-2.0
 *
 * laps.h - timing first touches: the same loop for the stand-in and for what it
 * is measured against.  Owns no state.
 */
#ifndef DAXFAULT_LAPS_H
#define DAXFAULT_LAPS_H

#include <stdint.h>

struct laps {
	uint64_t count;
	uint64_t total;			/* ns, of all loads together */
	uint64_t p50, p99, most;	/* ns, of one load */
};

/* Load a byte every `stride` of `len` bytes and time each load.  seed 0: in
 * order; else in an order that no read-ahead can guess.  `room` holds one
 * uint32_t a load. */
void laps_run(const volatile uint8_t *from, uint64_t len, uint64_t stride, uint64_t seed,
	      uint32_t *room, struct laps *out);

#endif
