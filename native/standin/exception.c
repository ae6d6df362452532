/* SPDX-License-Identifier: Apache-2.0
 *
 * exception.c - the guest kernel's exception and interrupt entries.
 *
 * Owns the signal handlers of the vCPU threads.  DF_APF_EXCEPTION models the guest's #PF.  "Not
 * present" parks the task.  An error is handled by the address of the interrupted instruction, as
 * in a kernel: in guest kernel code by the exception table's fixup, or else a panic; anywhere else
 * by SIGBUS to the user.  A SIGBUS from this kernel, for poison or past EOF, is handled the same
 * way. DF_APF_INTERRUPT models the "page ready" interrupt.
 *
 * A handler runs on the stack of the interrupted task and may switch to another task; its frame
 * stays there until the task runs again.  Guest kernel code outside an access has these signals
 * blocked, so that they never interrupt the holder of a lock.  Handlers must not allocate or print.
 */
#include <errno.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include "standin.h"

struct ex_entry {
	int32_t insn;
	int32_t fixup;
};

extern const struct ex_entry guest_ex_table_start[], guest_ex_table_end[];
extern const char guest_kernel_start[], guest_kernel_end[];

static bool in_guest_kernel(uintptr_t ip)
{
	return ip >= (uintptr_t)guest_kernel_start && ip < (uintptr_t)guest_kernel_end;
}

/* As search_exception_table() and ex_fixup_addr(); the table is short, so it is not sorted. */
static uintptr_t fixup_of(uintptr_t ip)
{
	const struct ex_entry *e;

	for (e = guest_ex_table_start; e < guest_ex_table_end; e++) {
		if ((uintptr_t)&e->insn + (intptr_t)e->insn == ip)
			return (uintptr_t)&e->fixup + (intptr_t)e->fixup;
	}
	return 0;
}

static void record(struct task *t, const struct fault *f)
{
	if (t->result.faults++ == 0)
		t->result.fault = *f;
}

static void kernel_fault(struct task *t, ucontext_t *uc, const struct fault *f)
{
	uintptr_t ip = (uintptr_t)uc->uc_mcontext.gregs[REG_RIP];
	uintptr_t fixup = fixup_of(ip);

	record(t, f);
	trace_task(t, fixup ? TRACE_FIXUP : TRACE_PANIC, 0, f->address);
	if (fixup) {
		uc->uc_mcontext.gregs[REG_RIP] = (greg_t)fixup;
		return;
	}
	t->result.outcome = OUTCOME_PANIC;
	t->result.instruction = ip;
	t->result.done = t->to - t->from - (uint64_t)uc->uc_mcontext.gregs[REG_RCX];
	siglongjmp(t->escape, 1);
}

/* As force_sig_fault() (kernel/signal.c, force_sig_info_to_task()): a process that blocks or
 * ignores the signal dies.  June 2020 used send_sig_info(), which does not force it, so that the
 * access is repeated.  SIGBUS is in this handler's mask: it stays pending until the handler
 * returns, and is then delivered at the faulting instruction. */
static void user_fault(struct task *t, ucontext_t *uc, const struct fault *f)
{
	struct sigaction old;
	siginfo_t si;
	bool blocked = sigismember(&uc->uc_sigmask, SIGBUS);

	sigaction(SIGBUS, NULL, &old);
	if (guest.abi == DF_ABI_JUNE_2020) {
		if (blocked || old.sa_handler == SIG_IGN)
			return;
	} else if (blocked || old.sa_handler == SIG_DFL || old.sa_handler == SIG_IGN) {
		signal(SIGBUS, SIG_DFL);
		sigdelset(&uc->uc_sigmask, SIGBUS);
	}

	trace_task(t, TRACE_SIGBUS, 0, f->address);
	t->pending = *f;
	t->has_pending = 1;
	memset(&si, 0, sizeof(si));
	si.si_signo = SIGBUS;
	si.si_code = f->si_code;
	si.si_addr = (void *)(uintptr_t)f->address;
	/* Only the thread itself may send a si_code of the kernel (kernel/signal.c,
	 * do_rt_tgsigqueueinfo()). */
	syscall(SYS_rt_tgsigqueueinfo, getpid(), t->vcpu->tid, SIGBUS, &si);
}

/* Handle an error of the task at the interrupted instruction. */
static void fail_access(struct task *t, ucontext_t *uc, const struct fault *f)
{
	t->vcpu->last_error = *f;
	t->result.events++;
	count_one(&t->vcpu->count.events);
	if (in_guest_kernel((uintptr_t)uc->uc_mcontext.gregs[REG_RIP]))
		kernel_fault(t, uc, f);
	else
		user_fault(t, uc, f);
}

/* ------------------------------------------------------------------ errors that come at once */

static bool touches(const struct task *t, uint64_t address)
{
	return t && t->in_access && address >= t->from && address < t->to;
}

