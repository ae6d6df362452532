/* SPDX-License-Identifier: Apache-2.0
 *
 * report.c - reports a failed access to the guest, in one of four ways.
 *
 * Owns the values written to the vCPU and its async_pf area.  The vCPU must be stopped at the
 * access, because an exception is taken at the current rip.
 */
#include <errno.h>

#include "abi/abi.h"
#include "internal.h"

#define PF_VECTOR 14
#define PF_PRESENT 1
#define PF_WRITE 2
#define PF_USER 4

/* Valid, uncorrected, enabled, misc and address valid, signalled, action required; a data
 * load (Intel SDM 3B, 15.9.3.2). */
#define MC_STATUS 0xbd80000000000134ULL
#define MC_MISC (2 << 6 | 12) /* a physical address, of a page */
#define MCG_STATUS 7	      /* restart ip valid, error ip valid, in progress */

static int again(const char *what)
{
	errno = EAGAIN;
	return kvm_refused(what);
}

static int write_area(struct df_kvm *machine, uint32_t vcpu, uint64_t gva)
{
	struct df_kvm_area *area =
		(void *)(machine->ram + DF_KVM_AREA + (uint64_t)vcpu * DF_PAGE_SIZE);

	if (area->reason != DF_KVM_REASON_NONE && area->reason != DF_KVM_REASON_ERROR)
		return again("a page not present that the guest has not seen yet");
	area->gva = gva;
	area->reason = DF_KVM_REASON_ERROR;
	return 0;
}

static int machine_check(struct df_kvm *machine, uint32_t vcpu, uint64_t gpa)
{
	struct df_kvm_mce mce = {
		.status = MC_STATUS,
		.address = gpa,
		.misc = MC_MISC,
		.mcg_status = MCG_STATUS,
		.bank = 1,
	};

	return df_kvm_machine_check(machine, vcpu, &mce);
}

int df_kvm_report(struct df_kvm *machine, uint32_t vcpu, uint32_t via,
		  const struct df_kvm_failure *failure)
{
	int64_t code = PF_PRESENT | (failure->write ? PF_WRITE : 0) | (failure->user ? PF_USER : 0);
	struct df_kvm_registers now;
	int error = df_kvm_registers(machine, vcpu, &now);

	if (error)
		return error;
	if (now.exception)
		return again("an exception that is still to be delivered");
	if (via == DF_KVM_VIA_AREA || via == DF_KVM_VIA_EVENT)
		error = write_area(machine, vcpu, failure->gva);
	if (error)
		return error;
	switch (via) {
	case DF_KVM_VIA_AREA:
		return df_kvm_exception(machine, vcpu, PF_VECTOR, code, 1, failure->gva);
	case DF_KVM_VIA_PF:
		code |= 1 << DF_KVM_PF_HOST_BIT;
		return df_kvm_exception(machine, vcpu, PF_VECTOR, code, 1, failure->gva);
	case DF_KVM_VIA_MC:
		return machine_check(machine, vcpu, failure->gpa);
	case DF_KVM_VIA_EVENT:
		error = df_kvm_msi(machine, vcpu, DF_KVM_VECTOR_ERROR);
		return error < 0 ? error : 0;
	}
	errno = EINVAL;
	return kvm_refused("a way to report to the guest");
}
