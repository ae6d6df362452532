/* SPDX-License-Identifier: Apache-2.0
 *
 * contract.h - the contract between the host and the KVM guest: the guest's physical
 * memory, the mailbox, the steps of a script and their results.
 *
 * The compilers of guest and host read this file, and cffi reads the text between the markers, so
 * that no struct is declared twice.  Owns no code.  The host must check all values in a mailbox:
 * the guest may be hostile.
 */
#ifndef DAXFAULT_KVM_CONTRACT_H
#define DAXFAULT_KVM_CONTRACT_H

#ifndef __ASSEMBLER__

#include <stddef.h>
#include <stdint.h>

/* DF_CDEF_BEGIN */

enum {
	DF_KVM_MAX_VCPUS = 4,
	DF_KVM_STEPS = 16, /* at most, of one script */
	DF_KVM_MAGIC = 0x3178664b,

	/* guest physical = guest virtual, except for the window's second view */
	DF_KVM_RAM_LEN = 0x200000,
	DF_KVM_MAILBOX = 0x10000, /* a page for each vCPU */
	DF_KVM_AREA = 0x20000,	  /* async_pf areas, a page for each vCPU */
	DF_KVM_IMAGE = 0x100000,
	DF_KVM_WINDOW = 0x40000000,	 /* the window's memslot; ring 0 sees it here */
	DF_KVM_WINDOW_USER = 0x50000000, /* ring 3 sees it here */
	DF_KVM_WINDOW_LEN = 0x400000,

	DF_KVM_DOORBELL = 0xf0,	    /* port: a 32-bit write of enum df_kvm_ring */
	DF_KVM_VECTOR_READY = 0xec, /* async_pf: page ready */
	DF_KVM_VECTOR_ERROR = 0xed, /* page error, reported by interrupt */
	DF_KVM_VECTOR_IPI = 0xee,
};

enum df_kvm_ring {
	DF_KVM_RING_READY = 1, /* the results are valid; the vCPU waits for the next script */
	DF_KVM_RING_PANIC = 2, /* mailbox.panic has the reason; the vCPU has stopped */
};

enum df_kvm_boot {	      /* the flags a vCPU starts with */
	DF_KVM_BOOT_APIC = 1, /* there is an in-kernel irqchip */
	DF_KVM_BOOT_SPIN = 2, /* wait without hlt */
};

enum df_kvm_op {
	DF_KVM_OP_LOAD = 1,	/* one byte */
	DF_KVM_OP_STORE = 2,	/* one byte, `arg` */
	DF_KVM_OP_READ = 3,	/* copy `length` bytes of the window to the buffer */
	DF_KVM_OP_WRITE = 4,	/* and from the buffer to the window; every byte is `arg` */
	DF_KVM_OP_APF = 5,	/* MSR_KVM_ASYNC_PF_EN := area | `arg` */
	DF_KVM_OP_IPI = 6,	/* to vCPU `arg` */
	DF_KVM_OP_SPIN = 7,	/* without end */
	DF_KVM_OP_TRIPLE = 8,	/* triple fault */
	DF_KVM_OP_SCRIBBLE = 9, /* fill the mailbox with 0xff, and ring READY */
	DF_KVM_OP_HALT = 10,	/* interrupts off, hlt */
	DF_KVM_OP_PANIC = 11,
};

enum df_kvm_step_flag {
	DF_KVM_RING3 = 1,
	DF_KVM_IRQS = 2,  /* with interrupts on */
	DF_KVM_TABLE = 4, /* ring 0: by an instruction with an exception table entry */
};

enum df_kvm_apf { /* arg of DF_KVM_OP_APF, KVM_ASYNC_PF_* of asm/kvm_para.h */
	DF_KVM_APF_OFF = 0,
	DF_KVM_APF_ENABLED = 1,
	DF_KVM_APF_ALWAYS = 2, /* KVM_ASYNC_PF_SEND_ALWAYS: ring 0 too */
	DF_KVM_APF_AS_INT = 8, /* KVM_ASYNC_PF_DELIVERY_AS_INT, the only way since Linux 5.9 */
};

struct df_kvm_step {
	uint32_t op;
	uint32_t flags;
	uint64_t offset; /* in the window */
	uint64_t length; /* bytes, at most a page */
	uint64_t arg;
	uint32_t repeat; /* times; 0 is 1 */
	uint32_t stride; /* bytes to the next one */
};

enum df_kvm_outcome {
	DF_KVM_NOT_RUN = 0,
	DF_KVM_OK = 1,
	DF_KVM_SIGBUS = 2, /* ring 3 received the signal */
	DF_KVM_FIXUP = 3,  /* ring 0 continued at its exception table entry */
	DF_KVM_BAD_STEP = 4,
};

