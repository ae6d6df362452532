/* SPDX-License-Identifier: Apache-2.0
 *
 * trap.c - the guest's exceptions and interrupts: async_pf, and page
 * errors: SIGBUS for ring 3, the exception table for ring 0, else panic.
 *
 * Owns descriptor tables and the local APIC.  Must not make accesses to the window.
 */
#include "guest.h"

struct gate {
	uint16_t low, selector;
	uint8_t ist, type;
	uint16_t middle;
	uint32_t high, zero;
} __attribute__((packed));

struct pointer {
	uint16_t limit;
	uint64_t base;
} __attribute__((packed));

struct cpu *this_cpu(void)
{
	uint64_t rsp;

	__asm__("mov %%rsp, %0" : "=r"(rsp));
	return *(struct cpu **)(rsp & -(uint64_t)DF_KVM_STACK_LEN);
}

_Noreturn void panic(struct cpu *cpu, const struct frame *frame, uint64_t address)
{
	volatile struct df_kvm_panic *what = &cpu->mailbox->panic;

	if (frame) {
		what->vector = frame->vector;
		what->code = frame->code;
		what->rip = frame->rip;
		what->cs = frame->cs;
		what->rflags = frame->rflags;
		what->rsp = frame->rsp;
	}
	what->cr2 = read_cr2();
	what->address = address;
	doorbell(DF_KVM_RING_PANIC);
	for (;;)
		__asm__ volatile("cli; hlt");
}

static void load_gdt(struct cpu *cpu)
{
	uint64_t tss = (uint64_t)&cpu->tss;
	struct pointer gdtr = { sizeof(cpu->gdt) - 1, (uint64_t)cpu->gdt };

	cpu->gdt[DF_KVM_CS / 8] = 0x00af9b000000ffff;
	cpu->gdt[DF_KVM_DS / 8] = 0x00cf93000000ffff;
	cpu->gdt[DF_KVM_USER_DS / 8] = 0x00cff3000000ffff;
	cpu->gdt[DF_KVM_USER_CS / 8] = 0x00affb000000ffff;
	cpu->gdt[DF_KVM_TSS / 8] = (sizeof(cpu->tss) - 1) | (tss & 0xffffff) << 16 | 0x89ULL << 40 |
				   (tss >> 24 & 0xff) << 56;
	cpu->gdt[DF_KVM_TSS / 8 + 1] = tss >> 32;
	/* not the vCPU's stack, which holds the frames of enter_user()'s callers */
	cpu->tss.rsp[0] = (uint64_t)trap_stacks + DF_KVM_STACK_LEN * (cpu->number + 1);
	cpu->tss.iomap = sizeof(cpu->tss);
	__asm__ volatile("lgdt %0\n"
			 "pushq %1\n"
			 "lea 1f(%%rip), %%rax\n"
			 "pushq %%rax\n"
			 "lretq\n"
			 "1: mov %2, %%eax\n"
			 "mov %%eax, %%ds\n"
			 "mov %%eax, %%es\n"
			 "mov %%eax, %%ss\n"
			 "ltr %w3\n"
			 :
			 : "m"(gdtr), "i"(DF_KVM_CS), "i"(DF_KVM_DS), "r"(DF_KVM_TSS)
			 : "rax", "memory");
}

static void load_idt(const uint64_t traps[256])
{
	/* every vCPU writes the same */
	static struct gate idt[256] __attribute__((aligned(16)));
	struct pointer idtr = { sizeof(idt) - 1, (uint64_t)idt };

	for (int i = 0; i < 256; i++) {
		uint64_t at = traps[i];

		idt[i] = (struct gate){
			.low = (uint16_t)at,
			.selector = DF_KVM_CS,
			.type = 0x8e, /* interrupt gate: IF off inside */
			.middle = (uint16_t)(at >> 16),
			.high = (uint32_t)(at >> 32),
		};
	}
	__asm__ volatile("lidt %0" : : "m"(idtr));
}

void trap_init(struct cpu *cpu, const uint64_t traps[256])
{
	load_gdt(cpu);
	load_idt(traps);
	if (cpu->apic) {
		/* x2APIC: needs no MMIO page; KVM's irqchip always has it */
		wrmsr(MSR_APIC_BASE, rdmsr(MSR_APIC_BASE) | 0xc00);
		wrmsr(MSR_X2APIC_SVR, 0x1ff);
	}
}

static const struct ex_entry *table_entry(uint64_t rip)
{
	for (const struct ex_entry *entry = ex_table_start; entry < ex_table_end; entry++)
		if (entry->insn == rip)
			return entry;
	return NULL;
}

