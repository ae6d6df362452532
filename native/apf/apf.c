/* SPDX-License-Identifier: Apache-2.0
 *
 * apf.c - the host side of async page faults: what virt/kvm/async_pf.c and
 * kvm_arch_async_page_*() of arch/x86/kvm/x86.c do for a vCPU.  Owns the tokens and the
 * ends that wait for the guest.  Must not resolve faults, nor choose what becomes of
 * one that failed.
 *
 * The slot is the guest's.  What is read from it is believed, since a guest can deceive
 * only itself with it; what must stay true (how many tokens, for which pages) is kept
 * here.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "engine/internal.h"

#define TOKEN_SHIFT 12			/* alloc_apf_token() */
#define BELL_MOST 64			/* bytes taken at once; more are as good as one */
#define LEAVING_NS 1000000u		/* how long a thread may take to hear a signal */

int apf_new(struct df_guest *guest)
{
	/* 0.5 MiB, of which a guest that never turns async pf on costs no page */
	guest->vcpus = guest->slots ? calloc(DF_VCPU_MAX, sizeof(*guest->vcpus)) : NULL;
	return guest->slots && !guest->vcpus ? -ENOMEM : 0;
}

void apf_free(struct df_guest *guest)
{
	free(guest->vcpus);
	pthread_mutex_destroy(&guest->apf_lock);
}

/* ------------------------------------------------------------------- tokens */

static struct df_work *find_work(struct df_vcpu *v, uint32_t token)
{
	for (unsigned i = 0; token && i <= DF_APF_QUEUE; i++)
		if (v->works[i].token == token)
			return &v->works[i];
	return NULL;
}

static bool page_outstanding(const struct df_vcpu *v, uint64_t page)
{
	for (unsigned i = 0; i < DF_APF_QUEUE; i++)
		if (v->works[i].token && v->works[i].page == page)
			return true;
	return false;
}

/* alloc_apf_token(), since 5.8 (9ce372b33a2e): 0 means "the slot is free". */
static uint32_t next_token(const struct df_guest *guest, int vcpu)
{
	uint32_t *id = &guest->vcpus[vcpu].id;

	if (!((guest->options.token_id + *id) << TOKEN_SHIFT))
		++*id;
	return (guest->options.token_id + (*id)++) << TOKEN_SHIFT | (uint32_t)vcpu;
}

static struct df_work *add_work(struct df_vcpu *v, uint32_t token, uint64_t page)
{
	for (unsigned i = 0; i < DF_APF_QUEUE; i++)
		if (!v->works[i].token) {
			v->works[i] = (struct df_work){ .token = token, .page = page };
			v->nworks++;
			return &v->works[i];
		}
	return NULL;
}

static void drop_work(struct df_vcpu *v, struct df_work *work)
{
	if (work != &v->works[DF_APF_QUEUE])
		v->nworks--;
	work->token = 0;
}

static void end_work(struct df_vcpu *v, struct df_work *work, const struct df_word *word)
{
	work->ended = true;
	work->order = v->ended++;
	work->word = *word;
	work->word.token = work->token;
}

/* ------------------------------------------------------------------- delivery */

static struct df_work *oldest_end(struct df_vcpu *v)
{
	struct df_work *oldest = NULL;

	for (unsigned i = 0; i <= DF_APF_QUEUE; i++) {
		struct df_work *work = &v->works[i];

		if (work->token && work->ended && (!oldest || work->order < oldest->order))
			oldest = work;
	}
	return oldest;
}

/* With interrupts no second end comes before the ACK, which is when KVM looks again. */
static void take_ack(struct df_guest *guest, int vcpu)
{
	struct df_vcpu *v = &guest->vcpus[vcpu];
	struct df_slot *slot = &guest->slots[vcpu];
	uint32_t acks = __atomic_load_n(&slot->acks, __ATOMIC_ACQUIRE);

	if (!v->unacked || acks == v->acks)
		return;
	v->unacked = false;
	TRACE(&guest->engine->tracer, .kind = DF_TRACE_ACK, .guest = guest->id, .vcpu = vcpu,
	      .tid = (int32_t)__atomic_load_n(&slot->tid, __ATOMIC_RELAXED), .value = acks);
}

/* kvm_arch_can_dequeue_async_page_present(); in 2020 kvm_can_do_async_pf() */
static bool may_deliver(struct df_guest *guest, int vcpu)
{
	struct df_slot *slot = &guest->slots[vcpu];

	if (guest->vcpus[vcpu].unacked || !df_slot_room(slot, guest->options.abi))
		return false;
	if (guest->options.abi != DF_ABI_RFC_V1 || apf_interruptible(guest, vcpu))
		return true;
	/* an exception: the guest rings when it finds this */
	__atomic_store_n(&slot->irr, 1, __ATOMIC_SEQ_CST);
	return apf_interruptible(guest, vcpu);
}

