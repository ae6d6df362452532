/* SPDX-License-Identifier: Apache-2.0
 *
 * kvm.h - the KVM machine's functions for Python.
 *
 * A machine is a VM with its vCPUs.  Each vCPU has a thread, the only one that calls KVM_RUN for
 * it. An exit becomes a record, and the vCPU waits for df_kvm_resume().  Functions return 0 or a
 * negative errno, unless noted; df_kvm_call() then names the ioctl.  Any thread may call them,
 * without the GIL.
 */
#ifndef DAXFAULT_KVM_H
#define DAXFAULT_KVM_H

#include "contract.h"

/* DF_CDEF_BEGIN */

struct df_kvm;

enum df_kvm_exit_kind {
	DF_KVM_EXIT_DOORBELL = 1, /* value: enum df_kvm_ring, or whatever the guest wrote */
	DF_KVM_EXIT_EFAULT = 2,	  /* KVM_RUN: EFAULT, without an address */
	/* gpa, length, write, value.  The access has been completed for KVM, and its effect undone:
	 * rip is at the load.  KVM advances rip of a store, and the counters of a string
	 * instruction, before it exits. */
	DF_KVM_EXIT_MMIO = 3,
	DF_KVM_EXIT_SIGBUS = 4,	    /* hva, detail[0]: si_code */
	DF_KVM_EXIT_STOPPED = 5,    /* df_kvm_stop() */
	DF_KVM_EXIT_HALT = 6,	    /* hlt, without an irqchip */
	DF_KVM_EXIT_SHUTDOWN = 7,   /* triple fault */
	DF_KVM_EXIT_INTERNAL = 8,   /* KVM_EXIT_INTERNAL_ERROR: detail is suberror and its data */
	DF_KVM_EXIT_FAIL_ENTRY = 9, /* detail[0]: the hardware's reason */
	DF_KVM_EXIT_MEMORY = 10,    /* KVM_EXIT_MEMORY_FAULT (6.8): gpa, length, detail[0]: flags */
	DF_KVM_EXIT_PORT = 11,	    /* an unknown port; gpa is its number */
	DF_KVM_EXIT_OTHER = 12,	    /* see error or exit_reason */
};

struct df_kvm_exit {
	uint32_t vcpu;
	uint32_t kind;
	int32_t error;	      /* KVM_RUN's errno, positive; or 0 */
	uint32_t exit_reason; /* struct kvm_run */
	uint64_t time_ns;     /* CLOCK_MONOTONIC */
	uint64_t serial;      /* of this vCPU's exits */
	uint64_t gpa;
	uint64_t hva;
	uint64_t value;
	uint32_t length;
	uint32_t write;
	uint64_t detail[4];
};

struct df_kvm_options {
	uint32_t vcpus;	  /* 1 ... DF_KVM_MAX_VCPUS */
	uint32_t irqchip; /* bool */
	uint32_t spin;	  /* bool: the guest waits without hlt */
};

/* From KVM_GET_REGS, GET_SREGS and GET_VCPU_EVENTS; only rax ... rflags are set. */
struct df_kvm_registers {
	uint64_t rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp;
	uint64_t r8, r9, r10, r11, r12, r13, r14, r15;
	uint64_t rip, rflags;
	uint64_t cr0, cr2, cr3, cr4, efer;
	uint32_t cs, ss;
	uint32_t cpl;
	uint32_t exception; /* 1: one is pending or being injected, and its vector */
	uint32_t vector;
	uint32_t pad;
};

struct df_kvm_mce {
	uint64_t status;
	uint64_t address;
	uint64_t misc;
	uint64_t mcg_status;
	uint32_t bank;
	uint32_t pad;
};

/* An access that failed. */
struct df_kvm_failure {
	uint64_t gva;
	uint64_t gpa;
	uint32_t write; /* bool */
	uint32_t user;	/* bool: ring 3 */
};

struct df_kvm_stat {
	char name[48];
	uint64_t value;
};

struct df_kvm_abilities {
	int32_t api;	    /* KVM_GET_API_VERSION */
	uint32_t long_mode; /* the guest's CPU has it */
	uint32_t x2apic;
	uint32_t async_pf; /* KVM_FEATURE_ASYNC_PF and ASYNC_PF_INT */
	uint32_t irqchip;
	uint32_t immediate_exit;
	uint32_t stats; /* KVM_CAP_BINARY_STATS_FD (5.14) */
	uint32_t mce;
	uint32_t msi;
	uint32_t memory_fault; /* KVM_CAP_MEMORY_FAULT_INFO (6.8) */
};

/* The ioctl (or call) that failed last in this thread. */
const char *df_kvm_call(void);

