/* SPDX-License-Identifier: Apache-2.0
 *
 * apf.c - the host side of async page faults: what virt/kvm/async_pf.c and
 * kvm_arch_async_page_*() of arch/x86/kvm/x86.c do for a vCPU.  Owns the tokens and the
 * ends that wait for the guest.  Must not resolve faults, nor choose the answer to a failed
 * fault.
 *
 * The guest writes the slot.  The host trusts values it reads there only where a wrong value
 * harms the guest alone; it keeps the invariants (number of tokens, their pages) here.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "apf.h"
#include "base/cleanup.h"

#define TOKEN_SHIFT 12	    /* alloc_apf_token() */
#define BELL_MOST 64	    /* bytes taken at once; one byte says as much as many */
#define LEAVING_NS 1000000u /* how long a thread may take to receive a signal */

int apf_open(struct df_apf *apf, uint64_t guest, bool rings, struct df_tracer *tracer)
{
	int bell[2] = { -1, -1 };

	*apf = (struct df_apf){ .guest = guest, .tracer = tracer };
	/* Not an eventfd: the guest could change its flags for both ends. */
	if (rings && socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, bell))
		return -errno;
	apf->doorbell = bell[0];
	apf->doorbell_guest = bell[1];
	pthread_mutex_init(&apf->lock, NULL);
	return 0;
}

int apf_share(struct df_apf *apf, int area, const struct df_guest_options *options)
{
	int seals = fcntl(area, F_GET_SEALS);
	struct statfs fs;
	struct stat st;

	apf->options = *options;
	if (area < 0)
		return 0;
	/* If the guest could truncate the area, the host would get SIGBUS; also on hugetlbfs,
	 * where the guest could punch a hole while the pool is empty. */
	if (seals < 0 || !(seals & F_SEAL_SHRINK) || fstat(area, &st) || fstatfs(area, &fs) ||
	    fs.f_type != TMPFS_MAGIC || st.st_size < DF_AREA_SIZE)
		return -EINVAL;
	apf->slots = mmap(NULL, DF_AREA_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, area, 0);
	if (apf->slots == MAP_FAILED) {
		apf->slots = NULL;
		return -errno;
	}
	/* 0.5 MiB; no page of it is touched unless the guest turns async pf on */
	apf->vcpus = calloc(DF_VCPU_MAX, sizeof(*apf->vcpus));
	return apf->vcpus ? 0 : -ENOMEM;
}

void apf_close(struct df_apf *apf)
{
	if (apf->doorbell >= 0)
		close(apf->doorbell);
	if (apf->doorbell_guest >= 0)
		close(apf->doorbell_guest);
	free(apf->vcpus);
	pthread_mutex_destroy(&apf->lock);
	if (apf->slots)
		munmap(apf->slots, DF_AREA_SIZE);
}

/* ------------------------------------------------------------------- tokens */

