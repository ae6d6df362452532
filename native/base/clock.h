/* SPDX-License-Identifier: Apache-2.0
 *
 * clock.h - the clock of all deadlines and waits: CLOCK_MONOTONIC, which a change of the time of
 * day does not affect.  Owns no state.
 */
#ifndef DAXFAULT_CLOCK_H
#define DAXFAULT_CLOCK_H

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <time.h>

#define NS_PER_SECOND 1000000000u

static inline uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * NS_PER_SECOND + (uint64_t)t.tv_nsec;
}

/* Wait on a condition until now_ns() reaches `until`; then -> false.  The clock that the
 * condition was initialised with does not matter. */
static inline bool clock_wait(pthread_cond_t *condition, pthread_mutex_t *lock, uint64_t until)
{
	struct timespec t = { (time_t)(until / NS_PER_SECOND), (long)(until % NS_PER_SECOND) };

	return pthread_cond_clockwait(condition, lock, CLOCK_MONOTONIC, &t) != ETIMEDOUT;
}

#endif
