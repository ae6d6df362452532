/* SPDX-License-Identifier: Apache-2.0
 *
 * guest_kernel.S - the code of "guest kernel mode".
 *
 * Owns the text section .guest_kernel and the exception table of that text.
 * A fault belongs to the guest kernel if the instruction is between guest_kernel_start and
 * guest_kernel_end.  No other code may be placed here, and this code must not call functions
 * elsewhere.
 *
 * The table has the format of Linux's __ex_table before handler types were added: pairs of 32-bit
 * offsets, each relative to its own address: the faulting instruction, then the one to continue at.
 */

	.macro	EX_ENTRY insn, fixup
	.pushsection .guest_ex_table, "a", @progbits
	.balign	4
	.long	\insn - .
	.long	\fixup - .
	.popsection
	.endm

	.macro	GUEST_FUNCTION name
	.globl	\name
	.hidden	\name
	.type	\name, @function
\name:
	.endm

	.section .guest_ex_table, "a", @progbits
	.balign	4
	.globl	guest_ex_table_start, guest_ex_table_end
	.hidden	guest_ex_table_start, guest_ex_table_end
guest_ex_table_start:

	.section .guest_kernel, "ax", @progbits
	.globl	guest_kernel_start, guest_kernel_end
	.hidden	guest_kernel_start, guest_kernel_end
guest_kernel_start:

/*
 * size_t guest_copy(void *to, const void *from, size_t len)
 *
 * As rep_movs_alternative() of arch/x86/lib/copy_user_64.S (6.4): returns %rcx, in which a string
 * instruction leaves the number of bytes not copied, with or without a fault.
 */
	.balign	16
GUEST_FUNCTION guest_copy
	endbr64
	movq	%rdx, %rcx
1:	rep movsb
2:	movq	%rcx, %rax
	ret
	EX_ENTRY 1b, 2b
	.size	guest_copy, . - guest_copy

/*
 * The same without a table entry: guest kernel code that does not expect its memory to fail.  A
 * fault here cannot be fixed up: the guest panics.
 */
	.balign	16
GUEST_FUNCTION guest_copy_bare
	endbr64
	movq	%rdx, %rcx
	rep movsb
	movq	%rcx, %rax
	ret
	.size	guest_copy_bare, . - guest_copy_bare

guest_kernel_end:

	.section .guest_ex_table, "a", @progbits
guest_ex_table_end:

	.section .note.GNU-stack, "", @progbits
