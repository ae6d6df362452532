/* SPDX-License-Identifier: Apache-2.0
 *
 * main.c - the guest's main loop: start a vCPU, ring for a script, run its steps.
 *
 * Owns the steps.  Must touch the window only through access.S, whose instructions the trap code
 * and the host recognize.
 */
#include "guest.h"

static struct cpu cpus[DF_KVM_MAX_VCPUS];

static uint64_t user_buffer(const struct cpu *cpu)
{
	return (uint64_t)user_buffers + 4096 * cpu->number;
}

/* -> bytes (or accesses) not done */
static uint64_t in_user(struct cpu *cpu, char *code, uint64_t a, uint64_t b, uint64_t c,
			uint32_t flags)
{
	cpu->signalled = false;
	cpu->left = 0;
	enter_user((uint64_t)code, (uint64_t)user_stacks + 4096 * (cpu->number + 1), a, b, c,
		   RFLAGS_FIXED | (flags & DF_KVM_IRQS ? RFLAGS_IF : 0));
	return cpu->signalled ? (c ? cpu->left : 1) : 0;
}

static uint64_t access_user(struct cpu *cpu, const struct df_kvm_step *step, uint64_t offset)
{
	uint64_t at = DF_KVM_WINDOW_USER + offset, buffer = user_buffer(cpu);

	switch (step->op) {
	case DF_KVM_OP_LOAD:
		return in_user(cpu, user_load, at, buffer, 0, step->flags);
	case DF_KVM_OP_STORE:
		return in_user(cpu, user_store, at, step->arg, 0, step->flags);
	case DF_KVM_OP_READ:
		return in_user(cpu, user_copy, buffer, at, step->length, step->flags);
	default:
		return in_user(cpu, user_copy, at, buffer, step->length, step->flags);
	}
}

static uint64_t access_kernel(struct cpu *cpu, const struct df_kvm_step *step, uint64_t offset)
{
	uint64_t at = DF_KVM_WINDOW + offset, buffer = user_buffer(cpu), left;
	bool tabled = step->flags & DF_KVM_TABLE;

	if (step->flags & DF_KVM_IRQS)
		irqs_on();
	switch (step->op) {
	case DF_KVM_OP_LOAD:
		left = (tabled ? load_tabled : load_bare)(at, (void *)buffer);
		break;
	case DF_KVM_OP_STORE:
		left = (tabled ? store_tabled : store_bare)(at, (uint8_t)step->arg);
		break;
	case DF_KVM_OP_READ:
		left = (tabled ? copy_tabled : copy_bare)(buffer, at, step->length);
		break;
	default:
		left = (tabled ? copy_tabled : copy_bare)(at, buffer, step->length);
	}
	irqs_off();
	return left;
}

static void run_access(struct cpu *cpu, const struct df_kvm_step *step,
		       volatile struct df_kvm_result *result)
{
	bool copy = step->op == DF_KVM_OP_READ || step->op == DF_KVM_OP_WRITE;
	volatile uint8_t *buffer = (volatile uint8_t *)user_buffer(cpu);
	uint64_t length = copy ? step->length : 1, end;
	uint32_t times = step->repeat ? step->repeat : 1;

	end = (uint64_t)(times - 1) * step->stride + length;
	if (length > 4096 || step->offset > DF_KVM_WINDOW_LEN ||
	    end > DF_KVM_WINDOW_LEN - step->offset) {
		result->outcome = DF_KVM_BAD_STEP;
		return;
	}
	for (uint64_t i = 0; i < length; i++)
		buffer[i] = (uint8_t)step->arg;
	result->outcome = DF_KVM_OK;
	for (uint32_t i = 0; i < times; i++) {
		uint64_t offset = step->offset + (uint64_t)i * step->stride, left;

		left = step->flags & DF_KVM_RING3 ? access_user(cpu, step, offset)
						  : access_kernel(cpu, step, offset);
		if (copy)
			result->done = length - left;
		else
			result->done += !left;
	}
	for (uint64_t i = 0; i < sizeof(result->bytes) && i < length; i++)
		result->bytes[i] = buffer[i];
}

static void send_ipi(const struct cpu *cpu, uint64_t to)
{
	if (cpu->apic)
		wrmsr(MSR_X2APIC_ICR, to << 32 | DF_KVM_VECTOR_IPI);
}

/* EN, INT and ACK of asm/kvm_para.h since Linux 5.8.  When it is enabled, KVM sends one "page
 * ready" of token ~0 (kvm_async_pf_wakeup_all()).  It is taken here, so that it does not end a
 * later wait. */
