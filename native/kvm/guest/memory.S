/* SPDX-License-Identifier: Apache-2.0
 *
 * memory.S - the guest's page tables and its stacks.  Owns no code.
 */
#include "kvm/contract.h"

/* ---------------------------------------------------------- page tables */

/* present, accessed, dirty; 2 writable, 4 user */
#define PTE	0x61

	.section .tables, "aw"
	.balign	4096
	.globl	pml4
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

	.bss
	.globl	stacks, trap_stacks
	.balign	DF_KVM_STACK_LEN
stacks:
	.skip	DF_KVM_STACK_LEN * 4
trap_stacks:
	.skip	DF_KVM_STACK_LEN * 4

	.section .note.GNU-stack, "", @progbits
