/* SPDX-License-Identifier: Apache-2.0
 *
 * setup.c - the state of a vCPU before its first instruction: CPUID, long mode with
 * the guest's own page tables, machine check banks.
 *
 * Owns no state.  Must not run a vCPU.
 */
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>

#include "internal.h"

#define CR0_PE 0x1
#define CR0_MP 0x2
#define CR0_ET 0x10
#define CR0_NE 0x20
#define CR0_WP 0x10000
#define CR0_AM 0x40000
#define CR0_PG 0x80000000
#define CR4_PAE 0x20
#define CR4_MCE 0x40
#define CR4_OSFXSR 0x200
#define EFER_LME 0x100
#define EFER_LMA 0x400
#define MCG_BANKS 10
#define MSR_MCG_CTL 0x17b

static int set_cpuid(struct vcpu *vcpu, struct kvm_cpuid2 *cpuid)
{
	for (uint32_t i = 0; i < cpuid->nent; i++) {
		struct kvm_cpuid_entry2 *entry = &cpuid->entries[i];

		/* the APIC id, which KVM copies from the host */
		if (entry->function == 1)
			entry->ebx = (entry->ebx & 0xffffff) | vcpu->number << 24;
		else if (entry->function == 0xb || entry->function == 0x1f)
			entry->edx = vcpu->number;
	}
	return kvm_ioctl(vcpu->fd, KVM_SET_CPUID2, cpuid, "KVM_SET_CPUID2");
}

/* Optional: without it no #MC can be injected, and KVM_X86_SET_MCE fails. */
static bool set_mce(struct vcpu *vcpu)
{
	struct {
		struct kvm_msrs head;
		struct kvm_msr_entry entry;
	} msrs = {
		.head = { .nmsrs = 1 },
		.entry = { .index = MSR_MCG_CTL, .data = ~0ULL },
	};
	uint64_t cap = 0;

	if (ioctl(vcpu->machine->kvm, KVM_X86_GET_MCE_CAP_SUPPORTED, &cap))
		return false;
	cap = (cap & ~0xffULL) | MCG_BANKS;
	if (ioctl(vcpu->fd, KVM_X86_SETUP_MCE, &cap))
		return false;
	ioctl(vcpu->fd, KVM_SET_MSRS, &msrs);
	return true;
}

static int set_long_mode(struct vcpu *vcpu, bool mce)
{
	const struct df_kvm_image_header *header = (const void *)kvm_image;
	struct kvm_segment code = {
		.limit = 0xffffffff,
		.selector = DF_KVM_CS,
		.type = 11,
		.present = 1,
		.s = 1,
		.l = 1,
		.g = 1,
	};
	struct kvm_segment stack = {
		.limit = 0xffffffff,
		.selector = DF_KVM_DS,
		.type = 3,
		.present = 1,
		.s = 1,
		.db = 1,
		.g = 1,
	};
	struct kvm_segment tss = { .limit = 0x67, .type = 11, .present = 1 };
	struct kvm_sregs sregs;
	int error = kvm_ioctl(vcpu->fd, KVM_GET_SREGS, &sregs, "KVM_GET_SREGS");

	if (error)
		return error;
	sregs.cr0 = CR0_PG | CR0_AM | CR0_WP | CR0_NE | CR0_ET | CR0_MP | CR0_PE;
	sregs.cr3 = header->cr3;
	sregs.cr4 = CR4_PAE | CR4_OSFXSR | (mce ? CR4_MCE : 0);
	sregs.efer = EFER_LMA | EFER_LME;
	sregs.cs = code;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = stack;
	sregs.tr = tss;
	return kvm_ioctl(vcpu->fd, KVM_SET_SREGS, &sregs, "KVM_SET_SREGS");
}

int vcpu_setup(struct vcpu *vcpu, struct kvm_cpuid2 *cpuid)
{
	struct kvm_regs regs = {
		.rip = DF_KVM_IMAGE,
		.rflags = 2,
		.rdi = vcpu->number,
		.rsi = (vcpu->machine->irqchip ? DF_KVM_BOOT_APIC : 0) |
		       (vcpu->machine->spin ? DF_KVM_BOOT_SPIN : 0),
	};
	/* no INIT and SIPI for the other vCPUs: they start at the same address as the first */
	struct kvm_mp_state mp = { .mp_state = KVM_MP_STATE_RUNNABLE };
	int error;

	error = set_cpuid(vcpu, cpuid);
	if (!error)
		error = set_long_mode(vcpu, set_mce(vcpu));
	if (!error)
		error = kvm_ioctl(vcpu->fd, KVM_SET_REGS, &regs, "KVM_SET_REGS");
	if (!error && vcpu->machine->irqchip)
		error = kvm_ioctl(vcpu->fd, KVM_SET_MP_STATE, &mp, "KVM_SET_MP_STATE");
	return error;
}
