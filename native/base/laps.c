/* SPDX-License-Identifier: Apache-2.0
 *
 * laps.c - timing first touches (laps.h).
 */
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "laps.h"

static int ascending(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

/* A permutation of [0, n).  Multiplication by an odd number and xor-shift are permutations of
 * [0, next power of two); results outside [0, n) are mapped again. */
static uint64_t shuffled(uint64_t i, uint64_t n, uint64_t seed)
{
	uint64_t mask = n > 1 ? ~(uint64_t)0 >> __builtin_clzll(n - 1) : 0;

	if (!seed)
		return i;
	do {
		i = (i * (seed * 2 + 0x9e3779b97f4a7c15u) + seed) & mask;
		i ^= i >> ((64 - __builtin_clzll(mask | 1)) / 2 + 1);
		i = (i * 0xd1342543de82ef95u + 1) & mask;
	} while (i >= n);
	return i;
}

void laps_run(const volatile uint8_t *from, uint64_t len, uint64_t stride, uint64_t seed,
	      uint32_t *room, struct laps *out)
{
	uint64_t n = (len + stride - 1) / stride, start, lap, end;

	memset(room, 0, n * sizeof(*room)); /* do not time the faults of `room` */
	start = lap = now_ns();
	for (uint64_t i = 0; i < n; i++) {
		(void)from[shuffled(i, n, seed) * stride];
		end = now_ns();
		room[i] = end - lap > UINT32_MAX ? UINT32_MAX : (uint32_t)(end - lap);
		lap = end;
	}
	out->count = n;
	out->total = lap - start;
	qsort(room, n, sizeof(*room), ascending);
	out->p50 = room[n / 2];
	out->p99 = room[n - 1 - n / 100];
	out->most = room[n - 1];
}
