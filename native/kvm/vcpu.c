/* SPDX-License-Identifier: Apache-2.0
 *
 * vcpu.c - the thread of a vCPU: run, describe the exit, wait to be resumed.
 *
 * Owns KVM_RUN.  All signals are blocked in this thread, except two inside KVM_RUN
 * (KVM_SET_SIGNAL_MASK): the kick, and the SIGBUS by which KVM reports a poisoned page.  They end
 * KVM_RUN with EINTR and are then dequeued.  So no handler of the process runs, and a kick before
 * KVM_RUN is not lost.  Must not touch the guest's memory.
 */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/thread.h"
#include "internal.h"

#define KICK (SIGRTMIN + 3)
#define HOLD_MS 100

static int open_signals(struct vcpu *vcpu)
{
	struct {
		struct kvm_signal_mask head;
		uint64_t set;
	} mask = { .head = { .len = 8 } };

	/* the kernel's sigset_t: signal n is bit n - 1.  Copied to the flexible array member,
	 * because a member declared after it could be padded. */
	uint64_t blocked = ~(1ULL << (SIGBUS - 1) | 1ULL << (KICK - 1));

	memcpy(mask.head.sigset, &blocked, sizeof(blocked));
	return kvm_ioctl(vcpu->fd, KVM_SET_SIGNAL_MASK, &mask, "KVM_SET_SIGNAL_MASK");
}

/* Dequeue pending signals; -> whether a SIGBUS was among them */
static bool take_signals(struct df_kvm_exit *exit)
{
	const struct timespec at_once = { 0, 0 };
	bool bus = false;
	siginfo_t found;
	sigset_t both;

	sigemptyset(&both);
	sigaddset(&both, SIGBUS);
	sigaddset(&both, KICK);
	while (sigtimedwait(&both, &found, &at_once) > 0) {
		if (found.si_signo != SIGBUS)
			continue;
		bus = true;
		exit->hva = (uintptr_t)found.si_addr;
		exit->detail[0] = (uint64_t)found.si_code;
	}
	return bus;
}

static void describe_port(const struct kvm_run *run, struct df_kvm_exit *exit)
{
	const uint8_t *at = (const uint8_t *)run + run->io.data_offset;
	size_t len = run->io.size < 8 ? run->io.size : 8;

	exit->kind = run->io.port == DF_KVM_DOORBELL && run->io.direction == KVM_EXIT_IO_OUT
			     ? DF_KVM_EXIT_DOORBELL
			     : DF_KVM_EXIT_PORT;
	exit->gpa = run->io.port;
	exit->length = run->io.size;
	exit->write = run->io.direction == KVM_EXIT_IO_OUT;
	memcpy(&exit->value, at, len);
}

static void describe_mmio(const struct kvm_run *run, struct df_kvm_exit *exit)
{
	exit->kind = DF_KVM_EXIT_MMIO;
	exit->gpa = run->mmio.phys_addr;
	exit->length = run->mmio.len;
	exit->write = run->mmio.is_write;
	memcpy(&exit->value, run->mmio.data, sizeof(exit->value));
}

static void describe_internal(const struct kvm_run *run, struct df_kvm_exit *exit)
{
	exit->kind = DF_KVM_EXIT_INTERNAL;
	exit->detail[0] = run->internal.suberror;
	for (uint32_t i = 0; i < run->internal.ndata && i < 3; i++)
		exit->detail[i + 1] = run->internal.data[i];
}

static void describe_memory(const struct kvm_run *run, struct df_kvm_exit *exit)
{
	uint64_t fault[3]; /* flags, gpa, size: not in 6.1's headers */

	memcpy(fault, &run->hw, sizeof(fault));
	exit->kind = DF_KVM_EXIT_MEMORY;
	exit->detail[0] = fault[0];
	exit->gpa = fault[1];
	exit->length = (uint32_t)fault[2];
}

static void describe_reason(const struct kvm_run *run, struct df_kvm_exit *exit)
{
	switch (run->exit_reason) {
	case KVM_EXIT_IO:
		describe_port(run, exit);
		break;
	case KVM_EXIT_MMIO:
		describe_mmio(run, exit);
		break;
	case KVM_EXIT_HLT:
		exit->kind = DF_KVM_EXIT_HALT;
		break;
	case KVM_EXIT_SHUTDOWN:
		exit->kind = DF_KVM_EXIT_SHUTDOWN;
		break;
	case KVM_EXIT_INTERNAL_ERROR:
		describe_internal(run, exit);
		break;
	case KVM_EXIT_FAIL_ENTRY:
		exit->kind = DF_KVM_EXIT_FAIL_ENTRY;
		exit->detail[0] = run->fail_entry.hardware_entry_failure_reason;
		break;
	case KVM_EXIT_MEMORY_FAULT:
		describe_memory(run, exit);
		break;
	default:
		exit->kind = DF_KVM_EXIT_OTHER;
	}
}

