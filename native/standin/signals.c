/* SPDX-License-Identifier: Apache-2.0
 *
 * signals.c - blocks and unblocks the signals of a vCPU's thread.
 *
 * Owns the thread's signal mask.  The signals are blocked in the scheduler, in the console's
 * answers and in system calls; they are open only inside an access, and while idle.
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

/* Handlers run on the interrupted stack, so that a task's frame stays with the task. */
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

/* Wait until a signal has been taken.  One that was pending before the call counts. */
void signals_wait(void)
{
	sigset_t set;

	pthread_sigmask(SIG_BLOCK, NULL, &set);
	sigdelset(&set, DF_APF_EXCEPTION);
	sigdelset(&set, DF_APF_INTERRUPT);
	sigsuspend(&set);
}
