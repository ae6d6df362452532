/* SPDX-License-Identifier: Apache-2.0
 *
 * event.c - a vCPU's signals, and errors without a token, raised at the faulting instruction: which
 * vCPU can take one, the event, and its withdrawal.  Must not touch outstanding tokens.
 */
#include <errno.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "apf.h"
#include "base/cleanup.h"
#include "base/clock.h"

#define GFN_HASH_BITS 6 /* ERROR_GFN_PER_VCPU 64, "Exit to user space" v4 */

int apf_slot(const struct df_apf *apf, int tid)
{
	for (int i = 0; apf->slots && apf->options.pid && i < DF_VCPU_MAX; i++)
		if (__atomic_load_n(&apf->slots[i].tid, __ATOMIC_RELAXED) == (uint32_t)tid)
			return i;
	return -1;
}

/* ------------------------------------------------------------------ signals */

uint32_t apf_state(const struct df_apf *apf, int vcpu)
{
	return __atomic_load_n(&apf->slots[vcpu].state, __ATOMIC_SEQ_CST);
}

bool apf_interruptible(const struct df_apf *apf, int vcpu)
{
	return (apf_state(apf, vcpu) & (DF_CPU_IF | DF_CPU_SYSCALL)) == DF_CPU_IF;
}

int apf_signal(struct df_apf *apf, int vcpu, int tid, int number)
{
	apf->vcpus[vcpu].signalled = now_ns();
	if (atomic_load(&apf->ended) || !tid)
		return -ESRCH;
	return syscall(SYS_tgkill, apf->options.pid, tid, number) ? -errno : 0;
}

/* Sets irr and then reads IF; the guest does the reverse, so that one sees the other (abi/apf.h). */
void apf_interrupt(struct df_apf *apf, int vcpu)
{
	struct df_slot *slot = &apf->slots[vcpu];

	__atomic_store_n(&slot->irr, 1, __ATOMIC_SEQ_CST);
	if (apf_interruptible(apf, vcpu))
		apf_signal(apf, vcpu, (int)__atomic_load_n(&slot->tid, __ATOMIC_RELAXED),
			   DF_APF_INTERRUPT);
}

/* ------------------------------------------------------------------- errors */

static uint32_t gfn_slot(uint64_t page)
{
	/* hash_32(), include/linux/hash.h */
	return (uint32_t)(page / DF_PAGE_SIZE) * 0x61c88647u >> (32 - GFN_HASH_BITS);
}

/* kvm_find_and_remove_error_gfn() */
bool apf_recall(struct df_vcpu *v, uint64_t page)
{
	uint64_t *gfn = &v->error_gfns[gfn_slot(page)];

	if (*gfn != page / DF_PAGE_SIZE + 1)
		return false;
	*gfn = 0;
	return true;
}

void apf_remember(struct df_apf *apf, int vcpu, uint64_t address)
{
	uint64_t page = address & ~(uint64_t)(DF_PAGE_SIZE - 1);

	if (vcpu < 0 || !(apf->options.flags & DF_GUEST_ERROR_GFNS))
		return;
	GUARD(&apf->lock);
	apf->vcpus[vcpu].error_gfns[gfn_slot(page)] = page / DF_PAGE_SIZE + 1;
}

bool apf_takes_errors(const struct df_apf *apf, int vcpu)
{
	uint32_t abi = apf->options.abi;

	return vcpu >= 0 && apf->options.cpuid & df_abi_cpuid_error(abi) &&
	       __atomic_load_n(&apf->slots[vcpu].msr_en, __ATOMIC_ACQUIRE) & df_abi_msr_error(abi);
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

int apf_raise(struct df_apf *apf, const struct df_failure *record)
{
	struct df_slot *slot = &apf->slots[record->vcpu];
	struct df_word word = word_of(record);
	int error;

	GUARD(&apf->lock);
	if (!df_slot_raise(slot, apf->options.abi, &word))
		return -EBUSY; /* it has not taken the last one */
	error = apf_signal(apf, record->vcpu, record->tid, DF_APF_EXCEPTION);
	if (error)
		df_slot_withdraw(slot);
	return error;
}

bool apf_raised(struct df_apf *apf, const struct df_failure *record)
{
	struct df_word word = word_of(record);

	return df_slot_raised(&apf->slots[record->vcpu], apf->options.abi, &word);
}

bool apf_withdraw(struct df_apf *apf, const struct df_failure *record)
{
	GUARD(&apf->lock);
	return apf_raised(apf, record) && df_slot_withdraw(&apf->slots[record->vcpu]);
}

void apf_heal(struct df_apf *apf, uint64_t start, uint64_t len)
{
	if (!apf->vcpus || apf->options.abi != DF_ABI_REPORT)
		return;
	GUARD(&apf->lock);
	for (int i = 0; i < DF_VCPU_MAX; i++) {
		struct df_vcpu *v = &apf->vcpus[i];
		struct df_slot *slot = &apf->slots[i];
		uint64_t gva = __atomic_load_n(&slot->apf.report.gva, __ATOMIC_RELAXED);

		if (gva - start < len && df_slot_withdraw(slot))
			TRACE(apf->tracer, .kind = DF_TRACE_WITHDRAW, .guest = apf->guest,
			      .address = gva, .vcpu = i);
		for (unsigned w = 0; v->nworks && w < DF_APF_QUEUE; w++)
			if (v->works[w].token && v->works[w].ended && v->works[w].page - start < len)
				v->works[w].word.bad = false;
	}
}
