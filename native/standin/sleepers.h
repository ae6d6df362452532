/* SPDX-License-Identifier: Apache-2.0
 *
 * sleepers.h - which task sleeps on which token.  Owns no state.
 */
#ifndef DAXFAULT_SLEEPERS_H
#define DAXFAULT_SLEEPERS_H

#include <stdbool.h>
#include <stdint.h>

enum {
	TASK_COUNT = 96, /* on one vCPU: more than ASYNC_PF_PER_VCPU */
	/* A correct host has at most 64 outstanding tokens.  With a hostile one, the oldest
	 * entry is overwritten. */
	SLEEPERS_EARLY_MAX = 128,
	SLEEPERS_DECLINED_MAX = 128,
};

/* An exception that the guest kernel took: from the shared area, or, with the address only, from a
 * SIGBUS of this kernel. */
struct fault {
	uint64_t address;
	int si_code;
	int32_t error;
	uint32_t reason;
	uint32_t attempts;
};

struct wakeup {
	bool error; /* the page failed, as `fault` says */
	struct fault fault;
};

/* The tokens of one vCPU.  Linux (arch/x86/kernel/kvm.c) has one table for all CPUs, because tasks
 * migrate. */
struct sleepers {
	uint32_t parked[TASK_COUNT]; /* 0: this task does not sleep */
	struct {
		uint32_t token; /* 0: free */
		struct wakeup wakeup;
	} early[SLEEPERS_EARLY_MAX];
	uint32_t declined[SLEEPERS_DECLINED_MAX];
	unsigned int next_early, next_declined;
};

enum sleepers_park {
	SLEEPERS_PARKED,    /* the task must not run before its wake-up */
	SLEEPERS_WAS_EARLY, /* READY came first: no sleep */
	SLEEPERS_REFUSED,   /* the token is invalid, or another task sleeps on it */
};

enum {			       /* beside the number of the task that wakes */
	SLEEPERS_DUMMY = -1,   /* no task sleeps on it yet */
	SLEEPERS_DROPPED = -2, /* no task will sleep on it */
};

enum sleepers_park sleepers_park(struct sleepers *s, uint32_t token, unsigned int task,
				 struct wakeup *early);
void sleepers_decline(struct sleepers *s, uint32_t token);
int sleepers_wake(struct sleepers *s, uint32_t token, const struct wakeup *wakeup);
unsigned int sleepers_wake_all(struct sleepers *s, uint8_t tasks[TASK_COUNT]);

#endif
