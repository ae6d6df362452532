/* SPDX-License-Identifier: Apache-2.0
 *
 * sigbus.c - the process' handler of SIGBUS: guards first, then the earlier handler.
 *
 * What no guard catches ends as it would have without us: the earlier handler runs with the
 * signals blocked that it asked for; without one the process dies of the same signal.
 *
 * Async-signal-safe here is for a signal that a touch of memory has raised in its own thread:
 * nothing that holds a lock of ours, of malloc or of the interpreter's queue of calls touches a mapping
 * that may fail.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include "internal.h"

#if !defined(__x86_64__)
#error "where does this CPU say what kind of access it was?"
#endif

enum {				/* arch/x86/include/asm/trap_pf.h */
	ERROR_WRITE = 1 << 1,
	ERROR_FETCH = 1 << 4,
};

/* The action that ours replaced, and what is asked first.  Changed only while the signal is not ours. */
static struct sigaction before;
static sigbus_catch *catch;

/* A handler that is called for a fault and then raises the signal again wants it to kill: faulthandler
 * restores the earlier action, ours, and raises it. */
static __thread bool passing __attribute__((tls_model("initial-exec")));

static void die(int number, siginfo_t *info)
{
	struct sigaction act = { .sa_handler = SIG_DFL };

	sigaction(number, &act, NULL);
	/* taken when the handler returns, at the instruction it came from */
	syscall(SYS_rt_tgsigqueueinfo, getpid(), syscall(SYS_gettid), number, info);
}

static void pass_on(int number, siginfo_t *info, ucontext_t *context)
{
	struct sigaction to = before;
	sigset_t mask = context->uc_sigmask;
	bool raised = info->si_code <= 0;

	if (!(to.sa_flags & SA_SIGINFO) && to.sa_handler == SIG_IGN && raised)
		return;
	if (!(to.sa_flags & SA_SIGINFO) && (to.sa_handler == SIG_DFL || to.sa_handler == SIG_IGN)) {
		die(number, info);
		return;
	}
	if (raised && passing) {
		passing = false;
		die(number, info);
		return;
	}
	passing = !raised;
	if (to.sa_flags & SA_RESETHAND)
		before = (struct sigaction){ .sa_handler = SIG_DFL };
	for (int i = 1; i < NSIG; i++)
		if (sigismember(&to.sa_mask, i) == 1)
			sigaddset(&mask, i);
	if (!(to.sa_flags & SA_NODEFER))
		sigaddset(&mask, number);
	pthread_sigmask(SIG_SETMASK, &mask, NULL);
	if (to.sa_flags & SA_SIGINFO)
		to.sa_sigaction(number, info, context);
	else
		to.sa_handler(number);
}

static void on_sigbus(int number, siginfo_t *info, void *arg)
{
	bool fault = info->si_code == BUS_ADRERR || info->si_code == BUS_MCEERR_AR;
	ucontext_t *context = arg;
	long why = context->uc_mcontext.gregs[REG_ERR];
	int error = errno;

	/* there is nothing to execute in zeros */
	if (!fault || why & ERROR_FETCH ||
	    !catch((uint64_t)info->si_addr, info->si_code, why & ERROR_WRITE))
		pass_on(number, info, context);
	else
		passing = false;
	errno = error;
}

int sigbus_install(sigbus_catch *function)
{
	struct sigaction act = { .sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_ONSTACK }, now;

	if (sigaction(SIGBUS, NULL, &now))
		return -errno;
	if (now.sa_flags & SA_SIGINFO && now.sa_sigaction == on_sigbus)
		return 0;
	before = now;
	catch = function;
	/* not while the lock is held; SIGBUS too, so that one of our own doing is the end */
	sigfillset(&act.sa_mask);
	return sigaction(SIGBUS, &act, NULL) ? -errno : 0;
}
