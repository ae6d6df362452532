/* SPDX-License-Identifier: Apache-2.0
 *
 * raw.c - syscall(2), under a name that nobody interposes.
 *
 * Owns nothing.  For a library that defines syscall() itself, and is compiled with
 * -Dsyscall=raw_syscall.
 */
#include <errno.h>

/* Called by the assembly below. */
long raw_failed(long r);

long raw_failed(long r)
{
	errno = (int)-r;
	return -1;
}

__asm__("	.text\n"
	"	.globl raw_syscall\n"
	"	.hidden raw_syscall\n"
	"	.type raw_syscall, @function\n"
	"raw_syscall:\n"
	"	.cfi_startproc\n"
	"	endbr64\n"
	"	mov %rdi, %rax\n"
	"	mov %rsi, %rdi\n"
	"	mov %rdx, %rsi\n"
	"	mov %rcx, %rdx\n"
	"	mov %r8, %r10\n"
	"	mov %r9, %r8\n"
	"	mov 8(%rsp), %r9\n"
	"	syscall\n"
	"	cmp $-4095, %rax\n"
	"	jae 1f\n"
	"	ret\n"
	"1:	mov %rax, %rdi\n"
	"	jmp raw_failed\n"
	"	.cfi_endproc\n"
	"	.size raw_syscall, . - raw_syscall\n");
