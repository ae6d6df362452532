/* SPDX-License-Identifier: Apache-2.0
 *
 * apf.h - the host side of async page faults: a guest's slots and doorbell, outstanding tokens, and
 * the ends that wait for the guest to take them.  Must not know what a fault is waiting for.
 */
#ifndef DAXFAULT_APF_ROOM_H
#define DAXFAULT_APF_ROOM_H

#include <pthread.h>
#include <stdatomic.h>

#include "abi/host.h"
#include "base/trace.h"
#include "write.h"

/* An outstanding token: struct kvm_async_pf.  Nothing points to it; the fault or failure that has
 * the token ends it, unless the guest has turned async pf off. */
struct df_work {
	uint32_t token;			/* 0: free */
	bool ended;			/* waits for the guest to take `word` */
	bool again;			/* its vCPU waits in a fault on that page, too */
	bool readonly;			/* of a mapping that is not for stores */
	uint64_t page;			/* in the guest */
	uint64_t order;			/* in which it ended */
	struct df_word word;
};

struct df_vcpu {
	bool enabled;			/* as we last saw it */
	bool unacked;			/* an end was delivered after ack number `acks` */
	uint32_t acks;
	uint32_t id;			/* of the next token, vcpu->arch.apf.id */
	unsigned nworks;
	uint64_t ended;			/* how many ends there were */
	uint64_t signalled;		/* ns, when we last sent a signal */
	uint64_t last_gva;		/* of the last error, for DF_POSTED_STALE_GVA */
	struct df_work works[DF_APF_QUEUE + 1];		/* and one for wake-all */
	uint64_t error_gfns[DF_APF_QUEUE];		/* 0: none */
};

/* One guest's. */
struct df_apf {
	struct df_guest_options options;
	uint64_t guest;			/* id, for the trace */
	struct df_tracer *tracer;
	struct df_slot *slots;		/* shared with the guest: trust nothing in it; or NULL */
	int doorbell;			/* our end: a byte for every MSR the guest wrote */
	int doorbell_guest;		/* its end, until it is handed over; or -1 */
	atomic_bool ended;		/* the guest's process may be another by now */
	pthread_mutex_t lock;		/* `vcpus`, and writes to slots; a leaf, but for the tracer's */
	struct df_vcpu *vcpus;		/* DF_VCPU_MAX, or NULL without slots */
};

/* How the vCPU of a fault waits. */
struct apf_wait {
	uint32_t wait;			/* enum df_wait */
	uint32_t token;			/* "not present" was delivered: to be ended, once; or 0 */
	int32_t vcpu;			/* its slot, or -1 */
	uint32_t state;			/* enum df_cpu_state */
};

struct apf_fault {
	uint64_t address;		/* exact */
	uint64_t offset;		/* in the file, for the trace */
	uint64_t seen;			/* when the thread last was in the fault */
	int32_t tid;
	bool readonly;			/* the mapping is not for stores */
};

enum apf_end {
	APF_DROPPED,			/* the guest has turned async pf off since */
	APF_ENDED,
	APF_ENDED_WAKE,			/* and its vCPU sits in a fault on the page: wake that */
};

/* ---- apf.c: tokens.  All of these take apf->lock. */
/* The doorbell, and nothing else: slots come with apf_share(). */
int apf_open(struct df_apf *apf, uint64_t guest, struct df_tracer *tracer);
int apf_share(struct df_apf *apf, int area, const struct df_guest_options *options);
void apf_close(struct df_apf *apf);
/* Decide how a fault waits, and deliver "not present" where it waits for a token. */
struct apf_wait apf_ask(struct df_apf *apf, const struct apf_fault *fault);
/* The thread, seen in a fault then, has left it or is about to: it was sent a signal. */
bool apf_left(struct df_apf *apf, int vcpu, uint64_t seen);
/* The vCPU of this token has taken a fault on the same page: it is halted until the token ends, as
 * in __kvm_faultin_pfn(). */
void apf_again(struct df_apf *apf, int vcpu, uint32_t token);
/* End the record's token, with an error if `bad`. */
enum apf_end apf_end(struct df_apf *apf, const struct df_failure *record, bool bad);
/* The doorbell rang.  false: it is broken. */
bool apf_bell(struct df_apf *apf);

/* ---- event.c: signals, and errors without a token */
/* The slot of a thread, -1: it has none. */
int apf_slot(const struct df_apf *apf, int tid);
uint32_t apf_state(const struct df_apf *apf, int vcpu);
bool apf_interruptible(const struct df_apf *apf, int vcpu);
/* The guest's errors are granted and enabled on this vCPU. */
bool apf_takes_errors(const struct df_apf *apf, int vcpu);
/* Under apf->lock: */
int apf_signal(struct df_apf *apf, int vcpu, int tid, int number);
void apf_interrupt(struct df_apf *apf, int vcpu);
bool apf_recall(struct df_vcpu *v, uint64_t page);	/* DF_GUEST_ERROR_GFNS: it failed; forget it */
/* These take it.  DF_GUEST_ERROR_GFNS: the next fault there is synchronous. */
void apf_remember(struct df_apf *apf, int vcpu, uint64_t address);
/* Raise an error at the faulting instruction: 0 or a negative errno. */
int apf_raise(struct df_apf *apf, const struct df_failure *record);
bool apf_raised(struct df_apf *apf, const struct df_failure *record);	/* not yet taken */
bool apf_withdraw(struct df_apf *apf, const struct df_failure *record);
/* Errors in [start, start + len) that the guest has not taken yet are no longer true. */
void apf_heal(struct df_apf *apf, uint64_t start, uint64_t len);

#endif