/* An error that the host has reported. */
static void page_error(struct cpu *cpu, struct frame *frame, uint64_t gva, uint32_t via, uint64_t code)
{
	volatile struct df_kvm_result *result = cpu->result;
	const struct ex_entry *entry;
	bool user = (frame->cs & 3) == 3;

	cpu->mailbox->page_errors++;
	if (!result)
		panic(cpu, frame, gva);
	result->errors++;
	result->via = via;
	result->address = gva;
	result->rip = frame->rip;
	result->code = code;
	if (user) {
		/* the signal's frame: ring 3 continues in its signal handler */
		result->outcome = DF_KVM_SIGBUS;
		cpu->signalled = true;
		cpu->left = frame->rcx;
		frame->rip = (uint64_t)user_signal;
		frame->rdi = gva;
		return;
	}
	entry = table_entry(frame->rip);
	if (!entry)
		panic(cpu, frame, gva);
	result->outcome = DF_KVM_FIXUP;
	frame->rip = entry->fixup;
}

static void page_not_present(struct cpu *cpu)
{
	uint64_t before = cpu->mailbox->ready;

	cpu->area->reason = DF_KVM_REASON_NONE;
	cpu->mailbox->not_present++;
	/* Linux puts the task to sleep here, or halts (kvm_async_pf_task_wait()).  Under QEMU's
	 * emulated SVM a nested guest's "sti; hlt" stalled, so it can spin instead. */
	while (cpu->mailbox->ready == before) {
		if (cpu->spin)
			__asm__ volatile("sti; nop; pause; cli" : : : "memory");
		else
			__asm__ volatile("sti; hlt; cli" : : : "memory");
	}
}

static void page_fault(struct cpu *cpu, struct frame *frame)
{
	uint64_t cr2 = read_cr2(), gva = cpu->area->gva;

	switch (cpu->area->reason) {
	case DF_KVM_REASON_ERROR:
		cpu->area->reason = DF_KVM_REASON_NONE;
		page_error(cpu, frame, gva, DF_KVM_VIA_AREA, frame->code);
		return;
	case DF_KVM_REASON_NOT_PRESENT:
		page_not_present(cpu);
		return;
	}
	page_error(cpu, frame, cr2,
		   frame->code >> DF_KVM_PF_HOST_BIT & 1 ? DF_KVM_VIA_PF : DF_KVM_VIA_GUEST,
		   frame->code);
}

/* A bank has a guest physical address; Linux searches its mappings of that page (memory_failure()).
 * Here each ring has one mapping. */
static void machine_check(struct cpu *cpu, struct frame *frame)
{
	uint32_t banks = (uint32_t)rdmsr(MSR_MCG_CAP) & 0xff;
	uint64_t status = 0, gva = 0;

	for (uint32_t i = 0; i < banks; i++) {
		uint64_t found = rdmsr(MSR_MC0_STATUS + 4 * i);

		if (!(found >> 63))
			continue;
		status = found;
		gva = rdmsr(MSR_MC0_ADDR + 4 * i);
		wrmsr(MSR_MC0_STATUS + 4 * i, 0);
	}
	wrmsr(MSR_MCG_STATUS, 0);
	cpu->mailbox->machine_checks++;
	if (!status)
		panic(cpu, frame, 0);
	if ((frame->cs & 3) == 3)
		gva += DF_KVM_WINDOW_USER - DF_KVM_WINDOW;
	page_error(cpu, frame, gva, DF_KVM_VIA_MC, status);
}

static void end_of_interrupt(void)
{
	wrmsr(MSR_X2APIC_EOI, 0);
}

static void page_ready(struct cpu *cpu)
{
	if (cpu->area->token == ~0U)
		cpu->mailbox->wake_all++;
	cpu->mailbox->ready++;
	cpu->area->token = 0;
	end_of_interrupt();
	wrmsr(MSR_KVM_ASYNC_PF_ACK, 1);
}

static void error_event(struct cpu *cpu, struct frame *frame)
{
	uint64_t gva = cpu->area->gva;

	cpu->mailbox->events++;
	end_of_interrupt();
	if (cpu->area->reason != DF_KVM_REASON_ERROR)
		return; /* reported in another way already */
	cpu->area->reason = DF_KVM_REASON_NONE;
	page_error(cpu, frame, gva, DF_KVM_VIA_EVENT, 0);
}

/* ud2 in ring 3 is the system call that returns to ring 0. */
static void invalid_opcode(struct cpu *cpu, struct frame *frame)
{
	if ((frame->cs & 3) != 3)
		panic(cpu, frame, 0);
	leave_user(cpu);
}

void trap(struct frame *frame)
{
	struct cpu *cpu = this_cpu();

	switch (frame->vector) {
	case 6:
		invalid_opcode(cpu, frame);
		break;
	case 14:
		page_fault(cpu, frame);
		break;
	case 18:
		machine_check(cpu, frame);
		break;
	case DF_KVM_VECTOR_READY:
		page_ready(cpu);
		break;
	case DF_KVM_VECTOR_ERROR:
		error_event(cpu, frame);
		break;
	case DF_KVM_VECTOR_IPI:
		cpu->mailbox->ipis++;
		end_of_interrupt();
		break;
	default:
		if (frame->vector < 32)
			panic(cpu, frame, 0);
		cpu->mailbox->unexpected++;
		end_of_interrupt();
	}
}
