/* SPDX-License-Identifier: Apache-2.0
 *
 * stress_vcpu.h - the guest kernel of a guest of the stress.
 */
#ifndef DAXFAULT_STRESS_VCPU_H
#define DAXFAULT_STRESS_VCPU_H

#include <setjmp.h>
#include <signal.h>
#include <stdint.h>

#include "stress.h"

/* One access under way: `landable` while it may be left by landing. */
struct access {
	sigjmp_buf landing;
	volatile sig_atomic_t landable;
	volatile uint64_t page; /* address */
};

extern _Thread_local struct access access_now;

int vcpu_area(void); /* -> the shared area's descriptor */
void vcpu_host(int doorbell, struct shared *shared);
void vcpu_enable(unsigned slot); /* for the calling thread */
void vcpu_toggle(unsigned slot); /* async pf off, and on again */
void vcpu_leave(unsigned slot);

#endif
