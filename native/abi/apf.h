/* SPDX-License-Identifier: Apache-2.0
 *
 * apf.h - async page faults between a host and its guest: feature bits, MSRs, and
 * the shared area of every ABI that was merged or proposed.
 *
 * Owns numbers and layouts only.  They are Linux's where Linux has them
 * (arch/x86/include/uapi/asm/kvm_para.h); layout.c makes the compiler check every offset.
 * The C compiler reads this file, and cffi reads the text between the markers.
 */
#ifndef DAXFAULT_APF_H
#define DAXFAULT_APF_H

#include <stdint.h>

/* DF_CDEF_BEGIN */

enum {
	DF_VCPU_MAX = 64,      /* slots in the shared area */
	DF_AREA_SIZE = 8192,   /* bytes: DF_VCPU_MAX slots of 128 */
	DF_APF_QUEUE = 64,     /* ASYNC_PF_PER_VCPU, arch/x86/include/asm/kvm_host.h */
	DF_APF_EXCEPTION = 42, /* the real-time signal that stands for #PF */
	DF_APF_INTERRUPT = 43, /* ... and for the vector in MSR_KVM_ASYNC_PF_INT */
};

/* The kvm_para.h that a guest was built with */
enum df_abi {
	DF_ABI_MAINLINE = 0, /* Linux 5.8 and later */
	DF_ABI_RFC_V1 = 1,   /* 31 March 2020 */
	DF_ABI_JUNE_2020 = 2,
	DF_ABI_GONE = 3,   /* a reviewer's: "gone" in the wake-up */
	DF_ABI_RETRY = 4,  /* a reviewer's: inject on retry */
	DF_ABI_REPORT = 5, /* ours */
	DF_ABI_COUNT = 6,
};

/* CPUID 0x40000001 EAX.  Bits 14 and 15 meant "can report errors" in the proposals of 2020;
 * Linux uses them for other features since. */
enum df_cpuid {
	DF_CPUID_ASYNC_PF = 0x10,	   /* 4: KVM_FEATURE_ASYNC_PF */
	DF_CPUID_ERROR_RFC_V1 = 0x4000,	   /* 14, in DF_ABI_RFC_V1 */
	DF_CPUID_ASYNC_PF_INT = 0x4000,	   /* 14: KVM_FEATURE_ASYNC_PF_INT, elsewhere */
	DF_CPUID_ERROR_JUNE_2020 = 0x8000, /* 15, in DF_ABI_JUNE_2020 */
	DF_CPUID_ERROR = 0x40000,	   /* 18, free in Linux 6.18: GONE, RETRY, REPORT */
};

/* MSR_KVM_ASYNC_PF_EN 0x4b564d02; the bits above these are the area's address */
enum df_msr_en {
	DF_MSR_ENABLED = 1,
	DF_MSR_SEND_ALWAYS = 2, /* in guest kernel mode, too */
	DF_MSR_DELIVERY_AS_PF_VMEXIT = 4,
	DF_MSR_DELIVERY_AS_INT = 8,
	DF_MSR_SEND_ERROR_RFC_V1 = 8, /* bit 3, in DF_ABI_RFC_V1 */
	DF_MSR_SEND_ERROR = 16,	      /* bit 4, in the others that have one */
	DF_MSR_FLAGS = 63,
};

/* kvm_para.h before 5.8, with the RFC's reason 3 and address.  Every event is a #PF with the
 * token in CR2. */
struct df_apf_rfc_v1 {
	uint32_t reason; /* enum df_apf_reason */
	uint32_t pad0;
	uint64_t faulting_gva;
	uint8_t pad[48];
	uint32_t enabled; /* the guest's own */
};

enum df_apf_reason {
	DF_APF_REASON_NOT_PRESENT = 1, /* KVM_PV_REASON_PAGE_NOT_PRESENT */
	DF_APF_REASON_READY = 2,       /* KVM_PV_REASON_PAGE_READY */
	DF_APF_REASON_ERROR = 3,       /* KVM_PV_REASON_PAGE_FAULT_ERROR, proposed */
};

/* kvm_para.h since 5.8.  "Not present" is a #PF with the token in CR2.  "Ready" is an interrupt
 * with the token here, until the guest writes MSR_KVM_ASYNC_PF_ACK.  6.9 removed `enabled` from
 * the header (ccb2280ec2f9); the host never read it. */
struct df_apf_mainline {
	uint32_t flags; /* enum df_apf_flag */
	uint32_t token; /* ready; 0: the slot is free */
	uint8_t pad[56];
	uint32_t enabled;
};

struct df_apf_june_2020 { /* also DF_ABI_GONE */
	uint32_t flags;
	uint32_t token;
	uint32_t ready_flags; /* enum df_apf_ready_flag */
	uint8_t pad[52];
	uint32_t enabled;
};

