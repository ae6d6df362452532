/* SPDX-License-Identifier: Apache-2.0
 *
 * probe.h - the experiments of daxfault-kvm-probe, and the findings.
 *
 * Owns the struct of a finding.  probe_report.c writes it as JSON; docs/kvm.md explains it.
 */
#ifndef DAXFAULT_KVM_PROBE_H
#define DAXFAULT_KVM_PROBE_H

#include <stdbool.h>
#include <stdio.h>
#include <sys/utsname.h>

#include "internal.h"

enum {
	PROBE_CASES = 5,
	PROBE_RESCUES = 4,
	PROBE_INJECTIONS = 4,
	PROBE_WHY = 160,
	PROBE_MODULES = 4,
};

/* Kernel, CPU and KVM. */
struct probe_host {
	struct utsname system;
	char vendor[13]; /* of the CPU */
	char model[49];
	char hypervisor[13]; /* under this kernel, by CPUID; "" on bare metal */
	const char *backend; /* "vmx", "svm", "pvm" or "unknown" */
	const char *modules[PROBE_MODULES + 1];
	bool nested;
	bool spin;	    /* the guest waits without hlt */
	char signature[13]; /* KVM's CPUID leaf 0x40000000 for guests */
	uint32_t features;  /* its leaf 0x40000001, %eax */
	struct df_kvm_abilities can;
};

/* An access to a page that a truncation has removed. */
struct probe_case {
	const char *name;
	bool apf;
	bool irqs;
	bool irqchip;
	bool user;
};

enum probe_outcome {
	PROBE_UNTRIED, /* see `why` */
	PROBE_LOOP,    /* no exit, and endless faults */
	PROBE_SILENT,  /* no exit, and no counter moves */
	PROBE_EXIT,    /* KVM_RUN returned */
};

struct probe_found {
	enum probe_outcome outcome;
	const char *exit;
	bool counted; /* by KVM's statistics; otherwise by the guest */
	uint64_t faults;
	double seconds;	      /* duration of the count */
	uint64_t not_present; /* the guest's counts in that time */
	uint64_t ready;
	char why[PROBE_WHY];
};

/* Ending the loop. */
struct probe_rescue {
	bool works;
	const char *exit;
	const char *where;   /* "gpa", "page" or "nowhere"; "wrong" is a defect of KVM */
	double milliseconds; /* from the call to the exit */
	char why[PROBE_WHY];
};

/* Reporting to the guest. */
struct probe_injection {
	bool works; /* a SIGBUS in ring 3, with the address */
	char why[PROBE_WHY];
};

struct probe {
	double watch; /* seconds for which a loop is watched */
	struct probe_host host;
	struct probe_found found[PROBE_CASES];
	struct probe_rescue rescue[PROBE_RESCUES];
	struct probe_injection injection[PROBE_INJECTIONS];
	int loop;		  /* the case used for the rescues, or -1 */
	int ended_by;		  /* the rescue used before the injections, or -1 */
	int injected;		  /* the case used for the injections, or -1 */
	char unusable[PROBE_WHY]; /* why no experiment was possible, or "" */
	double seconds;
};

extern const struct probe_case probe_cases[PROBE_CASES];
extern const char *const probe_rescues[PROBE_RESCUES];
extern const char *const probe_injections[PROBE_INJECTIONS];

/* probe_host.c */
void probe_host(struct probe *probe);

/* probe_case.c: the outcome of the access */
void probe_faults(struct probe *probe);
/* probe_answer.c: rescues and injections */
void probe_answers(struct probe *probe);

/* probe_report.c */
void probe_report(const struct probe *probe, FILE *out);

/* ------------------------------------------------- trial.c: one guest, one file */

struct trial {
	struct df_kvm *machine;
	const struct probe_case *what;
	int file;
	uint64_t hva;
	struct df_kvm_exit exit;
	char why[PROBE_WHY];
};

#define TRIAL_PAGES 16
#define TRIAL_CUT 8 /* pages that the truncation leaves */
#define TRIAL_LIVE (TRIAL_CUT * 4096UL)
#define TRIAL_OFFSET (TRIAL_LIVE + 5) /* of the access */

/* Start a guest, have it touch every page, then truncate the file.  -> false, with trial->why. */
bool trial_begin(struct trial *trial, const struct probe *probe, const struct probe_case *what);
void trial_end(struct trial *trial);
/* Start the access.  -> false, with trial->why. */
bool trial_touch(struct trial *trial);
/* -> whether the vCPU exited within `seconds`; if so, trial->exit is set. */
bool trial_exits(struct trial *trial, double seconds);
bool trial_resume(struct trial *trial);
const struct df_kvm_mailbox *trial_mailbox(const struct trial *trial);
const char *trial_exit_name(const struct df_kvm_exit *exit);
double trial_now(void);

#endif