/* Whether the interrupted context can be the one that faulted there.  A fault that is woken
 * without an answer is raised again, and may be reported again after the vCPU has gone on.  Such
 * an event is dropped: the next access to the page faults again. */
static bool concerns(const struct task *t, const ucontext_t *uc, uint64_t address)
{
	uint64_t at;

	if (!touches(t, address))
		return false;
	if (!in_guest_kernel((uintptr_t)uc->uc_mcontext.gregs[REG_RIP]))
		return address == t->from + t->result.done;

	/* %rcx counts down.  A CPU may report an address a little ahead of it. */
	at = t->to - (uint64_t)uc->uc_mcontext.gregs[REG_RCX];
	return address >= at && address < at + DF_PAGE_SIZE;
}

/* ------------------------------------------------------------------ tokens */

/* SIGKILL ends a task before its next instruction in user mode. */
static void end_if_killed(struct task *t, uint32_t state)
{
	if (!t->killed || !t->in_access || t->has_pending || state & DF_CPU_KERNEL || !t->preemptible)
		return;
	t->result.outcome = OUTCOME_KILLED;
	siglongjmp(t->escape, 1);
}

/* kvm_handle_async_pf(): the task can sleep on a token only if the kernel can schedule at the
 * interrupted instruction.  Otherwise Linux panics; we repeat the access. */
static bool can_sleep(const struct vcpu *v, const struct task *t, uint32_t state)
{
	uint64_t msr = __atomic_load_n(&v->slot->msr_en, __ATOMIC_RELAXED);

	if (!t || !t->in_access || !(msr & DF_MSR_ENABLED) || wire_lost())
		return false;
	if (!(state & DF_CPU_IF) || state & DF_CPU_SYSCALL)
		return false;
	return !(state & DF_CPU_KERNEL) || msr & DF_MSR_SEND_ALWAYS;
}

/* The faulting task may have been preempted before the exception.  Then no task sleeps on the
 * token, and that task faults again. */
static bool is_of(const struct task *t, const ucontext_t *uc, uint64_t fault)
{
	if (!fault)
		return true;
	if (t && t->in_access && t->access->op == OP_LAPS)
		return touches(t, fault); /* it does not count its progress */
	return concerns(t, uc, fault);
}

/* Counts last, so that a reader of the count finds the outcome. */
static enum sleepers_park park(struct vcpu *v, const ucontext_t *uc, const struct exception *e,
			       uint32_t state, struct wakeup *early)
{
	uint32_t token = e->token;
	enum sleepers_park parked = SLEEPERS_REFUSED;
	struct task *t = v->current;
	int id = t ? (int)t->id : -1;

	trace(v, id, TRACE_NOT_PRESENT, token, 0);
	if (can_sleep(v, t, state) && is_of(t, uc, e->fault))
		parked = sleepers_park(&v->sleepers, token, t->id, early);
	else
		sleepers_decline(&v->sleepers, token);
	if (parked == SLEEPERS_REFUSED) {
		count_one(&v->count.declined);
		trace(v, id, TRACE_DECLINED, token, 0);
	} else if (parked == SLEEPERS_PARKED) {
		t->result.parks++;
		t->token = token;
		t->state = TASK_PARKED;
		trace(v, id, TRACE_PARK, token, 0);
	}
	count_one(&v->count.not_present);
	return parked;
}

static void not_present(struct vcpu *v, ucontext_t *uc, const struct exception *e, uint32_t state)
{
	struct task *t = v->current;
	struct wakeup wakeup;
	enum sleepers_park parked = park(v, uc, e, state, &wakeup);

	if (parked == SLEEPERS_REFUSED)
		return;
	if (parked == SLEEPERS_PARKED) {
		task_leave(t, TASK_PARKED);
		wakeup = t->wakeup;
	}
	end_if_killed(t, state);
	if (!wakeup.error)
		return;
	if (guest.abi == DF_ABI_JUNE_2020 && state & DF_CPU_KERNEL)
		return; /* it handled user mode only */
	if (guest.posted & DF_POSTED_NO_ENTRY_LOOPS && state & DF_CPU_KERNEL &&
	    !fixup_of((uintptr_t)uc->uc_mcontext.gregs[REG_RIP]))
		return; /* it ignored the result of fixup_exception() */
	fail_access(t, uc, &wakeup.fault);
}

/* ------------------------------------------------------------------ entries */

static bool may_yield(const struct task *t, uint32_t state)
{
	return t && t->in_access && !t->has_pending && !(state & DF_CPU_KERNEL) &&
	       state & DF_CPU_IF && t->preemptible;
}

/* Run other tasks that are ready, then return to the interrupted context. */
static void go_back(struct vcpu *v, uint32_t state)
{
	struct task *t = v->current;

	do {
		if (v->reschedule && may_yield(t, state))
			task_leave(t, TASK_READY);
		if (t)
			end_if_killed(t, state);
	} while (irq_restore(v, state));
}

