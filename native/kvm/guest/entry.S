/* SPDX-License-Identifier: Apache-2.0
 *
 * entry.S - the guest's first instructions, its traps' entries and exits, and
 * every instruction that touches the window.
 *
 * The host starts each vCPU here in long mode, with its number in %rdi and
 * enum df_kvm_boot in %rsi.  Owns the exception table: an entry is the address
 * of an instruction and where to go on when it faults.
 */
#include "kvm/contract.h"

	.section .text.start, "ax"
	.globl start
start:
	jmp	boot
	.balign	8
	.quad	0x3178664b			/* DF_KVM_MAGIC; struct df_kvm_image_header */
	.quad	pml4

boot:
	mov	%rdi, %rax
	inc	%rax
	imul	$DF_KVM_STACK_LEN, %rax
	lea	stacks(%rip), %rsp
	add	%rax, %rsp
	xor	%ebp, %ebp
	call	guest_main
1:	hlt
	jmp	1b

/* ------------------------------------------------------------------- traps */

	.text
	.altmacro
	.macro trap_entry n
trap_\n:
	.if !(\n == 8 || (\n >= 10 && \n <= 14) || \n == 17 || \n == 21 || \n == 29 || \n == 30)
	push	$0				/* where the CPU pushes no error code */
	.endif
	push	$\n
	jmp	trap_entered
	.endm

	.set	i, 0
	.rept	256
	trap_entry %i
	.set	i, i + 1
	.endr

trap_entered:
	push	%rax
	push	%rbx
	push	%rcx
	push	%rdx
	push	%rsi
	push	%rdi
	push	%rbp
	push	%r8
	push	%r9
	push	%r10
	push	%r11
	push	%r12
	push	%r13
	push	%r14
	push	%r15
	mov	%rsp, %rdi
	cld
	call	trap
	pop	%r15
	pop	%r14
	pop	%r13
	pop	%r12
	pop	%r11
	pop	%r10
	pop	%r9
	pop	%r8
	pop	%rbp
	pop	%rdi
	pop	%rsi
	pop	%rdx
	pop	%rcx
	pop	%rbx
	pop	%rax
	add	$16, %rsp
	iretq

/* ---------------------------------------------------- to ring 3 and back */

/* void enter_user(rip, rsp, a, b, c, rflags): ends when leave_user() is called. */
	.globl	enter_user
enter_user:
	push	%rbx
	push	%rbp
	push	%r12
	push	%r13
	push	%r14
	push	%r15
	mov	%rsp, %rax
	and	$-DF_KVM_STACK_LEN, %rax
	mov	(%rax), %rax			/* struct cpu, which begins with kernel_rsp */
	mov	%rsp, (%rax)
	pushq	$DF_KVM_USER_DS
	push	%rsi
	push	%r9
	pushq	$DF_KVM_USER_CS
	push	%rdi
	mov	%rdx, %rdi
	mov	%rcx, %rsi
	mov	%r8, %rdx
	iretq

/* void leave_user(struct cpu *) */
	.globl	leave_user
leave_user:
	mov	(%rdi), %rsp
	pop	%r15
	pop	%r14
	pop	%r13
	pop	%r12
	pop	%rbp
	pop	%rbx
	ret

/* ------------------------------------- the window's accesses, from ring 0 */

	.macro table insn, fixup
	.pushsection .ex_table, "a"
	.quad	\insn, \fixup
	.popsection
	.endm

/* uint64_t NAME(to or from...): 0, or what was left to do when the table was used. */
	.macro access suffix, tabled
	.globl	load_\suffix
load_\suffix:					/* (from, to) */
10:	movb	(%rdi), %al
	movb	%al, (%rsi)
	xor	%eax, %eax
	ret
	.globl	store_\suffix
store_\suffix:					/* (to, byte) */
20:	movb	%sil, (%rdi)
	xor	%eax, %eax
	ret
	.globl	copy_\suffix
copy_\suffix:					/* (to, from, count) */
	mov	%rdx, %rcx
30:	rep movsb
	xor	%eax, %eax
	ret
	.if	\tabled
	table	10b, one_left
	table	20b, one_left
	table	30b, count_left
	.endif
	.endm

	access	tabled, 1
	access	bare, 0

one_left:
	mov	$1, %eax
	ret
count_left:
	mov	%rcx, %rax
	ret

/* ------------------------------------------------------- code of ring 3 */

/* ud2 is the system call: it is the one gate that works on every backend of KVM
 * that was tried, PVM and an emulated SVM among them. */
	.section .user, "ax"
	.globl	user_load, user_store, user_copy, user_spin, user_signal
user_load:
	movb	(%rdi), %al
	movb	%al, (%rsi)
	ud2
user_store:
	movb	%sil, (%rdi)
	ud2
user_copy:
	mov	%rdx, %rcx
	rep movsb
	ud2
user_spin:
	pause
	jmp	user_spin
user_signal:					/* (address), %rcx as it was at the fault */
	ud2

	.section .user_bss, "aw", @nobits
	.globl	user_stacks, user_buffers
	.balign	4096
user_stacks:
	.skip	4096 * 4
user_buffers:
	.skip	4096 * 4

/* ---------------------------------------------------------- page tables */

/* present, accessed, dirty; 2 writable, 4 user */
#define PTE	0x61

	.section .tables, "aw"
	.balign	4096
pml4:	.quad	pdpt + PTE + 6
	.fill	511, 8, 0
pdpt:	.quad	pd_low + PTE + 6
	.quad	pd_window + PTE + 6
	.fill	510, 8, 0
pd_low:	.quad	pt_low + PTE + 6
	.fill	511, 8, 0
pd_window:					/* from 1 GiB on */
	.quad	pt_window + PTE + 6, pt_window + 4096 + PTE + 6
	.fill	126, 8, 0
	.quad	pt_window_user + PTE + 6, pt_window_user + 4096 + PTE + 6
	.fill	382, 8, 0
pt_low:	.quad	0				/* nothing at 0 */
	.set	i, 1
	.rept	511
	.if	i >= DF_KVM_USER_START / 4096 && i < DF_KVM_USER_END / 4096
	.quad	i * 4096 + PTE + 6
	.else
	.quad	i * 4096 + PTE + 2
	.endif
	.set	i, i + 1
	.endr
pt_window:
	.set	i, 0
	.rept	1024
	.quad	0x40000000 + i * 4096 + PTE + 2
	.set	i, i + 1
	.endr
pt_window_user:
	.set	i, 0
	.rept	1024
	.quad	0x40000000 + i * 4096 + PTE + 6
	.set	i, i + 1
	.endr

/* ------------------------------------------------------ stacks, and traps */

	.section .rodata, "a"
	.globl	trap_table
	.balign	8
trap_table:
	.macro	trap_address n
	.quad	trap_\n
	.endm
	.set	i, 0
	.rept	256
	trap_address %i
	.set	i, i + 1
	.endr

	.bss
	.globl	stacks, trap_stacks
	.balign	DF_KVM_STACK_LEN
stacks:
	.skip	DF_KVM_STACK_LEN * 4
trap_stacks:
	.skip	DF_KVM_STACK_LEN * 4

	.section .note.GNU-stack, "", @progbits
