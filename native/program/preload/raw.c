/* SPDX-License-Identifier: Apache-2.0
 *
 * raw.c - the program's syscall(2).
 *
 * Owns which of the program's own system calls, made by syscall(2), are decided as those of the
 * libc's wrappers are: the calls that the table of calls.h decides, and mremap(2).  All others must
 * be made as the libc makes them, without a frame of ours on the stack: the child of a vfork()
 * returns on it.  Our own are raw_syscall()'s (base/raw.c).
 */
#include <sys/syscall.h>

#include "preload.h"

/* Called by the assembly below. */
long raw_decided(long number, uint64_t a, uint64_t b, uint64_t d, uint64_t e, uint64_t f, uint64_t g);

long raw_decided(long number, uint64_t a, uint64_t b, uint64_t d, uint64_t e, uint64_t f, uint64_t g)
{
	return number == SYS_mremap ? wrap_remap(a, b, d, (int)e, f) : wrap(number, a, b, d, e, f, g);
}

/* The seventh argument is on the stack (System V ABI, x86-64, 3.2.3) for raw_decided() as it
 * was for syscall(). */
#define DECIDE(number) "	cmp $" NUMBER(number) ", %rdi\n	je raw_decided\n"
#define NUMBER(number) NUMBER_(number)
#define NUMBER_(number) #number

/* clang-format off */
__asm__(
	"	.text\n"
	"	.globl syscall\n"
	"	.type syscall, @function\n"
	"syscall:\n"
	"	.cfi_startproc\n"
	"	endbr64\n"
	DECIDE(__NR_mmap)
	DECIDE(__NR_mprotect)
	DECIDE(__NR_mremap)
	DECIDE(__NR_msync)
	DECIDE(__NR_madvise)
	DECIDE(__NR_mlock)
	DECIDE(__NR_mlockall)
	DECIDE(__NR_remap_file_pages)
	DECIDE(__NR_mlock2)
	DECIDE(__NR_pkey_mprotect)
	DECIDE(__NR_copy_file_range)
	DECIDE(__NR_sendfile)
	DECIDE(__NR_splice)
	DECIDE(__NR_sync)
	DECIDE(__NR_sync_file_range)
	DECIDE(__NR_syncfs)
	DECIDE(__NR_process_madvise)
	"	jmp raw_syscall\n"
	"	.cfi_endproc\n"
	"	.size syscall, . - syscall\n");
/* clang-format on */
