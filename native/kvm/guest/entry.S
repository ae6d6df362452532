/* SPDX-License-Identifier: Apache-2.0
 *
 * entry.S - the entry points of the guest: start and traps.
 *
 * The host starts each vCPU here in long mode, with its number in %rdi and
 * enum df_kvm_boot in %rsi.  Owns the table of the traps' entries.
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
	lea	trap_table(%rip), %rdx
	call	guest_main
1:	hlt
	jmp	1b

/* ------------------------------------------------------------------- traps */

	.text
	.altmacro
	.macro trap_entry n
trap_\n:
	.if !(\n == 8 || (\n >= 10 && \n <= 14) || \n == 17 || \n == 21 || \n == 29 || \n == 30)
	push	$0				/* for vectors without an error code */
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

	.section .rodata, "a"
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

	.section .note.GNU-stack, "", @progbits
