/* SPDX-License-Identifier: Apache-2.0
 *
 * apf.h - the host side of async page faults, as the rest of the engine sees it:
 * outstanding tokens, and the ends that wait for a guest to take them.
 */
#ifndef DAXFAULT_APF_ROOM_H
#define DAXFAULT_APF_ROOM_H

#include "write.h"
#include "abi/host.h"

struct df_fault;
struct df_file;
struct df_guest;

/* A token a guest was told: struct kvm_async_pf.  Nothing points to it; whoever has the
 * token, a fault or a failure, ends it, unless the guest has turned async pf off. */
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

/* apf_event.c; under guest->apf_lock */
int apf_signal(struct df_guest *guest, int vcpu, int tid, int number);
void apf_interrupt(struct df_guest *guest, int vcpu);
/* DF_GUEST_ERROR_GFNS: this page failed; forget it. */
bool apf_recall(struct df_vcpu *v, uint64_t page);

/* without it */
uint32_t apf_state(const struct df_guest *guest, int vcpu);
bool apf_interruptible(const struct df_guest *guest, int vcpu);

/* All of these take guest->apf_lock, a leaf. */
int apf_new(struct df_guest *guest);
void apf_free(struct df_guest *guest);
/* The slot of a thread, -1: it has none. */
int apf_slot(const struct df_guest *guest, int tid);
/* Decide, once, how this fault waits: sets wait, vcpu, state and, when the guest was
 * told, token. */
void apf_ask(struct df_fault *fault);
/* The thread, seen in a fault then, has left it or is about to: it was sent a signal. */
bool apf_left(struct df_guest *guest, int vcpu, uint64_t seen);
/* The vCPU that was told of this fault has taken one on the same page: it is halted until
 * this one is over, as in __kvm_faultin_pfn(). */
void apf_again(struct df_fault *told);
/* The fault is over, without an error. */
void apf_ready(struct df_fault *fault);
/* End a token.  false: the guest has dropped it. */
bool apf_end(struct df_guest *guest, const struct df_failure *record, bool bad);
/* Raise an error at the faulting instruction: 0 or a negative errno. */
int apf_raise(struct df_guest *guest, const struct df_failure *record);
bool apf_raised(struct df_guest *guest, const struct df_failure *record);
bool apf_withdraw(struct df_guest *guest, const struct df_failure *record);
/* Errors in [start, start + len) that nobody has taken yet are no longer true. */
void apf_heal(struct df_guest *guest, uint64_t start, uint64_t len);
/* The guest's errors are granted and enabled on this vCPU. */
bool apf_tells_errors(const struct df_guest *guest, int vcpu);
/* DF_GUEST_ERROR_GFNS: the next fault there is synchronous. */
void apf_remember(struct df_guest *guest, int vcpu, uint64_t address);
/* The doorbell rang.  false: it is broken. */
bool apf_bell(struct df_guest *guest);

#endif
