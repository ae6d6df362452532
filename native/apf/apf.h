/* SPDX-License-Identifier: Apache-2.0
 *
 * apf.h - the host side of async page faults: a guest's slots and doorbell, outstanding tokens, and
 * their ends ("page ready" or an error) that wait for the guest to take them.  Must not know what
 * a fault is waiting for.
 */
#ifndef DAXFAULT_APF_ROOM_H
#define DAXFAULT_APF_ROOM_H

#include <pthread.h>
#include <stdatomic.h>

#include "abi/host.h"
#include "base/trace.h"
#include "write.h"

/* An outstanding token: struct kvm_async_pf.  No pointer to it is kept; the fault or failure with
 * this token ends it, unless the guest has turned async pf off. */
struct df_work {
	uint32_t token; /* 0: free */
	bool ended;	/* waits for the guest to take `word` */
	bool again;	/* its vCPU also waits in a fault on that page */
	bool readonly;	/* the mapping is read-only */
	uint64_t page;	/* in the guest */
	uint64_t order; /* in which it ended */
	struct df_word word;
};

struct df_vcpu {
	bool enabled; /* as last read */
	bool unacked; /* an end was delivered after ack number `acks` */
	uint32_t acks;
	uint32_t id; /* of the next token, vcpu->arch.apf.id */
	unsigned nworks;
	uint64_t ended;				/* number of ends so far */
	uint64_t signalled;			/* ns, time of the last signal */
	uint64_t last_gva;			/* of the last error, for DF_POSTED_STALE_GVA */
	struct df_work works[DF_APF_QUEUE + 1]; /* and one for wake-all */
	uint64_t error_gfns[DF_APF_QUEUE];	/* 0: none */
};

struct df_apf { /* of one guest */
	struct df_guest_options options;
	uint64_t guest; /* id, for the trace */
	struct df_tracer *tracer;
	struct df_slot *slots; /* shared with the guest: trust nothing in it; or NULL */
	int doorbell;	       /* our end: a byte for every MSR the guest wrote */
	int doorbell_guest;    /* its end, until it is handed over; or -1 */
	atomic_bool ended;     /* the guest has ended: its pid may be reused */
	pthread_mutex_t lock;  /* `vcpus`, and writes to slots; a leaf, but for the tracer's */
	struct df_vcpu *vcpus; /* DF_VCPU_MAX, or NULL without slots */
};

/* How the vCPU of a fault waits. */
struct apf_wait {
	uint32_t wait;	/* enum df_wait */
	uint32_t token; /* "not present" was delivered: end it once; or 0 */
	int32_t vcpu;	/* its slot, or -1 */
	uint32_t state; /* enum df_cpu_state */
};

struct apf_fault {
	uint64_t address; /* exact */
	uint64_t offset;  /* in the file, for the trace */
	uint64_t seen;	  /* ns, when the thread was last seen in the fault */
	int32_t tid;
	bool readonly; /* the mapping is read-only */
};

enum apf_end {
	APF_DROPPED, /* the guest has turned async pf off since */
	APF_ENDED,
	APF_ENDED_WAKE, /* and its vCPU sits in a fault on the page: wake that */
};

/* ---- apf.c: tokens.  All of these take apf->lock. */
/* Opens the doorbell only, and that if it `rings`; apf_share() adds the slots.  -> 0 or a negative
 * errno, both. */
int apf_open(struct df_apf *apf, uint64_t guest, bool rings, struct df_tracer *tracer);
int apf_share(struct df_apf *apf, int area, const struct df_guest_options *options);
void apf_close(struct df_apf *apf);
/* Decide how a fault waits, and deliver "not present" if it waits with a token. */
struct apf_wait apf_ask(struct df_apf *apf, const struct apf_fault *fault);
/* The thread that was in a fault at `seen` (ns) was sent a signal: it has left the fault or will. */
bool apf_left(struct df_apf *apf, int vcpu, uint64_t seen);
/* The vCPU of this token has faulted on the same page again: it is halted until the token ends,
 * as in __kvm_faultin_pfn(). */
void apf_again(struct df_apf *apf, int vcpu, uint32_t token);
/* End the record's token, with an error if `bad`. */
enum apf_end apf_end(struct df_apf *apf, const struct df_failure *record, bool bad);
/* The doorbell rang.  false: it is broken. */
bool apf_bell(struct df_apf *apf);

/* ---- event.c: signals, and errors without a token */
/* -> the slot of a thread, or -1. */
int apf_slot(const struct df_apf *apf, int tid);
uint32_t apf_state(const struct df_apf *apf, int vcpu);
bool apf_interruptible(const struct df_apf *apf, int vcpu);
/* The guest's errors are granted and enabled on this vCPU. */
bool apf_takes_errors(const struct df_apf *apf, int vcpu);
/* Under apf->lock: */
int apf_signal(struct df_apf *apf, int vcpu, int tid, int number);
void apf_interrupt(struct df_apf *apf, int vcpu);
/* DF_GUEST_ERROR_GFNS: -> the page is remembered as failed; forgets it. */
bool apf_recall(struct df_vcpu *v, uint64_t page);
/* These take apf->lock.  DF_GUEST_ERROR_GFNS: the next fault there is synchronous. */
void apf_remember(struct df_apf *apf, int vcpu, uint64_t address);
/* Raise an error at the faulting instruction: 0 or a negative errno. */
int apf_raise(struct df_apf *apf, const struct df_failure *record);
bool apf_raised(struct df_apf *apf, const struct df_failure *record); /* not yet taken */
bool apf_withdraw(struct df_apf *apf, const struct df_failure *record);
/* Withdraw the errors in [start, start + len) that the guest has not taken yet. */
void apf_heal(struct df_apf *apf, uint64_t start, uint64_t len);

#endif
