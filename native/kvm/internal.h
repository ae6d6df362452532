/* SPDX-License-Identifier: Apache-2.0
 *
 * internal.h - the machine's own structs.  Owns nothing; not seen by Python.
 */
#ifndef DAXFAULT_KVM_INTERNAL_H
#define DAXFAULT_KVM_INTERNAL_H

#include <linux/kvm.h>
#include <pthread.h>
#include <stdbool.h>
#include <sys/types.h>

#include "kvm.h"

/* newer than the headers of Debian 12 (Linux 6.1) */
#ifndef KVM_CAP_MEMORY_FAULT_INFO
#define KVM_CAP_MEMORY_FAULT_INFO 232
#endif
#ifndef KVM_EXIT_MEMORY_FAULT
#define KVM_EXIT_MEMORY_FAULT 39
#endif

/* the guest, from kvm/embed.py */
extern const unsigned char kvm_image[];
extern const unsigned long kvm_image_len;

enum vcpu_state {
	VCPU_WAITS, /* for df_kvm_resume() */
	VCPU_RUNS,
	VCPU_ENDS, /* the machine is being freed */
};

struct vcpu {
	struct df_kvm *machine;
	uint32_t number;
	int fd;
	int stats_fd; /* or -1 */
	struct kvm_run *run;
	pthread_t thread;
	bool started;
	pthread_cond_t changed;
	/* under machine->lock */
	enum vcpu_state state;
	bool stop;
	bool held;   /* out of KVM_RUN, for as long as machine->holds */
	bool unread; /* `exit` */
	uint64_t serial;
	struct df_kvm_exit exit;
};

struct df_kvm {
	int kvm, vm;
	size_t run_len;
	bool irqchip;
	bool spin;
	int exits_fd;
	uint8_t *ram;
	uint32_t vcpus;
	pthread_mutex_t lock;
	pthread_cond_t left; /* a vCPU is held, or has stopped */
	uint32_t holds;	     /* under lock */
	struct vcpu vcpu[DF_KVM_MAX_VCPUS];
};

/* call.c: -> the ioctl's value, or a negative errno; `name` is kept for df_kvm_call(). */
int kvm_ioctl(int fd, unsigned long request, void *arg, const char *name);
int kvm_refused(const char *name); /* -> -errno */

/* vcpu.c */
int vcpu_start(struct vcpu *vcpu);
void vcpu_end(struct vcpu *vcpu);
/* Keep every vCPU out of KVM_RUN, without an exit record, until vcpus_release().  Does not wait
 * longer than HOLD_MS for a vCPU to leave KVM_RUN. */
void vcpus_hold(struct df_kvm *machine);
void vcpus_release(struct df_kvm *machine);

/* setup.c */
int vcpu_setup(struct vcpu *vcpu, struct kvm_cpuid2 *cpuid);
struct kvm_cpuid2 *kvm_cpuid(int kvm); /* NULL: see errno */

/* stats.c: -> the descriptor or -1 */
int stats_open(int fd);

#endif