/* KVM completes a port or MMIO access at the next KVM_RUN; until then the registers are not valid
 * (Documentation/virt/kvm/api.rst, 5. The kvm_run structure).  An access may have several parts. */
static void complete(struct vcpu *vcpu)
{
	vcpu->run->immediate_exit = 1;
	for (int parts = 0; parts < 16; parts++)
		if (ioctl(vcpu->fd, KVM_RUN, 0) < 0)
			break;
	vcpu->run->immediate_exit = 0;
}

/* The value that completes the access must have no effect, so the registers of the exit are
 * restored. rip is at the load again, which the guest repeats.  A string instruction would
 * continue to its end with zeros; with 1 in %rcx it does one step (x86_emulate_insn(); an
 * emulation in progress reads KVM_SET_REGS, vcpu->arch.emulate_regs_need_sync_from_vcpu). */
static void complete_mmio(struct vcpu *vcpu, bool write)
{
	struct kvm_regs before, one;

	if (ioctl(vcpu->fd, KVM_GET_REGS, &before)) {
		complete(vcpu);
		return;
	}
	if (!write) {
		one = before;
		one.rcx = 1;
		ioctl(vcpu->fd, KVM_SET_REGS, &one);
		memset(vcpu->run->mmio.data, 0, sizeof(vcpu->run->mmio.data));
	}
	complete(vcpu);
	ioctl(vcpu->fd, KVM_SET_REGS, &before);
}

/* Wait while the vCPUs are held; -> whether this one may run. */
static bool may_run(struct vcpu *vcpu)
{
	struct df_kvm *machine = vcpu->machine;

	GUARD(&machine->lock);
	while (machine->holds && !vcpu->stop) {
		vcpu->held = true;
		pthread_cond_signal(&machine->left);
		pthread_cond_wait(&vcpu->changed, &machine->lock);
	}
	vcpu->held = false;
	if (!vcpu->stop)
		vcpu->run->immediate_exit = 0;
	return !vcpu->stop;
}

/* Run until there is an exit to report. */
static void run(struct vcpu *vcpu, struct df_kvm_exit *exit)
{
	struct kvm_run *shared = vcpu->run;

	while (may_run(vcpu)) {
		memset(exit, 0, sizeof(*exit));
		shared->exit_reason = KVM_EXIT_UNKNOWN;
		exit->error = ioctl(vcpu->fd, KVM_RUN, 0) ? errno : 0;
		exit->exit_reason = shared->exit_reason;
		if (exit->error == EINTR || exit->error == EAGAIN) {
			if (take_signals(exit)) {
				exit->kind = DF_KVM_EXIT_SIGBUS;
				return;
			}
		} else if (exit->error == EFAULT && shared->exit_reason != KVM_EXIT_MEMORY_FAULT) {
			exit->kind = DF_KVM_EXIT_EFAULT;
			return;
		} else {
			describe_reason(shared, exit);
			if (exit->kind == DF_KVM_EXIT_MMIO)
				complete_mmio(vcpu, exit->write);
			else if (exit->kind == DF_KVM_EXIT_DOORBELL || exit->kind == DF_KVM_EXIT_PORT)
				complete(vcpu);
			return;
		}
	}
	memset(exit, 0, sizeof(*exit));
	exit->kind = DF_KVM_EXIT_STOPPED;
}

static void record(struct vcpu *vcpu, struct df_kvm_exit *exit)
{
	exit->vcpu = vcpu->number;
	exit->serial = ++vcpu->serial;
	exit->time_ns = now_ns();
	vcpu->exit = *exit;
	vcpu->unread = true;
	vcpu->stop = false;
	vcpu->run->immediate_exit = 0;
	eventfd_write(vcpu->machine->exits_fd, 1);
}

