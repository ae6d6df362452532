/* SPDX-License-Identifier: Apache-2.0
 *
 * write.c - the host's writes to a vCPU's slot, for each ABI, as apf_put_user_notpresent() and
 * apf_put_user_ready() do (arch/x86/kvm/x86.c).  Pure functions on the slot.  Must not send
 * signals, nor decide what to report.
 *
 * Writes the word that the guest exchanges with 0 (flags, reason, token) last, with release
 * order.  The guest may write at the same time, so every access is a single load or store.
 */
#include <stddef.h>

#include "write.h"

#define LOAD(field) __atomic_load_n(&(field), __ATOMIC_ACQUIRE)
#define STORE(field, value) __atomic_store_n(&(field), (value), __ATOMIC_RELAXED)
#define PUBLISH(field, value) __atomic_store_n(&(field), (value), __ATOMIC_RELEASE)

/* `flags` and `reason` are the first word of every layout, `token` the second of all
 * but RFC_V1's (abi/layout.c). */
bool df_slot_not_present(struct df_slot *slot, uint32_t abi, uint32_t token, uint64_t fault)
{
	if (LOAD(slot->apf.mainline.flags))
		return false;
	STORE(slot->cr2, (uint64_t)token);
	STORE(slot->fault, fault);
	PUBLISH(slot->apf.mainline.flags, abi == DF_ABI_RFC_V1 ? (uint32_t)DF_APF_REASON_NOT_PRESENT
							       : (uint32_t)DF_APF_NOT_PRESENT);
	return true;
}

bool df_slot_pending(const struct df_slot *slot, uint32_t abi, uint32_t token)
{
	return LOAD(slot->apf.mainline.flags) == (abi == DF_ABI_RFC_V1
							  ? (uint32_t)DF_APF_REASON_NOT_PRESENT
							  : (uint32_t)DF_APF_NOT_PRESENT) &&
	       LOAD(slot->cr2) == token;
}

bool df_slot_room(const struct df_slot *slot, uint32_t abi)
{
	return abi == DF_ABI_RFC_V1 ? !LOAD(slot->apf.rfc_v1.reason)
				    : !LOAD(slot->apf.mainline.token);
}

static void end_rfc_v1(struct df_slot *slot, const struct df_word *word)
{
	STORE(slot->cr2, (uint64_t)word->token);
	STORE(slot->apf.rfc_v1.faulting_gva, word->bad ? word->gva : 0);
	PUBLISH(slot->apf.rfc_v1.reason,
		word->bad ? (uint32_t)DF_APF_REASON_ERROR : (uint32_t)DF_APF_REASON_READY);
}

void df_slot_end(struct df_slot *slot, uint32_t abi, const struct df_word *word)
{
	struct df_apf_report *report = &slot->apf.report;
	uint32_t flags = word->bad ? DF_APF_READY_ERROR : 0;

	switch (abi) {
	case DF_ABI_RFC_V1:
		end_rfc_v1(slot, word);
		return;
	case DF_ABI_JUNE_2020:
	case DF_ABI_GONE:
		STORE(slot->apf.june_2020.ready_flags, flags);
		break;
	case DF_ABI_REPORT:
		STORE(report->ready_error, word->bad ? word->error : 0);
		STORE(report->ready_gva, word->bad ? word->gva : 0);
		STORE(report->ready_reason, word->bad ? word->reason : 0);
		STORE(report->ready_attempts, word->bad ? word->attempts : 0);
		STORE(report->ready_flags, flags);
		break;
	}
	PUBLISH(slot->apf.mainline.token, word->token);
}

bool df_slot_raise(struct df_slot *slot, uint32_t abi, const struct df_word *word)
{
	struct df_apf_report *report = &slot->apf.report;

	if ((abi != DF_ABI_RETRY && abi != DF_ABI_REPORT) || LOAD(slot->apf.mainline.flags))
		return false;
	STORE(slot->cr2, word->gva);
	if (abi == DF_ABI_RETRY) {
		STORE(slot->apf.retry.error, word->error);
	} else {
		STORE(report->event, word->event);
		STORE(report->gva, word->gva);
		STORE(report->error, word->error);
		STORE(report->reason, word->reason);
		STORE(report->attempts, word->attempts);
	}
	PUBLISH(slot->apf.mainline.flags, (uint32_t)DF_APF_PAGE_ERROR);
	return true;
}

bool df_slot_raised(const struct df_slot *slot, uint32_t abi, const struct df_word *word)
{
	if (LOAD(slot->apf.mainline.flags) != DF_APF_PAGE_ERROR)
		return false;
	if (abi == DF_ABI_REPORT)
		return LOAD(slot->apf.report.event) == word->event;
	return LOAD(slot->cr2) == word->gva;
}

bool df_slot_withdraw(struct df_slot *slot)
{
	uint32_t expected = DF_APF_PAGE_ERROR;

	return __atomic_compare_exchange_n(&slot->apf.mainline.flags, &expected, 0, false,
					   __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
}

uint32_t df_abi_cpuid_error(uint32_t abi)
{
	switch (abi) {
	case DF_ABI_RFC_V1:
		return DF_CPUID_ERROR_RFC_V1;
	case DF_ABI_JUNE_2020:
		return DF_CPUID_ERROR_JUNE_2020;
	case DF_ABI_GONE:
	case DF_ABI_RETRY:
	case DF_ABI_REPORT:
		return DF_CPUID_ERROR;
	}
	return 0;
}

uint64_t df_abi_msr_error(uint32_t abi)
{
	if (!df_abi_cpuid_error(abi))
		return 0;
	return abi == DF_ABI_RFC_V1 ? DF_MSR_SEND_ERROR_RFC_V1 : DF_MSR_SEND_ERROR;
}

/* kvm_pv_async_pf_enabled(): since 5.8 it takes both bits (2635b5c4a0e4). */
bool df_abi_enabled(uint32_t abi, uint32_t cpuid, uint64_t msr_en)
{
	uint64_t both = DF_MSR_ENABLED;

	if (abi != DF_ABI_RFC_V1)
		both |= DF_MSR_DELIVERY_AS_INT;
	return cpuid & DF_CPUID_ASYNC_PF && (msr_en & both) == both;
}