int df_kvm_probe(struct df_kvm_abilities *out);

/* Load the guest and start the threads; each vCPU waits for its first resume. */
int df_kvm_new(const struct df_kvm_options *options, struct df_kvm **out);
/* Stop the vCPUs and free the machine.  The memory of memslots must stay mapped until it returns. */
void df_kvm_free(struct df_kvm *machine);
/* The guest's memory, DF_KVM_RAM_LEN bytes. */
void *df_kvm_ram(struct df_kvm *machine);
/* Replace the slot; length 0 removes it.  Slot 0 is the guest's memory.  No vCPU runs meanwhile, so
 * that none finds the slot missing. */
int df_kvm_memslot(struct df_kvm *machine, uint32_t slot, uint64_t gpa, uint64_t len, uint64_t hva);

/* -> a descriptor that is readable when df_kvm_exits() has records. */
int df_kvm_exits_fd(struct df_kvm *machine);
/* -> records that were not returned before, at most one for each vCPU. */
int df_kvm_exits(struct df_kvm *machine, struct df_kvm_exit *out, int most);
/* -EBUSY: the vCPU runs. */
int df_kvm_resume(struct df_kvm *machine, uint32_t vcpu);
/* Make the vCPU exit.  The record is DF_KVM_EXIT_STOPPED, or an exit that happened first.
 * -EALREADY: it does not run. */
int df_kvm_stop(struct df_kvm *machine, uint32_t vcpu);
/* -> CPU time of the vCPU's thread, in ns. */
int64_t df_kvm_cpu_ns(struct df_kvm *machine, uint32_t vcpu);

/* These need a vCPU that has exited; otherwise -EBUSY. */
int df_kvm_registers(struct df_kvm *machine, uint32_t vcpu, struct df_kvm_registers *out);
int df_kvm_set_registers(struct df_kvm *machine, uint32_t vcpu,
			 const struct df_kvm_registers *registers);
/* `code` < 0: the exception has none.  cr2 is set when `has_cr2`. */
int df_kvm_exception(struct df_kvm *machine, uint32_t vcpu, uint32_t vector, int64_t code,
		     int has_cr2, uint64_t cr2);
int df_kvm_machine_check(struct df_kvm *machine, uint32_t vcpu, const struct df_kvm_mce *mce);
/* Report to the guest that the access at its rip failed; `via`: DF_KVM_VIA_AREA, PF, MC or EVENT.
 * -EAGAIN: another event is pending, or the guest has not read the last report. */
int df_kvm_report(struct df_kvm *machine, uint32_t vcpu, uint32_t via,
		  const struct df_kvm_failure *failure);
/* Translate a gva by the guest's page tables; -ENOENT: it is not mapped. */
int df_kvm_translate(struct df_kvm *machine, uint32_t vcpu, uint64_t gva, uint64_t *gpa);

int df_kvm_msi(struct df_kvm *machine, uint32_t vcpu, uint32_t vector);
/* Fault counters of a vCPU, which may run; as df_kvm_stats(). */
struct df_kvm_faults {
	uint64_t taken; /* pf_taken, or pf_guest if that is more */
	uint64_t fixed;
};
int df_kvm_faults(struct df_kvm *machine, uint32_t vcpu, struct df_kvm_faults *out);
/* -> cycles of the guest's TSC per millisecond. */
int df_kvm_tsc_khz(struct df_kvm *machine, uint32_t vcpu);
/* -> the number of statistics of a vCPU, which may run; -ENOSYS before Linux 5.14. */
int df_kvm_stats(struct df_kvm *machine, uint32_t vcpu, struct df_kvm_stat *out, int most);

/* ---------------------------------------------------- the memory under a memslot */

/* These map memory and set *hva.  No huge pages, so that a fault is of one page. */
/* `writable`: bool.  KVM maps pages for writing even for loads if it may, and marks them dirty;
 * they are written back to the file then. */
int df_window_file(int fd, uint64_t offset, uint64_t len, int writable, uint64_t *hva);
int df_window_anonymous(uint64_t len, uint64_t *hva);
int df_window_unmap(uint64_t hva, uint64_t len);
/* These replace a mapping atomically, without a hole: */
int df_window_vacate(uint64_t hva, uint64_t len); /* reserved anonymous PROT_NONE memory */
int df_window_again(int fd, uint64_t offset, uint64_t hva, uint64_t len, int writable); /* the file */
int df_window_forbid(uint64_t hva, uint64_t len); /* PROT_NONE */
int df_window_poison(uint64_t hva, uint64_t len); /* poison; EINVAL before Linux 6.6 */

/* DF_CDEF_END */

#endif