static void set_apf(struct cpu *cpu, uint64_t flags)
{
	uint64_t before = cpu->mailbox->wake_all;

	wrmsr(MSR_KVM_ASYNC_PF_INT, DF_KVM_VECTOR_READY);
	wrmsr(MSR_KVM_ASYNC_PF_EN, flags ? (uint64_t)cpu->area | flags : 0);
	irqs_on();
	for (int i = 0; i < 10000 && flags && cpu->mailbox->wake_all == before; i++)
		__asm__ volatile("pause");
	irqs_off();
}

static _Noreturn void triple_fault(void)
{
	struct {
		uint16_t limit;
		uint64_t base;
	} __attribute__((packed)) none = { 0, 0 };

	/* nothing is mapped at 0, and the IDT is empty */
	__asm__ volatile("lidt %0; movb 0, %%al" : : "m"(none) : "rax");
	__builtin_unreachable();
}

static void spin(struct cpu *cpu, const struct df_kvm_step *step)
{
	if (step->flags & DF_KVM_RING3)
		in_user(cpu, user_spin, 0, 0, 0, step->flags);
	if (step->flags & DF_KVM_IRQS)
		irqs_on();
	for (;;)
		__asm__ volatile("pause");
}

static void scribble(struct cpu *cpu)
{
	volatile uint8_t *at = (volatile uint8_t *)cpu->mailbox;

	for (int i = 0; i < 4096; i++)
		at[i] = 0xff;
}

static void run_step(struct cpu *cpu, const struct df_kvm_step *step,
		     volatile struct df_kvm_result *result)
{
	result->outcome = DF_KVM_OK;
	switch (step->op) {
	case DF_KVM_OP_LOAD:
	case DF_KVM_OP_STORE:
	case DF_KVM_OP_READ:
	case DF_KVM_OP_WRITE:
		run_access(cpu, step, result);
		break;
	case DF_KVM_OP_APF:
		set_apf(cpu, step->arg);
		break;
	case DF_KVM_OP_IPI:
		send_ipi(cpu, step->arg);
		break;
	case DF_KVM_OP_SPIN:
		spin(cpu, step);
		break;
	case DF_KVM_OP_TRIPLE:
		triple_fault();
	case DF_KVM_OP_SCRIBBLE:
		scribble(cpu);
		doorbell(DF_KVM_RING_READY);
		break;
	case DF_KVM_OP_HALT:
		for (;;)
			__asm__ volatile("cli; hlt");
	case DF_KVM_OP_PANIC:
		panic(cpu, NULL, 0);
	default:
		result->outcome = DF_KVM_BAD_STEP;
	}
}

static void run_script(struct cpu *cpu)
{
	volatile struct df_kvm_mailbox *mailbox = cpu->mailbox;
	uint32_t count = mailbox->count;

	mailbox->ran = 0;
	for (uint32_t i = 0; i < count && i < DF_KVM_STEPS; i++) {
		struct df_kvm_step step = mailbox->steps[i];
		volatile struct df_kvm_result *result = &mailbox->results[i];
		volatile uint8_t *bytes = (volatile uint8_t *)result;
		uint64_t began;

		for (uint64_t j = 0; j < sizeof(*result); j++)
			bytes[j] = 0;
		cpu->result = result;
		began = rdtsc();
		run_step(cpu, &step, result);
		result->tsc = rdtsc() - began;
		mailbox->ran = i + 1;
	}
}

void guest_main(uint64_t number, uint64_t flags, const uint64_t traps[256])
{
	struct cpu *cpu = &cpus[number];

	*(struct cpu **)(stacks + DF_KVM_STACK_LEN * number) = cpu;
	*(struct cpu **)(trap_stacks + DF_KVM_STACK_LEN * number) = cpu;
	cpu->number = number;
	cpu->apic = flags & DF_KVM_BOOT_APIC;
	cpu->spin = flags & DF_KVM_BOOT_SPIN;
	cpu->mailbox = (void *)(DF_KVM_MAILBOX + 4096 * number);
	cpu->area = (void *)(DF_KVM_AREA + 4096 * number);
	trap_init(cpu, traps);
	cpu->mailbox->magic = DF_KVM_MAGIC;
	cpu->mailbox->vcpu = (uint32_t)number;
	for (;;) {
		doorbell(DF_KVM_RING_READY);
		run_script(cpu);
	}
}