struct df_apf_retry { /* the error comes at the retry, address in CR2 */
	uint32_t flags;
	uint32_t token;
	int32_t error; /* positive errno, with PAGE_ERROR */
	uint8_t pad[52];
	uint32_t enabled;
};

/* An error is a #PF at the faulting instruction (flags PAGE_ERROR, gva, error, reason, attempts).
 * After "not present" was delivered it is the interrupt instead (token, ready_*).  Both may be
 * pending at once. */
struct df_apf_report {
	uint32_t flags;
	uint32_t token;
	uint32_t ready_flags;
	int32_t ready_error; /* positive errno */
	uint64_t ready_gva;
	uint32_t ready_reason;	 /* enum df_reason */
	uint32_t ready_attempts; /* failures of this page in a row, this one included */
	uint64_t gva;		 /* exact faulting address */
	int32_t error;
	uint32_t reason;
	uint32_t attempts;
	uint32_t event; /* number of the event: failures count up */
	uint8_t pad[8];
	uint32_t enabled;
};

enum df_apf_flag {
	DF_APF_NOT_PRESENT = 1, /* KVM_PV_REASON_PAGE_NOT_PRESENT */
	DF_APF_PAGE_ERROR = 4,	/* RETRY and REPORT */
};

enum df_apf_ready_flag {
	DF_APF_READY_ERROR = 1, /* JUNE_2020, REPORT: PAGE_ERROR; GONE: gone */
};

enum {
	DF_TOKEN_ALL = 0xffffffff, /* wake-all */
};

/* CPU state that KVM would read from the VMCS.  Here the guest writes it; a wrong value harms
 * only the guest. */
enum df_cpu_state {
	DF_CPU_IF = 1,	    /* interrupts are enabled */
	DF_CPU_KERNEL = 2,  /* guest kernel mode: CPL 0 */
	DF_CPU_SYSCALL = 4, /* in a system call of the kernel below: takes no exception */
};

/* One vCPU's slot: its shared area, and the registers of the model.
 *
 * The guest owns tid, state and the MSRs.  Where a real guest would exit, on a write to an MSR,
 * it sends one byte on the doorbell.  The host fills the area in, sets `flags`, `reason` or
 * `token` last, with release order, and sends the signal.  The guest takes an exception by
 * exchanging `flags` (or `reason`) with 0.  The host withdraws a PAGE_ERROR the same way when
 * the page heals first: a guest that reads 0 returns and repeats the access.
 *
 * KVM injects NOT_PRESENT before the guest runs again.  Ours is a signal; a timer's signal may
 * come first and switch to another task.  `fault` identifies the access.
 *
 * An interrupt for a vCPU with interrupts disabled stays in `irr`.  The guest sets IF and then
 * reads `irr`; the host sets `irr` and then reads IF.  So at least one of them sees the other. */
struct df_slot { /* 128 bytes */
	union {
		struct df_apf_mainline mainline;
		struct df_apf_rfc_v1 rfc_v1;
		struct df_apf_june_2020 june_2020;
		struct df_apf_retry retry;
		struct df_apf_report report;
		uint8_t bytes[72];
	} apf;
	uint32_t tid;
	uint32_t state;	  /* enum df_cpu_state */
	uint64_t msr_en;  /* enum df_msr_en, and the area's offset */
	uint32_t msr_int; /* vector of "page ready", 0 none */
	uint32_t acks;	  /* how often the guest wrote 1 to MSR_KVM_ASYNC_PF_ACK */
	uint64_t cr2;	  /* host: token, or the faulting address */
	uint32_t irr;	  /* host: an interrupt is pending */
	uint32_t pad0;
	uint64_t fault; /* host: the access that NOT_PRESENT is about, 0: unknown */
	uint32_t pad[2];
};

/* The defects of RFC v1 as posted, one bit each */
enum df_posted {
	DF_POSTED_SUCCESS_IS_ERROR = 1, /* a return of 1 from get_user_pages() is taken for an errno */
	DF_POSTED_GLA_OR = 2,		/* "is the address valid" is tested with |: always true */
	DF_POSTED_FOLL_WRITE = 4,	/* every page is requested for writing */
	DF_POSTED_NO_ENTRY_LOOPS = 8,	/* the return value of fixup_exception() is ignored */
	DF_POSTED_NO_GVA_FLAG = 16,	/* no flag says whether the address is valid */
	DF_POSTED_WAKE_ALL_UNINIT = 32, /* wake-all with an uninitialised is_err */
	DF_POSTED_STALE_GVA = 64,	/* the address of the last error is never cleared */
};

/* DF_CDEF_END */

#endif
