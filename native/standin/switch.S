/* SPDX-License-Identifier: Apache-2.0
 *
 * switch.S - switches from one stack to another.
 *
 * Saves the callee-saved state of the System V ABI: six registers, and the control bits of MXCSR
 * and the x87 unit.  Does not change the signal mask: the vCPU's signals are blocked on both
 * stacks.
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
