/* SPDX-License-Identifier: Apache-2.0
 *
 * signals.c - when a vCPU's thread takes its signals.
 *
 * Owns the thread's signal mask.  Blocked is the rule: the scheduler, the console's
 * answers and system calls run so.  Open only inside an access, and while idle.
 */
#include <pthread.h>

#include "standin.h"

static void vcpu_signals(sigset_t *set)
{
	sigemptyset(set);
	sigaddset(set, SIGBUS);
	sigaddset(set, SIGSEGV);
	sigaddset(set, DF_APF_EXCEPTION);
	sigaddset(set, DF_APF_INTERRUPT);
}

/* On the stack that was interrupted, so that a task's frame stays with the task. */
int signals_install(int sig, void (*handler)(int, siginfo_t *, void *))
{
	struct sigaction sa = {
		.sa_sigaction = handler,
		.sa_flags = SA_SIGINFO | SA_RESTART,
	};

	vcpu_signals(&sa.sa_mask);
	return sigaction(sig, &sa, NULL);
}

void signals_block(void)
{
	sigset_t set;

	vcpu_signals(&set);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
}

void signals_allow(const struct vcpu *v, bool interrupts)
{
	sigset_t set;

	vcpu_signals(&set);
	if (!interrupts)
		sigdelset(&set, DF_APF_INTERRUPT);
	if (v->sigbus_blocked)
		sigdelset(&set, SIGBUS);
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

/* Until a signal has been taken.  One that came before the call counts. */
void signals_wait(void)
{
	sigset_t set;

	pthread_sigmask(SIG_BLOCK, NULL, &set);
	sigdelset(&set, DF_APF_EXCEPTION);
	sigdelset(&set, DF_APF_INTERRUPT);
	sigsuspend(&set);
}
