/* SPDX-License-Identifier: Apache-2.0
 *
 * exception.c - the guest kernel's exception entry.
 *
 * Owns the signal handlers of the vCPU threads.  DF_APF_EXCEPTION plays the
 * guest's #PF: it takes an event from the vCPU's slot and decides as a kernel
 * does, by where the interrupted instruction lies.  In guest kernel code the
 * exception table says where to go on, or the guest panics; anywhere else it is
 * the user's SIGBUS.  A SIGBUS the processor raised itself, from poison or from
 * a file that ended, goes the same way.
 *
 * Everything here runs in signal handlers: no locks, no allocation, no output.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include "standin.h"

enum {
	SIGNAL_STACK_SIZE = 65536,
};

struct ex_entry {
	int32_t insn;
	int32_t fixup;
};

extern const struct ex_entry guest_ex_table_start[], guest_ex_table_end[];
extern const char guest_kernel_start[], guest_kernel_end[];

static __thread void *signal_stack;

static bool in_guest_kernel(uintptr_t ip)
{
	return ip >= (uintptr_t)guest_kernel_start && ip < (uintptr_t)guest_kernel_end;
}

/* As search_exception_table() and ex_fixup_addr(); unsorted, it is short. */
static uintptr_t fixup_of(uintptr_t ip)
{
	const struct ex_entry *e;

	for (e = guest_ex_table_start; e < guest_ex_table_end; e++) {
		if ((uintptr_t)&e->insn + (intptr_t)e->insn == ip)
			return (uintptr_t)&e->fixup + (intptr_t)e->fixup;
	}
	return 0;
}

static void record(struct vcpu *v, const struct fault *f)
{
	if (v->result.faults++ == 0)
		v->result.fault = *f;
}

static void kernel_fault(struct vcpu *v, ucontext_t *uc, const struct fault *f)
{
	uintptr_t ip = (uintptr_t)uc->uc_mcontext.gregs[REG_RIP];
	uintptr_t fixup = fixup_of(ip);

	record(v, f);
	if (fixup) {
		uc->uc_mcontext.gregs[REG_RIP] = (greg_t)fixup;
		return;
	}
	v->result.outcome = OUTCOME_PANIC;
	v->result.instruction = ip;
	v->result.done = v->to - v->from - (uint64_t)uc->uc_mcontext.gregs[REG_RCX];
	siglongjmp(v->escape, 1);
}

/* What force_sig_fault() does (kernel/signal.c, force_sig_info_to_task()): a
 * process that cannot be told dies.  The signal stays pending until this
 * handler returns, because SIGBUS is in its mask, and is then delivered with
 * the faulting instruction still the current one. */
static void user_fault(struct vcpu *v, ucontext_t *uc, const struct fault *f)
{
	struct sigaction old;
	siginfo_t si;

	sigaction(SIGBUS, NULL, &old);
	if (old.sa_handler == SIG_DFL || old.sa_handler == SIG_IGN ||
	    sigismember(&uc->uc_sigmask, SIGBUS)) {
		signal(SIGBUS, SIG_DFL);
		sigdelset(&uc->uc_sigmask, SIGBUS);
	}

	v->pending = *f;
	memset(&si, 0, sizeof(si));
	si.si_signo = SIGBUS;
	si.si_code = f->si_code;
	si.si_addr = (void *)(uintptr_t)f->address;
	/* A si_code of the kernel's is allowed to the thread itself, and to
	 * nobody else (kernel/signal.c, do_rt_tgsigqueueinfo()). */
	syscall(SYS_rt_tgsigqueueinfo, getpid(), v->tid, SIGBUS, &si);
}

static bool touches(const struct vcpu *v, uint64_t address)
{
	return v->in_access && address >= v->from && address < v->to;
}

/* Whether the interrupted context can be the one that faulted there.  A fault
 * that is woken without an answer is raised a second time, and may be reported
 * a second time when the vCPU has long gone on.  Such an event is dropped, and
 * nothing is lost: what is touched again faults again. */
static bool concerns(const struct vcpu *v, const ucontext_t *uc, uint64_t address)
{
	uint64_t at;

	if (!touches(v, address))
		return false;
	if (v->in_syscall)
		return true;
	if (!in_guest_kernel((uintptr_t)uc->uc_mcontext.gregs[REG_RIP]))
		return address == v->from + v->result.done;

	/* %rcx counts down.  An implementation may report a byte of the string
	 * that is a little ahead of it. */
	at = v->to - (uint64_t)uc->uc_mcontext.gregs[REG_RCX];
	return address >= at && address < at + DF_PAGE_SIZE;
}

