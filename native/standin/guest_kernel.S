/* SPDX-License-Identifier: Apache-2.0
 *
 * guest_kernel.S - the code of "guest kernel mode".
 *
 * Owns the text section .guest_kernel and the exception table of that text.
 * A fault is the guest kernel's own when the instruction lies between
 * guest_kernel_start and guest_kernel_end: nothing else may be placed here,
 * and this code must not call out of it.
 *
 * The table has the shape of Linux's __ex_table before it carried handler
 * types: pairs of 32-bit offsets, each relative to its own place, the faulting
 * instruction first and the instruction to go on at second.
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
 * As rep_movs_alternative() of arch/x86/lib/copy_user_64.S (6.4): a string
 * instruction that faults leaves in %rcx the number of bytes it has not
 * copied, and that is the answer, whether it faulted or not.
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
 * The same with no table entry: guest kernel code that does not expect its
 * memory to fail.  A fault here cannot be fixed up, it is the guest's end.
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
