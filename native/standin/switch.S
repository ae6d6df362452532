/* SPDX-License-Identifier: Apache-2.0
 *
 * switch.S - from one stack to another.
 *
 * Owns the registers that the System V ABI makes a callee save: six registers, MXCSR's and the x87
 * unit's control bits.  Everything else is dead across a call.  The signal mask is
 * not touched: the caller has the vCPU's signals blocked, on both stacks.
 */

	.text

/* void task_switch(void **save, void *to) */
	.balign	16
	.globl	task_switch
	.hidden	task_switch
	.type	task_switch, @function
task_switch:
	endbr64
	pushq	%rbp
	pushq	%rbx
	pushq	%r12
	pushq	%r13
	pushq	%r14
	pushq	%r15
	subq	$8, %rsp
	stmxcsr	(%rsp)
	fnstcw	4(%rsp)
	movq	%rsp, (%rdi)

	movq	%rsi, %rsp
	ldmxcsr	(%rsp)
	fldcw	4(%rsp)
	addq	$8, %rsp
	popq	%r15
	popq	%r14
	popq	%r13
	popq	%r12
	popq	%rbx
	popq	%rbp
	ret
	.size	task_switch, . - task_switch

	.section .note.GNU-stack, "", @progbits
