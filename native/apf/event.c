/* SPDX-License-Identifier: Apache-2.0
 *
 * event.c - a vCPU's signals, and the errors that are told at the faulting
 * instruction, without a token: who may be told, the event, and taking it back.  Must
 * not touch tokens that are under way.
 */
#include <errno.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "engine/internal.h"

#define GFN_HASH_BITS 6			/* ERROR_GFN_PER_VCPU 64, "Exit to user space" v4 */

int apf_slot(const struct df_guest *guest, int tid)
{
	for (int i = 0; guest->slots && guest->pid && i < DF_VCPU_MAX; i++)
		if (__atomic_load_n(&guest->slots[i].tid, __ATOMIC_RELAXED) == (uint32_t)tid)
			return i;
	return -1;
}

/* ------------------------------------------------------------------ signals */

uint32_t apf_state(const struct df_guest *guest, int vcpu)
{
	return __atomic_load_n(&guest->slots[vcpu].state, __ATOMIC_SEQ_CST);
}

bool apf_interruptible(const struct df_guest *guest, int vcpu)
{
	return (apf_state(guest, vcpu) & (DF_CPU_IF | DF_CPU_SYSCALL)) == DF_CPU_IF;
}

int apf_signal(struct df_guest *guest, int vcpu, int tid, int number)
{
	guest->vcpus[vcpu].signalled = now_ns();
	if (atomic_load(&guest->dead) || !tid)
		return -ESRCH;
	return syscall(SYS_tgkill, guest->pid, tid, number) ? -errno : 0;
}

/* irr first, then the look at IF: who enables interrupts does it the other way round,
 * and one of the two sees the other (apf.h). */
void apf_interrupt(struct df_guest *guest, int vcpu)
{
	struct df_slot *slot = &guest->slots[vcpu];

	__atomic_store_n(&slot->irr, 1, __ATOMIC_SEQ_CST);
	if (apf_interruptible(guest, vcpu))
		apf_signal(guest, vcpu, (int)__atomic_load_n(&slot->tid, __ATOMIC_RELAXED),
			   DF_APF_INTERRUPT);
}

/* ------------------------------------------------------------------- errors */

static uint32_t gfn_slot(uint64_t page)
{
	/* hash_32(), include/linux/hash.h */
	return (uint32_t)(page / PAGE) * 0x61c88647u >> (32 - GFN_HASH_BITS);
}

/* kvm_find_and_remove_error_gfn() */
bool apf_recall(struct df_vcpu *v, uint64_t page)
{
	uint64_t *gfn = &v->error_gfns[gfn_slot(page)];

	if (*gfn != page / PAGE + 1)
		return false;
	*gfn = 0;
	return true;
}

void apf_remember(struct df_guest *guest, int vcpu, uint64_t address)
{
	uint64_t page = PAGE_DOWN(address);

	if (vcpu < 0 || !(guest->options.flags & DF_GUEST_ERROR_GFNS))
		return;
	pthread_mutex_lock(&guest->apf_lock);
	guest->vcpus[vcpu].error_gfns[gfn_slot(page)] = page / PAGE + 1;
	pthread_mutex_unlock(&guest->apf_lock);
}

bool apf_tells_errors(const struct df_guest *guest, int vcpu)
{
	uint32_t abi = guest->options.abi;

	return vcpu >= 0 && guest->options.cpuid & df_abi_cpuid_error(abi) &&
	       __atomic_load_n(&guest->slots[vcpu].msr_en, __ATOMIC_ACQUIRE) & df_abi_msr_error(abi);
}

static struct df_word word_of(const struct df_failure *record)
{
	return (struct df_word){
		.error = record->error,
		.reason = record->reason,
		.attempts = record->attempts,
		.event = (uint32_t)record->id,
		.gva = record->address,
	};
}

int apf_raise(struct df_guest *guest, const struct df_failure *record)
{
	struct df_slot *slot = &guest->slots[record->vcpu];
	struct df_word word = word_of(record);
	int error = -EBUSY;		/* it has not taken the last one */

	pthread_mutex_lock(&guest->apf_lock);
	if (df_slot_raise(slot, guest->options.abi, &word)) {
		error = apf_signal(guest, record->vcpu, record->tid, DF_APF_EXCEPTION);
		if (error)
			df_slot_withdraw(slot);
	}
	pthread_mutex_unlock(&guest->apf_lock);
	return error;
}

bool apf_raised(struct df_guest *guest, const struct df_failure *record)
{
	struct df_word word = word_of(record);

	return df_slot_raised(&guest->slots[record->vcpu], guest->options.abi, &word);
}

bool apf_withdraw(struct df_guest *guest, const struct df_failure *record)
{
	bool withdrawn;

	pthread_mutex_lock(&guest->apf_lock);
	withdrawn = apf_raised(guest, record) && df_slot_withdraw(&guest->slots[record->vcpu]);
	pthread_mutex_unlock(&guest->apf_lock);
	return withdrawn;
}

void apf_heal(struct df_guest *guest, uint64_t start, uint64_t len)
{
	if (!guest->vcpus || guest->options.abi != DF_ABI_REPORT)
		return;
	pthread_mutex_lock(&guest->apf_lock);
	for (int i = 0; i < DF_VCPU_MAX; i++) {
		struct df_vcpu *v = &guest->vcpus[i];
		struct df_slot *slot = &guest->slots[i];
		uint64_t gva = __atomic_load_n(&slot->apf.report.gva, __ATOMIC_RELAXED);

		if (gva - start < len && df_slot_withdraw(slot))
			TRACE(&guest->engine->tracer, .kind = DF_TRACE_WITHDRAW, .guest = guest->id,
			      .address = gva, .vcpu = i);
		for (unsigned w = 0; v->nworks && w < DF_APF_QUEUE; w++)
			if (v->works[w].token && v->works[w].ended &&
			    v->works[w].page - start < len)
				v->works[w].word.bad = false;
	}
	pthread_mutex_unlock(&guest->apf_lock);
}
