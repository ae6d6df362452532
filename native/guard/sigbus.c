/* SPDX-License-Identifier: Apache-2.0
 *
 * sigbus.c - the process's SIGBUS handler: guards first, then the earlier handler.
 *
 * A fault that no guard catches ends as without this handler: the earlier handler runs with its
 * own signal mask; if there was none, the process dies of the same signal.
 *
 * The signal is synchronous: a memory access of the thread itself raised it.  The handler may take
 * locks, because no code that holds the guard's lock, one of malloc or that of the interpreter's
 * queue of pending calls accesses a mapping that may fail.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include "internal.h"

#if !defined(__x86_64__)
#error "add the register that holds the kind of access on this CPU"
#endif

enum { /* arch/x86/include/asm/trap_pf.h */
	ERROR_WRITE = 1 << 1,
	ERROR_FETCH = 1 << 4,
};

/* The action that ours replaced, and the function called before it.  Set before ours is installed. */
static struct sigaction before;
static sigbus_catch *catch;

/* An earlier handler that raises the signal again wants it to kill the process: faulthandler
 * restores the earlier action, which is ours, and raises it. */
static __thread bool passing __attribute__((tls_model("initial-exec")));

static void die(int number, siginfo_t *info)
{
	struct sigaction act = { .sa_handler = SIG_DFL };

	sigaction(number, &act, NULL);
	/* delivered when the handler returns, at the faulting instruction */
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

	/* never execute zeros */
	if (!fault || why & ERROR_FETCH ||
	    !catch ((uint64_t)info->si_addr, info->si_code, why &ERROR_WRITE))
		pass_on(number, info, context);
	else
		passing = false;
	errno = error;
}

int sigbus_install(sigbus_catch *function)
{
	struct sigaction act = { .sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_ONSTACK },
			 now;

	if (sigaction(SIGBUS, NULL, &now))
		return -errno;
	if (now.sa_flags & SA_SIGINFO && now.sa_sigaction == on_sigbus)
		return 0;
	before = now;
	catch = function;
	/* all signals blocked, for the lock; SIGBUS too: one in the handler kills the process */
	sigfillset(&act.sa_mask);
	return sigaction(SIGBUS, &act, NULL) ? -errno : 0;
}