static uint64_t page_of(uint64_t address)
{
	return address & ~(uint64_t)(DF_PAGE_SIZE - 1);
}

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
static uint32_t next_token(const struct df_apf *apf, int vcpu)
{
	uint32_t *id = &apf->vcpus[vcpu].id;

	if (!((apf->options.token_id + *id) << TOKEN_SHIFT))
		++*id;
	return (apf->options.token_id + (*id)++) << TOKEN_SHIFT | (uint32_t)vcpu;
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

/* With interrupts, no second end is delivered before the ACK: KVM looks again then. */
static void take_ack(struct df_apf *apf, int vcpu)
{
	struct df_vcpu *v = &apf->vcpus[vcpu];
	struct df_slot *slot = &apf->slots[vcpu];
	uint32_t acks = __atomic_load_n(&slot->acks, __ATOMIC_ACQUIRE);

	if (!v->unacked || acks == v->acks)
		return;
	v->unacked = false;
	TRACE(apf->tracer, .kind = DF_TRACE_ACK, .guest = apf->guest, .vcpu = vcpu,
	      .tid = (int32_t)__atomic_load_n(&slot->tid, __ATOMIC_RELAXED), .value = acks);
}

/* kvm_arch_can_dequeue_async_page_present(); in 2020 kvm_can_do_async_pf() */
static bool may_deliver(struct df_apf *apf, int vcpu)
{
	struct df_slot *slot = &apf->slots[vcpu];

	if (apf->vcpus[vcpu].unacked || !df_slot_room(slot, apf->options.abi))
		return false;
	if (apf->options.abi != DF_ABI_RFC_V1 || apf_interruptible(apf, vcpu))
		return true;
	/* an exception: a guest that reads this rings the doorbell */
	__atomic_store_n(&slot->irr, 1, __ATOMIC_SEQ_CST);
	return apf_interruptible(apf, vcpu);
}

/* kvm_check_async_pf_completion().  Delivers one end: there is one slot. */
static void deliver_next(struct df_apf *apf, int vcpu)
{
	struct df_vcpu *v = &apf->vcpus[vcpu];
	struct df_slot *slot = &apf->slots[vcpu];
	int tid = (int)__atomic_load_n(&slot->tid, __ATOMIC_RELAXED);
	struct df_work *work;

	if (!v->enabled)
		return;
	take_ack(apf, vcpu);
	work = oldest_end(v);
	if (!work || !may_deliver(apf, vcpu))
		return;
	TRACE(apf->tracer, .kind = work->word.bad ? DF_TRACE_ERROR : DF_TRACE_READY,
	      .guest = apf->guest, .address = work->page, .token = work->token, .tid = tid,
	      .vcpu = vcpu, .value = work->word.reason, .error = work->word.error);
	v->acks = __atomic_load_n(&slot->acks, __ATOMIC_ACQUIRE);
	df_slot_end(slot, apf->options.abi, &work->word);
	drop_work(v, work);
	if (apf->options.abi == DF_ABI_RFC_V1) {
		apf_signal(apf, vcpu, tid, DF_APF_EXCEPTION);
	} else {
		v->unacked = true;
		apf_interrupt(apf, vcpu);
	}
}

/* kvm_pv_enable_async_pf(), kvm_clear_async_pf_completion_queue(),
 * kvm_async_pf_wakeup_all().  -> true: deliver a wake-all. */
static bool look_at_msr(struct df_apf *apf, int vcpu)
{
	struct df_vcpu *v = &apf->vcpus[vcpu];
	const struct df_guest_options *options = &apf->options;
	bool on = df_abi_enabled(options->abi, options->cpuid,
				 __atomic_load_n(&apf->slots[vcpu].msr_en, __ATOMIC_ACQUIRE));
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
		TRACE(apf->tracer, .kind = DF_TRACE_WAKE_ALL, .guest = apf->guest,
		      .token = DF_TOKEN_ALL, .vcpu = vcpu);
	}
	return on;
}

bool apf_bell(struct df_apf *apf)
{
	char bytes[16];
	bool rang = false, alive = true;

	/* Bounded: a guest may ring faster than this loop reads. */
	for (int i = 0; i < BELL_MOST; i++) {
		if (recv(apf->doorbell, bytes, sizeof(bytes), MSG_DONTWAIT) >= 0) {
			rang = true;
		} else if (errno != EINTR) {
			alive = errno == EAGAIN;
			break;
		}
	}
	if (!rang || !apf->vcpus)
		return alive;
	GUARD(&apf->lock);
	for (int i = 0; i < DF_VCPU_MAX; i++) {
		look_at_msr(apf, i);
		deliver_next(apf, i);
	}
	return alive;
}

/* ------------------------------------------------------------------- not present */

/* A vCPU of KVM stays in its fault until KVM has handled it.  Our thread may take a signal
 * meanwhile, run another task, and repeat the access later; the answer to this fault is void
 * then.  A guest that blocks our signals gets no second one, so a fault that persists counts
 * as real after LEAVING_NS. */
bool apf_left(struct df_apf *apf, int vcpu, uint64_t seen)
{
	uint64_t signalled;

	if (vcpu < 0)
		return false;
	pthread_mutex_lock(&apf->lock);
	signalled = apf->vcpus[vcpu].signalled;
	pthread_mutex_unlock(&apf->lock);
	/* Or it left before its fault was read, and runs the handler. */
	return signalled > seen || (signalled + LEAVING_NS > seen &&
				    (__atomic_load_n(&apf->slots[vcpu].irr, __ATOMIC_ACQUIRE) ||
				     !(apf_state(apf, vcpu) & DF_CPU_IF)));
}

/* kvm_can_do_async_pf(), __kvm_faultin_pfn(), kvm_setup_async_pf(),
 * kvm_can_deliver_async_pf(), in this order */
static enum df_wait ask(struct df_apf *apf, const struct apf_fault *fault, struct apf_wait *out)
{
	int vcpu = out->vcpu;
	struct df_vcpu *v = &apf->vcpus[vcpu];
	struct df_slot *slot = &apf->slots[vcpu];
	uint64_t page = page_of(fault->address);
	uint64_t msr = __atomic_load_n(&slot->msr_en, __ATOMIC_ACQUIRE);
	struct df_work *work;