static void *vcpu_thread(void *arg)
{
	struct vcpu *vcpu = arg;
	struct df_kvm *machine = vcpu->machine;
	struct df_kvm_exit exit;

	pthread_mutex_lock(&machine->lock);
	for (;;) {
		while (vcpu->state == VCPU_WAITS)
			pthread_cond_wait(&vcpu->changed, &machine->lock);
		if (vcpu->state == VCPU_ENDS)
			break;
		pthread_mutex_unlock(&machine->lock);
		run(vcpu, &exit);
		pthread_mutex_lock(&machine->lock);
		if (vcpu->state == VCPU_ENDS)
			break;
		vcpu->state = VCPU_WAITS;
		record(vcpu, &exit);
		pthread_cond_signal(&machine->left);
	}
	pthread_mutex_unlock(&machine->lock);
	return NULL;
}

int vcpu_start(struct vcpu *vcpu)
{
	int error = open_signals(vcpu);

	if (error)
		return error;
	error = thread_start(&vcpu->thread, vcpu_thread, vcpu, "df-vcpu");
	if (error) {
		errno = -error;
		return kvm_refused("pthread_create");
	}
	vcpu->started = true;
	return 0;
}

/* Called under the machine's lock, so that the thread exists.  The signal alone is enough;
 * immediate_exit saves a KVM_RUN that has not begun from entering the guest. */
static void kick(struct vcpu *vcpu)
{
	vcpu->run->immediate_exit = 1;
	pthread_kill(vcpu->thread, KICK);
}

static void stop(struct vcpu *vcpu)
{
	vcpu->stop = true;
	kick(vcpu);
	pthread_cond_broadcast(&vcpu->changed); /* it may be held */
}

static bool inside(const struct df_kvm *machine)
{
	for (uint32_t i = 0; i < machine->vcpus; i++)
		if (machine->vcpu[i].state == VCPU_RUNS && !machine->vcpu[i].held)
			return true;
	return false;
}

void vcpus_hold(struct df_kvm *machine)
{
	uint64_t until = now_ns() + HOLD_MS * UINT64_C(1000000);

	GUARD(&machine->lock);
	machine->holds++;
	for (uint32_t i = 0; i < machine->vcpus; i++)
		if (machine->vcpu[i].state == VCPU_RUNS)
			kick(&machine->vcpu[i]);
	while (inside(machine) && clock_wait(&machine->left, &machine->lock, until))
		;
}

void vcpus_release(struct df_kvm *machine)
{
	GUARD(&machine->lock);
	machine->holds--;
	for (uint32_t i = 0; i < machine->vcpus; i++)
		pthread_cond_broadcast(&machine->vcpu[i].changed);
}

void vcpu_end(struct vcpu *vcpu)
{
	if (!vcpu->started)
		return;
	pthread_mutex_lock(&vcpu->machine->lock);
	vcpu->state = VCPU_ENDS;
	stop(vcpu);
	pthread_mutex_unlock(&vcpu->machine->lock);
	pthread_join(vcpu->thread, NULL);
}

int df_kvm_resume(struct df_kvm *machine, uint32_t number)
{
	struct vcpu *vcpu = &machine->vcpu[number];

	if (number >= machine->vcpus)
		return -EINVAL;
	GUARD(&machine->lock);
	if (vcpu->state != VCPU_WAITS || vcpu->unread)
		return -EBUSY;
	vcpu->state = VCPU_RUNS;
	pthread_cond_broadcast(&vcpu->changed);
	return 0;
}

int df_kvm_stop(struct df_kvm *machine, uint32_t number)
{
	struct vcpu *vcpu = &machine->vcpu[number];

	if (number >= machine->vcpus)
		return -EINVAL;
	GUARD(&machine->lock);
	if (vcpu->state != VCPU_RUNS)
		return -EALREADY;
	stop(vcpu);
	return 0;
}

int df_kvm_exits(struct df_kvm *machine, struct df_kvm_exit *out, int most)
{
	eventfd_t ignored;
	int n = 0;

	GUARD(&machine->lock);
	eventfd_read(machine->exits_fd, &ignored);
	for (uint32_t i = 0; i < machine->vcpus; i++) {
		struct vcpu *vcpu = &machine->vcpu[i];

		if (!vcpu->unread)
			continue;
		if (n == most) {
			eventfd_write(machine->exits_fd, 1); /* there is more */
			break;
		}
		out[n++] = vcpu->exit;
		vcpu->unread = false;
	}
	return n;
}

int64_t df_kvm_cpu_ns(struct df_kvm *machine, uint32_t vcpu)
{
	struct timespec time;
	clockid_t clock;

	if (vcpu >= machine->vcpus || pthread_getcpuclockid(machine->vcpu[vcpu].thread, &clock) ||
	    clock_gettime(clock, &time))
		return -EINVAL;
	return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}