/* kvm_check_async_pf_completion().  One: there is one slot. */
static void deliver_next(struct df_guest *guest, int vcpu)
{
	struct df_vcpu *v = &guest->vcpus[vcpu];
	struct df_slot *slot = &guest->slots[vcpu];
	int tid = (int)__atomic_load_n(&slot->tid, __ATOMIC_RELAXED);
	struct df_work *work;

	if (!v->enabled)
		return;
	take_ack(guest, vcpu);
	work = oldest_end(v);
	if (!work || !may_deliver(guest, vcpu))
		return;
	TRACE(&guest->engine->tracer, .kind = work->word.bad ? DF_TRACE_ERROR : DF_TRACE_READY,
	      .guest = guest->id, .address = work->page, .token = work->token, .tid = tid,
	      .vcpu = vcpu, .value = work->word.reason, .error = work->word.error);
	v->acks = __atomic_load_n(&slot->acks, __ATOMIC_ACQUIRE);
	df_slot_end(slot, guest->options.abi, &work->word);
	drop_work(v, work);
	if (guest->options.abi == DF_ABI_RFC_V1) {
		apf_signal(guest, vcpu, tid, DF_APF_EXCEPTION);
	} else {
		v->unacked = true;
		apf_interrupt(guest, vcpu);
	}
}

/* kvm_pv_enable_async_pf(), kvm_clear_async_pf_completion_queue(),
 * kvm_async_pf_wakeup_all().  -> a wake-all is to be delivered. */
static bool look_at_msr(struct df_guest *guest, int vcpu)
{
	struct df_vcpu *v = &guest->vcpus[vcpu];
	const struct df_guest_options *options = &guest->options;
	bool on = df_abi_enabled(options->abi, options->cpuid,
				 __atomic_load_n(&guest->slots[vcpu].msr_en, __ATOMIC_ACQUIRE));
	struct df_work *all = &v->works[DF_APF_QUEUE];

	if (on == v->enabled)
		return false;
	v->enabled = on;
	v->unacked = false;
	for (unsigned i = 0; i <= DF_APF_QUEUE; i++)
		v->works[i].token = 0;
	v->nworks = 0;
	if (on) {
		*all = (struct df_work){ .token = DF_TOKEN_ALL };
		end_work(v, all, &(struct df_word){ 0 });
		TRACE(&guest->engine->tracer, .kind = DF_TRACE_WAKE_ALL, .guest = guest->id,
		      .token = DF_TOKEN_ALL, .vcpu = vcpu);
	}
	return on;
}

bool apf_bell(struct df_guest *guest)
{
	char bytes[16];
	bool rang = false, alive = true;

	/* A guest may ring faster than we listen. */
	for (int i = 0; i < BELL_MOST; i++) {
		if (recv(guest->doorbell, bytes, sizeof(bytes), MSG_DONTWAIT) >= 0) {
			rang = true;
		} else if (errno != EINTR) {
			alive = errno == EAGAIN;
			break;
		}
	}
	if (!rang || !guest->vcpus)
		return alive;
	pthread_mutex_lock(&guest->apf_lock);
	for (int i = 0; i < DF_VCPU_MAX; i++) {
		look_at_msr(guest, i);
		deliver_next(guest, i);
	}
	pthread_mutex_unlock(&guest->apf_lock);
	return alive;
}

/* ------------------------------------------------------------------- not present */

/* A vCPU of KVM's is in its fault until that is dealt with.  Our thread takes a signal
 * meanwhile, may run another task, and repeats the access later: what was asked of this
 * fault concerns nobody then.  A guest that has our signals blocked is sent no second
 * one, so a fault that does not go away is believed in the end. */
bool apf_left(struct df_guest *guest, int vcpu, uint64_t seen)
{
	uint64_t signalled;

	if (vcpu < 0)
		return false;
	pthread_mutex_lock(&guest->apf_lock);
	signalled = guest->vcpus[vcpu].signalled;
	pthread_mutex_unlock(&guest->apf_lock);
	/* Or it had left before its fault was read, and is in our handler. */
	return signalled > seen ||
	       (signalled + LEAVING_NS > seen &&
		(__atomic_load_n(&guest->slots[vcpu].irr, __ATOMIC_ACQUIRE) ||
		 !(apf_state(guest, vcpu) & DF_CPU_IF)));
}

/* kvm_can_do_async_pf(), __kvm_faultin_pfn(), kvm_setup_async_pf(),
 * kvm_can_deliver_async_pf(), in this order */
static enum df_wait tell(struct df_guest *guest, int vcpu, struct df_fault *fault)
{
	struct df_vcpu *v = &guest->vcpus[vcpu];
	struct df_slot *slot = &guest->slots[vcpu];
	uint64_t page = PAGE_DOWN(fault->address);
	uint64_t msr = __atomic_load_n(&slot->msr_en, __ATOMIC_ACQUIRE);
	struct df_work *work;