static void exception_entry(int sig, siginfo_t *unused, void *context)
{
	struct vcpu *v = this_vcpu;
	ucontext_t *uc = context;
	int saved = errno;
	struct fault f;
	struct df_apf_report *slot;
	uint32_t flags;

	(void)sig;
	(void)unused;
	if (!v)
		return;

	slot = &v->slot->apf.report;
	flags = __atomic_exchange_n(&slot->flags, 0, __ATOMIC_ACQUIRE);
	if (!(flags & DF_APF_PAGE_ERROR)) {
		/* Withdrawn: the page healed first.  The access is repeated. */
		atomic_fetch_add_explicit(&v->spurious, 1, memory_order_relaxed);
		goto out;
	}
	f = (struct fault){
		.address = slot->gva,
		.si_code = BUS_ADRERR,
		.error = slot->error,
		.reason = slot->reason,
		.attempts = slot->attempts,
	};

	if (!concerns(v, uc, f.address)) {
		atomic_fetch_add_explicit(&v->stray, 1, memory_order_relaxed);
		goto out;
	}
	atomic_fetch_add_explicit(&v->events, 1, memory_order_relaxed);
	v->result.events++;

	if (v->in_syscall)
		/* The system call has its EFAULT, or its short count, already:
		 * only a resolved page lets it come back to user mode. */
		record(v, &f);
	else if (in_guest_kernel((uintptr_t)uc->uc_mcontext.gregs[REG_RIP]))
		kernel_fault(v, uc, &f);
	else
		user_fault(v, uc, &f);
out:
	errno = saved;
}

/* The handler a user program would have installed; and, before it, what the
 * guest kernel does with a fault the processor raised. */
static void fault_signal(int sig, siginfo_t *si, void *context)
{
	struct vcpu *v = this_vcpu;
	ucontext_t *uc = context;
	uint64_t address = (uint64_t)(uintptr_t)si->si_addr;
	struct fault f = { .address = address, .si_code = si->si_code };

	if (!v || !touches(v, address)) {
		signal(sig, SIG_DFL);	/* a bug of ours: taken again, and deadly */
		return;
	}
	if (v->pending.address == address && v->pending.si_code == si->si_code)
		f = v->pending;
	v->pending = (struct fault){ 0 };

	if (in_guest_kernel((uintptr_t)uc->uc_mcontext.gregs[REG_RIP])) {
		kernel_fault(v, uc, &f);
		return;
	}
	record(v, &f);
	v->result.outcome = sig == SIGBUS ? OUTCOME_SIGBUS : OUTCOME_SIGSEGV;
	siglongjmp(v->escape, 1);
}

static int install(int sig, void (*handler)(int, siginfo_t *, void *))
{
	/* SA_RESTART: an event that was withdrawn must not end the system call
	 * it interrupts. */
	struct sigaction sa = {
		.sa_sigaction = handler,
		.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART,
	};

	sigemptyset(&sa.sa_mask);
	sigaddset(&sa.sa_mask, SIGBUS);
	sigaddset(&sa.sa_mask, SIGSEGV);
	sigaddset(&sa.sa_mask, DF_APF_EXCEPTION);
	return sigaction(sig, &sa, NULL);
}

int exception_install(void)
{
	if (install(DF_APF_EXCEPTION, exception_entry) < 0 ||
	    install(SIGBUS, fault_signal) < 0 ||
	    install(SIGSEGV, fault_signal) < 0)
		return -1;
	return 0;
}

/* An alternate stack, as a guest that faults on its own stack would need. */
int exception_thread_start(void)
{
	stack_t ss = { .ss_size = SIGNAL_STACK_SIZE };

	signal_stack = malloc(SIGNAL_STACK_SIZE);
	if (!signal_stack)
		return -1;
	ss.ss_sp = signal_stack;
	return sigaltstack(&ss, NULL);
}

void exception_thread_end(void)
{
	stack_t ss = { .ss_flags = SS_DISABLE };

	sigaltstack(&ss, NULL);
	free(signal_stack);
	signal_stack = NULL;
}

/* The disposition is the process's, the mask the calling vCPU's.  With anything
 * but SIGBUS_HANDLE, poison is deadly in guest kernel mode too: the processor's
 * own SIGBUS is the only way it is told. */
int exception_sigbus(enum sigbus_disposition disposition)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGBUS);
	switch (disposition) {
	case SIGBUS_HANDLE:
		pthread_sigmask(SIG_UNBLOCK, &set, NULL);
		return install(SIGBUS, fault_signal);
	case SIGBUS_DEFAULT:
		return signal(SIGBUS, SIG_DFL) == SIG_ERR ? -1 : 0;
	case SIGBUS_IGNORE:
		return signal(SIGBUS, SIG_IGN) == SIG_ERR ? -1 : 0;
	case SIGBUS_BLOCK:
		errno = pthread_sigmask(SIG_BLOCK, &set, NULL);
		return errno ? -1 : 0;
	}
	errno = EINVAL;
	return -1;
}
