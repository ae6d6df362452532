/* SPDX-License-Identifier: Apache-2.0
 *
 * state.c - reads and changes a stopped vCPU: registers, exceptions, #MC.
 *
 * Must not call ioctls of a running vCPU: they wait for KVM_RUN to end (kvm_vcpu_ioctl() takes
 * vcpu->mutex), which it may never do.
 */
#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "internal.h"

/* -> the vCPU if it is stopped, or NULL.  Under the machine's lock. */
static struct vcpu *stopped(struct df_kvm *machine, uint32_t number)
{
	if (number >= machine->vcpus || machine->vcpu[number].state != VCPU_WAITS)
		return NULL;
	return &machine->vcpu[number];
}

static int busy(void)
{
	errno = EBUSY;
	return kvm_refused("a vCPU that runs, or is not there");
}

static int get_registers(struct vcpu *vcpu, struct df_kvm_registers *out)
{
	struct kvm_vcpu_events events;
	struct kvm_sregs sregs;
	struct kvm_regs regs;
	int error;

	error = kvm_ioctl(vcpu->fd, KVM_GET_REGS, &regs, "KVM_GET_REGS");
	if (!error)
		error = kvm_ioctl(vcpu->fd, KVM_GET_SREGS, &sregs, "KVM_GET_SREGS");
	if (!error)
		error = kvm_ioctl(vcpu->fd, KVM_GET_VCPU_EVENTS, &events, "KVM_GET_VCPU_EVENTS");
	if (error)
		return error;
	*out = (struct df_kvm_registers){
		.rax = regs.rax,
		.rbx = regs.rbx,
		.rcx = regs.rcx,
		.rdx = regs.rdx,
		.rsi = regs.rsi,
		.rdi = regs.rdi,
		.rsp = regs.rsp,
		.rbp = regs.rbp,
		.r8 = regs.r8,
		.r9 = regs.r9,
		.r10 = regs.r10,
		.r11 = regs.r11,
		.r12 = regs.r12,
		.r13 = regs.r13,
		.r14 = regs.r14,
		.r15 = regs.r15,
		.rip = regs.rip,
		.rflags = regs.rflags,
		.cr0 = sregs.cr0,
		.cr2 = sregs.cr2,
		.cr3 = sregs.cr3,
		.cr4 = sregs.cr4,
		.efer = sregs.efer,
		.cs = sregs.cs.selector,
		.ss = sregs.ss.selector,
		.cpl = sregs.ss.dpl,
		.exception = events.exception.injected || events.exception.pending,
		.vector = events.exception.nr,
	};
	return 0;
}

static int put_registers(struct vcpu *vcpu, const struct df_kvm_registers *in)
{
	struct kvm_regs regs = {
		.rax = in->rax,
		.rbx = in->rbx,
		.rcx = in->rcx,
		.rdx = in->rdx,
		.rsi = in->rsi,
		.rdi = in->rdi,
		.rsp = in->rsp,
		.rbp = in->rbp,
		.r8 = in->r8,
		.r9 = in->r9,
		.r10 = in->r10,
		.r11 = in->r11,
		.r12 = in->r12,
		.r13 = in->r13,
		.r14 = in->r14,
		.r15 = in->r15,
		.rip = in->rip,
		.rflags = in->rflags,
	};

	return kvm_ioctl(vcpu->fd, KVM_SET_REGS, &regs, "KVM_SET_REGS");
}

int df_kvm_registers(struct df_kvm *machine, uint32_t number, struct df_kvm_registers *out)
{
	GUARD(&machine->lock);
	struct vcpu *vcpu = stopped(machine, number);

	return vcpu ? get_registers(vcpu, out) : busy();
}

int df_kvm_set_registers(struct df_kvm *machine, uint32_t number,
			 const struct df_kvm_registers *registers)
{
	GUARD(&machine->lock);
	struct vcpu *vcpu = stopped(machine, number);

	return vcpu ? put_registers(vcpu, registers) : busy();
}

static int put_cr2(struct vcpu *vcpu, uint64_t cr2)
{
	struct kvm_sregs sregs;
	int error = kvm_ioctl(vcpu->fd, KVM_GET_SREGS, &sregs, "KVM_GET_SREGS");

	sregs.cr2 = cr2;
	return error ? error : kvm_ioctl(vcpu->fd, KVM_SET_SREGS, &sregs, "KVM_SET_SREGS");
}

static int inject(struct vcpu *vcpu, uint32_t vector, int64_t code, int has_cr2, uint64_t cr2)
{
	struct kvm_vcpu_events events;
	int error = kvm_ioctl(vcpu->fd, KVM_GET_VCPU_EVENTS, &events, "KVM_GET_VCPU_EVENTS");

	if (error)
		return error;
	if (events.exception.injected || events.exception.pending) {
		errno = EAGAIN; /* two would be a double fault */
		return kvm_refused("an exception that is still to be delivered");
	}
	if (has_cr2)
		error = put_cr2(vcpu, cr2);
	if (error)
		return error;
	events.exception.injected = 1;
	events.exception.nr = (uint8_t)vector;
	events.exception.has_error_code = code >= 0;
	events.exception.error_code = code >= 0 ? (uint32_t)code : 0;
	events.flags = 0;
	return kvm_ioctl(vcpu->fd, KVM_SET_VCPU_EVENTS, &events, "KVM_SET_VCPU_EVENTS");
}

int df_kvm_exception(struct df_kvm *machine, uint32_t number, uint32_t vector, int64_t code,
		     int has_cr2, uint64_t cr2)
{
	GUARD(&machine->lock);
	struct vcpu *vcpu = stopped(machine, number);

	return vcpu ? inject(vcpu, vector, code, has_cr2, cr2) : busy();
}

int df_kvm_machine_check(struct df_kvm *machine, uint32_t number, const struct df_kvm_mce *mce)
{
	GUARD(&machine->lock);
	struct vcpu *vcpu = stopped(machine, number);
	struct kvm_x86_mce arg = {
		.status = mce->status,
		.addr = mce->address,
		.misc = mce->misc,
		.mcg_status = mce->mcg_status,
		.bank = (uint8_t)mce->bank,
	};

	return vcpu ? kvm_ioctl(vcpu->fd, KVM_X86_SET_MCE, &arg, "KVM_X86_SET_MCE") : busy();
}

int df_kvm_tsc_khz(struct df_kvm *machine, uint32_t number)
{
	GUARD(&machine->lock);
	struct vcpu *vcpu = stopped(machine, number);

	return vcpu ? kvm_ioctl(vcpu->fd, KVM_GET_TSC_KHZ, NULL, "KVM_GET_TSC_KHZ") : busy();
}

int df_kvm_translate(struct df_kvm *machine, uint32_t number, uint64_t gva, uint64_t *gpa)
{
	GUARD(&machine->lock);
	struct vcpu *vcpu = stopped(machine, number);
	struct kvm_translation arg = { .linear_address = gva };
	int error;

	if (!vcpu)
		return busy();
	error = kvm_ioctl(vcpu->fd, KVM_TRANSLATE, &arg, "KVM_TRANSLATE");
	*gpa = arg.physical_address;
	return error ? error : arg.valid ? 0 : -ENOENT;
}
