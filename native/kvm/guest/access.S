/* SPDX-License-Identifier: Apache-2.0
 *
 * access.S - every instruction that touches the window, in ring 0 and in ring 3, and the switch to
 * ring 3 and back.
 *
 * Owns the exception table: an entry is the address of an instruction, and the address to continue
 * at when it faults.
 */
#include "kvm/contract.h"

	.text
/* ---------------------------------------------------- to ring 3 and back */

/* void enter_user(rip, rsp, a, b, c, rflags): returns when leave_user() is called. */
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

/* uint64_t NAME(to or from...): 0, or the number of bytes left when the table was used. */
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

/* ud2 is the system call: it works on all tested backends of KVM, including PVM and an emulated
 * SVM. */
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
user_signal:					/* (address), with %rcx of the fault */
	ud2

	.section .user_bss, "aw", @nobits
	.globl	user_stacks, user_buffers
	.balign	4096
user_stacks:
	.skip	4096 * 4
user_buffers:
	.skip	4096 * 4

	.section .note.GNU-stack, "", @progbits
