/* SPDX-License-Identifier: Apache-2.0
 *
 * guest.h - the guest's declarations: a vCPU, a trap's frame, and privileged instructions.  Not
 * used by the host.
 */
#ifndef DAXFAULT_KVM_GUEST_H
#define DAXFAULT_KVM_GUEST_H

#include <stdbool.h>

#include "kvm/contract.h"

/* asm/msr-index.h, asm/kvm_para.h */
#define MSR_APIC_BASE 0x1b
#define MSR_MCG_CAP 0x179
#define MSR_MCG_STATUS 0x17a
#define MSR_MC0_STATUS 0x401
#define MSR_MC0_ADDR 0x402
#define MSR_X2APIC_EOI 0x80b
#define MSR_X2APIC_SVR 0x80f
#define MSR_X2APIC_ICR 0x830
#define MSR_KVM_ASYNC_PF_EN 0x4b564d02
#define MSR_KVM_ASYNC_PF_INT 0x4b564d06
#define MSR_KVM_ASYNC_PF_ACK 0x4b564d07

#define RFLAGS_IF 0x200
#define RFLAGS_FIXED 0x2

struct tss {
	uint32_t zero0;
	uint64_t rsp[3];
	uint64_t zero1;
	uint64_t ist[7];
	uint64_t zero2;
	uint16_t zero3;
	uint16_t iomap;
} __attribute__((packed));

struct cpu {
	uint64_t kernel_rsp; /* access.S: enter_user(), leave_user() */
	uint64_t number;
	bool apic;
	bool spin;
	volatile struct df_kvm_mailbox *mailbox;
	volatile struct df_kvm_area *area;
	/* of the current step */
	volatile struct df_kvm_result *result;
	volatile bool signalled;
	volatile uint64_t left; /* bytes of a ring 3 copy not done */
	uint64_t gdt[8];
	struct tss tss;
};

/* Pushed by entry.S. */
struct frame {
	uint64_t r15, r14, r13, r12, r11, r10, r9, r8, rbp, rdi, rsi, rdx, rcx, rbx, rax;
	uint64_t vector, code, rip, cs, rflags, rsp, ss;
};

/* memory.S */
extern char stacks[], trap_stacks[];

/* access.S */
extern char user_stacks[], user_buffers[];
extern char user_load[], user_store[], user_copy[], user_spin[], user_signal[];
extern const struct ex_entry {
	uint64_t insn, fixup;
} ex_table_start[], ex_table_end[];
void enter_user(uint64_t rip, uint64_t rsp, uint64_t a, uint64_t b, uint64_t c, uint64_t rflags);
_Noreturn void leave_user(struct cpu *cpu);
uint64_t load_tabled(uint64_t from, void *to);
uint64_t load_bare(uint64_t from, void *to);
uint64_t store_tabled(uint64_t to, uint8_t byte);
uint64_t store_bare(uint64_t to, uint8_t byte);
uint64_t copy_tabled(uint64_t to, uint64_t from, uint64_t count);
uint64_t copy_bare(uint64_t to, uint64_t from, uint64_t count);

/* main.c: `traps` are the addresses of the trap entries. */
void guest_main(uint64_t number, uint64_t flags, const uint64_t traps[256]);

/* trap.c */
void trap_init(struct cpu *cpu, const uint64_t traps[256]);
void trap(struct frame *frame);
_Noreturn void panic(struct cpu *cpu, const struct frame *frame, uint64_t address);
struct cpu *this_cpu(void);

static inline void doorbell(uint32_t ring)
{
	__asm__ volatile("outl %0, %1" : : "a"(ring), "Nd"((uint16_t)DF_KVM_DOORBELL) : "memory");
}

static inline void wrmsr(uint32_t msr, uint64_t value)
{
	__asm__ volatile("wrmsr"
			 :
			 : "c"(msr), "a"((uint32_t)value), "d"((uint32_t)(value >> 32))
			 : "memory");
}

static inline uint64_t rdmsr(uint32_t msr)
{
	uint32_t low, high;

	__asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr));
	return low | (uint64_t)high << 32;
}

static inline uint64_t rdtsc(void)
{
	uint32_t low, high;

	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
	return low | (uint64_t)high << 32;
}

static inline uint64_t read_cr2(void)
{
	uint64_t value;

	__asm__ volatile("mov %%cr2, %0" : "=r"(value));
	return value;
}

static inline void irqs_on(void)
{
	__asm__ volatile("sti; nop" : : : "memory");
}
static inline void irqs_off(void)
{
	__asm__ volatile("cli" : : : "memory");
}

#endif