	out->state = apf_state(apf, vcpu);
	if (look_at_msr(apf, vcpu)) {
		deliver_next(apf, vcpu); /* before a new token: wake-all must not wake that */
		return DF_WAIT_HALTED;
	}
	if (apf_recall(v, page))
		return DF_WAIT_SYNC;
	if (out->state & DF_CPU_SYSCALL)
		return DF_WAIT_HALTED;
	if (!(out->state & DF_CPU_IF))
		return DF_WAIT_SYNC;
	if (!v->enabled || page_outstanding(v, page))
		return DF_WAIT_HALTED;
	if (v->nworks >= DF_APF_QUEUE)
		return DF_WAIT_SYNC;
	if (out->state & DF_CPU_KERNEL && !(msr & DF_MSR_SEND_ALWAYS))
		return DF_WAIT_HALTED;
	out->token = next_token(apf, vcpu);
	work = add_work(v, out->token, page);
	work->readonly = fault->readonly;
	if (!df_slot_not_present(slot, apf->options.abi, out->token, fault->address) ||
	    apf_signal(apf, vcpu, fault->tid, DF_APF_EXCEPTION)) {
		drop_work(v, work);
		out->token = 0;
		return DF_WAIT_HALTED;
	}
	return DF_WAIT_TOLD;
}

struct apf_wait apf_ask(struct df_apf *apf, const struct apf_fault *fault)
{
	struct apf_wait out = { .wait = DF_WAIT_SYNC, .vcpu = apf_slot(apf, fault->tid) };

	if (apf_left(apf, out.vcpu, fault->seen)) {
		out.state = apf_state(apf, out.vcpu);
		out.wait = DF_WAIT_HALTED;
	} else if (out.vcpu >= 0) {
		pthread_mutex_lock(&apf->lock);
		out.wait = ask(apf, fault, &out);
		pthread_mutex_unlock(&apf->lock);
	}
	TRACE(apf->tracer, .kind = out.wait == DF_WAIT_TOLD ? DF_TRACE_NOT_PRESENT : DF_TRACE_HALT,
	      .guest = apf->guest, .address = fault->address, .offset = fault->offset,
	      .token = out.token, .tid = fault->tid, .vcpu = out.vcpu, .value = out.wait);
	return out;
}

/* ------------------------------------------------------------------- the end of a wait */

/* The guest virtual address as far as the host knows it.  RFC v1 reads the guest linear address
 * of EXIT_QUALIFICATION; accesses of our guest kernel model those without one. */
static uint64_t known_gva(struct df_apf *apf, struct df_vcpu *v, uint64_t address, uint32_t state)
{
	if (apf->options.abi != DF_ABI_RFC_V1 || !(state & DF_CPU_KERNEL)) {
		v->last_gva = address;
		return address;
	}
	if (apf->options.posted & (DF_POSTED_GLA_OR | DF_POSTED_STALE_GVA))
		return v->last_gva;
	return 0;
}

/* As posted: a return of 1 from get_user_pages() is an error, and GUP for writing fails on a
 * read-only mapping. */
static bool posted_error(const struct df_apf *apf, const struct df_work *work)
{
	return (apf->options.posted & DF_POSTED_SUCCESS_IS_ERROR) ||
	       (apf->options.posted & DF_POSTED_FOLL_WRITE && work->readonly);
}

void apf_again(struct df_apf *apf, int vcpu, uint32_t token)
{
	struct df_work *work;

	GUARD(&apf->lock);
	work = find_work(&apf->vcpus[vcpu], token);
	if (work)
		work->again = true;
}

enum apf_end apf_end(struct df_apf *apf, const struct df_failure *record, bool bad)
{
	int vcpu = record->vcpu;
	struct df_vcpu *v = &apf->vcpus[vcpu];
	struct df_work *work;
	struct df_word word = {
		.error = record->error,
		.reason = record->reason,
		.attempts = record->attempts,
	};
	bool again;

	GUARD(&apf->lock);
	work = find_work(v, record->token);
	if (!work)
		return APF_DROPPED;
	if (work->ended)
		return APF_ENDED;
	word.bad = bad || (posted_error(apf, work) && apf_takes_errors(apf, vcpu));
	if (word.bad)
		word.gva = known_gva(apf, v, record->address, record->state);
	end_work(v, work, &word);
	again = work->again || df_slot_pending(&apf->slots[vcpu], apf->options.abi, record->token);
	deliver_next(apf, vcpu);
	/* A thread that blocks our signal is still in its fault and will not take the end either.
	 * A thread that faulted again waits there for another task.  The wake-up makes both fault
	 * once more, and apf_ask() decides again. */
	return again ? APF_ENDED_WAKE : APF_ENDED;
}