static void exception_entry(int sig, siginfo_t *unused, void *context)
{
	struct vcpu *v = this_vcpu;
	struct exception e;
	int saved = errno;
	uint32_t state;

	(void)sig;
	(void)unused;
	if (!v)
		return;
	state = irq_save(v);
	/* A wake-all that was ordered before this token must not wake it. */
	async_pf_take_orders(v);
	async_pf_take_exception(v, &e);
	switch (e.kind) {
	case EXCEPTION_NONE:
		/* Withdrawn: the page healed first.  The access is repeated. */
		count_one(&v->count.spurious);
		break;
	case EXCEPTION_NOT_PRESENT:
		not_present(v, context, &e, state);
		break;
	case EXCEPTION_TOKEN_DONE:
		async_pf_token_done(v, e.token, &e.wakeup);
		break;
	case EXCEPTION_ERROR:
		trace(v, -1, TRACE_ERROR, 0, e.wakeup.fault.address);
		if (concerns(v->current, context, e.wakeup.fault.address))
			fail_access(v->current, context, &e.wakeup.fault);
		else
			count_one(&v->count.stray);
		break;
	}
	go_back(v, state);
	errno = saved;
}

/* From the host, from another thread of this process, or from the vCPU's timer. */
static void interrupt_entry(int sig, siginfo_t *si, void *context)
{
	struct vcpu *v = this_vcpu;
	int saved = errno;
	uint32_t state;

	(void)sig;
	(void)context;
	if (!v)
		return;
	state = irq_save(v);
	if (si->si_code == SI_TIMER)
		v->reschedule = true;
	async_pf_take_interrupt(v);
	go_back(v, state);
	errno = saved;
}

/* Both the guest kernel's handler of a real fault, and a user program's handler. */
static void fault_signal(int sig, siginfo_t *si, void *context)
{
	struct vcpu *v = this_vcpu;
	struct task *t = v ? v->current : NULL;
	ucontext_t *uc = context;
	uint64_t address = (uint64_t)(uintptr_t)si->si_addr;
	struct fault f = { .address = address, .si_code = si->si_code };
	bool expected = t && t->has_pending && t->pending.address == address &&
			t->pending.si_code == si->si_code;
	uint32_t state;

	if (!expected && !touches(t, address)) {
		signal(sig, SIG_DFL); /* a bug of the stand-in: raised again, and fatal */
		return;
	}
	state = irq_save(v);
	if (expected)
		f = t->pending;
	else
		trace_task(t, TRACE_POISON, 0, address);
	t->has_pending = 0;

	if (in_guest_kernel((uintptr_t)uc->uc_mcontext.gregs[REG_RIP])) {
		kernel_fault(t, uc, &f);
		go_back(v, state);
		return;
	}
	record(t, &f);
	t->result.outcome = sig == SIGBUS ? OUTCOME_SIGBUS : OUTCOME_SIGSEGV;
	siglongjmp(t->escape, 1);
}

int exception_install(void)
{
	if (signals_install(DF_APF_EXCEPTION, exception_entry) < 0 ||
	    signals_install(DF_APF_INTERRUPT, interrupt_entry) < 0 ||
	    signals_install(SIGBUS, fault_signal) < 0 || signals_install(SIGSEGV, fault_signal) < 0)
		return -1;
	return 0;
}

/* Enter t->mode.  Signals stay blocked during a system call: with one pending, a fault inside it
 * would be retried endlessly (handle_userfault() returns at once). */
void exception_enter(struct task *t)
{
	struct vcpu *v = t->vcpu;

	t->in_access = 1;
	do {
		if (v->reschedule)
			task_leave(t, TASK_READY);
	} while (irq_restore(v, t->mode));
	if (!(t->mode & DF_CPU_SYSCALL))
		signals_allow(v, t->mode & DF_CPU_IF);
}

/* Leave t->mode, at the end of the access or after an escape. */
void exception_leave(struct task *t)
{
	signals_block();
	irq_save(t->vcpu);
	t->in_access = 0;
}

/* Sets the disposition of the process and the mask of the calling vCPU.  Unless it is
 * SIGBUS_HANDLE, poison is fatal in guest kernel mode too, because SIGBUS is its only report. */
int exception_sigbus(struct vcpu *v, enum sigbus_disposition disposition)
{
	v->sigbus_blocked = disposition == SIGBUS_BLOCK;
	if (disposition == SIGBUS_HANDLE)
		return signals_install(SIGBUS, fault_signal);
	if (disposition == SIGBUS_BLOCK)
		return 0;
	return signal(SIGBUS, disposition == SIGBUS_IGNORE ? SIG_IGN : SIG_DFL) == SIG_ERR ? -1 : 0;
}