	fault->state = apf_state(guest, vcpu);
	if (look_at_msr(guest, vcpu)) {
		deliver_next(guest, vcpu);	/* before any token that it must not wake */
		return DF_WAIT_HALTED;
	}
	if (apf_recall(v, page))
		return DF_WAIT_SYNC;
	if (fault->state & DF_CPU_SYSCALL)
		return DF_WAIT_HALTED;
	if (!(fault->state & DF_CPU_IF))
		return DF_WAIT_SYNC;
	if (!v->enabled || page_outstanding(v, page))
		return DF_WAIT_HALTED;
	if (v->nworks >= DF_APF_QUEUE)
		return DF_WAIT_SYNC;
	if (fault->state & DF_CPU_KERNEL && !(msr & DF_MSR_SEND_ALWAYS))
		return DF_WAIT_HALTED;
	fault->token = next_token(guest, vcpu);
	work = add_work(v, fault->token, page);
	work->readonly = fault->readonly;
	if (!df_slot_tell(slot, guest->options.abi, fault->token, fault->address) ||
	    apf_signal(guest, vcpu, fault->tid, DF_APF_EXCEPTION)) {
		drop_work(v, work);
		fault->token = 0;
		return DF_WAIT_HALTED;
	}
	return DF_WAIT_TOLD;
}

void apf_ask(struct df_fault *fault)
{
	struct df_guest *guest = fault->guest;
	int vcpu;

	if (fault->asked || fault->mends)
		return;
	fault->asked = true;
	fault->wait = DF_WAIT_SYNC;
	fault->vcpu = vcpu = apf_slot(guest, fault->tid);
	if (apf_left(guest, vcpu, fault->seen)) {
		fault->state = apf_state(guest, vcpu);
		fault->wait = DF_WAIT_HALTED;
	} else if (vcpu >= 0) {
		pthread_mutex_lock(&guest->apf_lock);
		fault->wait = tell(guest, vcpu, fault);
		pthread_mutex_unlock(&guest->apf_lock);
	}
	TRACE(&guest->engine->tracer,
	      .kind = fault->wait == DF_WAIT_TOLD ? DF_TRACE_NOT_PRESENT : DF_TRACE_HALT,
	      .guest = guest->id, .address = fault->address, .offset = fault->offset,
	      .token = fault->token, .tid = fault->tid, .vcpu = vcpu, .value = fault->wait);
}

/* ------------------------------------------------------------------- the end of a wait */

/* What the host knows as the address.  RFC v1 takes EXIT_QUALIFICATION's guest linear
 * address, and our guest kernel's accesses are those that have none. */
static uint64_t known_gva(struct df_guest *guest, struct df_vcpu *v, uint64_t address,
			  uint32_t state)
{
	if (guest->options.abi != DF_ABI_RFC_V1 || !(state & DF_CPU_KERNEL)) {
		v->last_gva = address;
		return address;
	}
	if (guest->options.posted & (DF_POSTED_GLA_OR | DF_POSTED_STALE_GVA))
		return v->last_gva;
	return 0;
}

/* The 1 of get_user_pages() was an error as posted; and GUP for writing fails where
 * the mapping is not for writing. */
static bool posted_error(const struct df_guest *guest, const struct df_work *work)
{
	return (guest->options.posted & DF_POSTED_SUCCESS_IS_ERROR) ||
	       (guest->options.posted & DF_POSTED_FOLL_WRITE && work->readonly);
}

void apf_again(struct df_fault *told)
{
	struct df_guest *guest = told->guest;
	struct df_work *work;

	pthread_mutex_lock(&guest->apf_lock);
	work = find_work(&guest->vcpus[told->vcpu], told->token);
	if (work)
		work->again = true;
	pthread_mutex_unlock(&guest->apf_lock);
	TRACE(&guest->engine->tracer, .kind = DF_TRACE_HALT, .guest = guest->id, .address = told->address,
	      .offset = told->offset, .tid = told->tid, .vcpu = told->vcpu,
	      .value = DF_WAIT_HALTED);
}

bool apf_end(struct df_guest *guest, const struct df_failure *record, bool bad)
{
	int vcpu = record->vcpu;
	struct df_vcpu *v = &guest->vcpus[vcpu];
	struct df_work *work;
	bool again = false;

	pthread_mutex_lock(&guest->apf_lock);
	work = find_work(v, record->token);
	if (work && !work->ended) {
		struct df_word word = {
			.error = record->error,
			.reason = record->reason,
			.attempts = record->attempts,
		};

		word.bad = bad || (posted_error(guest, work) && apf_tells_errors(guest, vcpu));
		if (word.bad)
			word.gva = known_gva(guest, v, record->address, record->state);
		end_work(v, work, &word);
		again = work->again || df_slot_told(&guest->slots[vcpu], guest->options.abi, record->token);
		deliver_next(guest, vcpu);
	}
	pthread_mutex_unlock(&guest->apf_lock);
	/* A thread that has our signal blocked still sits in its fault, and will not hear
	 * the end either; one that came again waits there for another task.  They take the
	 * fault once more, and are asked anew. */
	if (again)
		uffd_wake(guest->uffd, PAGE_DOWN(record->address), PAGE);
	return work;
}

void apf_ready(struct df_fault *fault)
{
	struct df_failure record = {
		.address = fault->address,
		.token = fault->token,
		.vcpu = fault->vcpu,
		.state = fault->state,
	};

	if (fault->token)
		apf_end(fault->guest, &record, false);
	fault->token = 0;
}