enum df_kvm_via { /* how the error was reported */
	DF_KVM_VIA_NONE = 0,
	DF_KVM_VIA_AREA = 1,  /* #PF, with the reason in the async_pf area */
	DF_KVM_VIA_PF = 2,    /* #PF, with DF_KVM_PF_HOST in its error code */
	DF_KVM_VIA_MC = 3,    /* #MC, with the gpa in a bank */
	DF_KVM_VIA_EVENT = 4, /* DF_KVM_VECTOR_ERROR, with the reason in the area */
	DF_KVM_VIA_GUEST = 5, /* #PF of the guest's own page tables */
};

struct df_kvm_result {
	uint32_t outcome;
	uint32_t via;	  /* of the last error */
	uint64_t address; /* gva of the last error */
	uint64_t rip;	  /* at the last error */
	uint64_t code;	  /* its error code, or the bank's status */
	uint64_t done;	  /* accesses, or bytes of the last copy, that succeeded */
	uint64_t errors;
	uint64_t tsc;	   /* cycles in total */
	uint8_t bytes[32]; /* the first bytes read */
};

struct df_kvm_panic {
	uint64_t vector;
	uint64_t code;
	uint64_t rip;
	uint64_t cs;
	uint64_t rflags;
	uint64_t rsp;
	uint64_t cr2;
	uint64_t address; /* of the page error, or 0 */
};

struct df_kvm_mailbox {
	uint32_t magic;
	uint32_t vcpu;
	uint32_t count; /* steps, by the host */
	uint32_t ran;	/* results, by the guest */

	/* since the start */
	uint64_t not_present; /* async_pf */
	uint64_t ready;
	uint64_t wake_all; /* of those, with token ~0 */
	uint64_t page_errors;
	uint64_t machine_checks;
	uint64_t events;
	uint64_t ipis;
	uint64_t unexpected;

	struct df_kvm_panic panic;
	struct df_kvm_step steps[16]; /* DF_KVM_STEPS */
	struct df_kvm_result results[16];
};

/* struct kvm_vcpu_pv_apf_data (asm/kvm_para.h), with the fields of RFC v1 of 31 Mar 2020. */
struct df_kvm_area {
	uint32_t reason; /* today's `flags`: 1 is page not present */
	uint32_t token;
	uint64_t gva; /* faulting_gva of RFC v1; padding today */
	uint8_t pad[48];
	uint32_t enabled;
};

enum df_kvm_reason {
	DF_KVM_REASON_NONE = 0,
	DF_KVM_REASON_NOT_PRESENT = 1, /* KVM_PV_REASON_PAGE_NOT_PRESENT */
	DF_KVM_REASON_ERROR = 3,       /* KVM_PV_REASON_PAGE_FAULT_ERROR of RFC v1 */
};

enum {
	/* Set in the error code of a #PF that the host synthesises.  A guest whose page tables have
	 * the page present would take another #PF for spurious and repeat the access.  This is the
	 * bit of SGX: VMX refuses to inject higher ones (Intel SDM, 26.2.1.3). */
	DF_KVM_PF_HOST_BIT = 15,
};

/* The beginning of the image. */
struct df_kvm_image_header {
	uint64_t jump; /* the entry is the image's first byte */
	uint64_t magic;
	uint64_t cr3;
};

/* DF_CDEF_END */

_Static_assert(sizeof(struct df_kvm_mailbox) <= 4096, "a mailbox is a page");
_Static_assert(sizeof(struct df_kvm_step) == 40, "no padding in a step");
_Static_assert(sizeof(struct df_kvm_result) == 88, "no padding in a result");
_Static_assert(offsetof(struct df_kvm_area, enabled) == 64, "as in kvm_vcpu_pv_apf_data");
_Static_assert(offsetof(struct df_kvm_area, gva) == 8, "as in RFC v1");
_Static_assert(DF_KVM_IMAGE < DF_KVM_RAM_LEN && DF_KVM_WINDOW >= DF_KVM_RAM_LEN, "no overlap");

#endif /* __ASSEMBLER__ */

/* For the assembler as well. */
#define DF_KVM_STACK_LEN 0x4000	   /* and alignment: its first word is the struct cpu */
#define DF_KVM_USER_START 0x118000 /* ring 3's part of RAM */
#define DF_KVM_USER_END 0x128000
#define DF_KVM_CS 0x08
#define DF_KVM_DS 0x10
#define DF_KVM_USER_DS 0x1b
#define DF_KVM_USER_CS 0x23
#define DF_KVM_TSS 0x28

#endif
