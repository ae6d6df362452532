/* SPDX-License-Identifier: Apache-2.0
 *
 * sleepers.c - which task sleeps on which token.
 *
 * Handles three orders of events: NOT_PRESENT before READY (the usual one), READY before
 * NOT_PRESENT (a dummy waits for its sleeper, as in Linux), and a NOT_PRESENT without a sleeper,
 * after which READY must not leave a dummy.  Pure: no signals, no I/O, no state.  The tables are
 * short, so they are searched linearly.
 */
#include <string.h>

#include "abi/apf.h"
#include "sleepers.h"

static bool usable(uint32_t token)
{
	return token != 0 && token != DF_TOKEN_ALL;
}

static int find_parked(const struct sleepers *s, uint32_t token)
{
	int task;

	for (task = 0; task < TASK_COUNT; task++) {
		if (s->parked[task] == token)
			return task;
	}
	return -1;
}

static int find_early(const struct sleepers *s, uint32_t token)
{
	int i;

	for (i = 0; i < SLEEPERS_EARLY_MAX; i++) {
		if (s->early[i].token == token)
			return i;
	}
	return -1;
}

static int find_declined(const struct sleepers *s, uint32_t token)
{
	int i;

	for (i = 0; i < SLEEPERS_DECLINED_MAX; i++) {
		if (s->declined[i] == token)
			return i;
	}
	return -1;
}

/* The page of `task` is not present.  WAS_EARLY fills *early in. */
enum sleepers_park sleepers_park(struct sleepers *s, uint32_t token, unsigned int task,
				 struct wakeup *early)
{
	int i;

	if (!usable(token) || find_parked(s, token) >= 0)
		return SLEEPERS_REFUSED;
	i = find_early(s, token);
	if (i >= 0) {
		*early = s->early[i].wakeup;
		s->early[i].token = 0;
		return SLEEPERS_WAS_EARLY;
	}
	i = find_declined(s, token);
	if (i >= 0)
		s->declined[i] = 0; /* used again: now its READY counts */
	s->parked[task] = token;
	return SLEEPERS_PARKED;
}

/* The interrupted task cannot sleep: the access is repeated instead. */
void sleepers_decline(struct sleepers *s, uint32_t token)
{
	int i;

	if (!usable(token) || find_parked(s, token) >= 0 || find_declined(s, token) >= 0)
		return;
	i = find_early(s, token);
	if (i >= 0) {
		s->early[i].token = 0;
		return;
	}
	s->declined[s->next_declined] = token;
	s->next_declined = (s->next_declined + 1) % SLEEPERS_DECLINED_MAX;
}

/* The wait for `token` is over: the task to wake, SLEEPERS_DUMMY or _DROPPED. */
int sleepers_wake(struct sleepers *s, uint32_t token, const struct wakeup *wakeup)
{
	int i;

	if (!usable(token))
		return SLEEPERS_DROPPED;
	i = find_parked(s, token);
	if (i >= 0) {
		s->parked[i] = 0;
		return i;
	}
	i = find_declined(s, token);
	if (i >= 0) {
		s->declined[i] = 0;
		return SLEEPERS_DROPPED;
	}
	if (find_early(s, token) >= 0)
		return SLEEPERS_DROPPED; /* a second READY: the first counts */
	s->early[s->next_early].token = token;
	s->early[s->next_early].wakeup = *wakeup;
	s->next_early = (s->next_early + 1) % SLEEPERS_EARLY_MAX;
	return SLEEPERS_DUMMY;
}

/* Token ~0.  The host has dropped all its tokens and sends no READY for them, so the dummies are
 * removed too (apf_task_wake_all()).  -> the number of tasks to wake; `tasks` has them. */
unsigned int sleepers_wake_all(struct sleepers *s, uint8_t tasks[TASK_COUNT])
{
	unsigned int n = 0, task;

	for (task = 0; task < TASK_COUNT; task++) {
		if (s->parked[task])
			tasks[n++] = (uint8_t)task;
	}
	memset(s, 0, sizeof(*s));
	return n;
}
