/* SPDX-License-Identifier: Apache-2.0
 *
 * sigbus.c - a SIGBUS that the program does not catch.
 *
 * Owns the handler that replaces SIG_DFL.  The handler reports to the host, resets the disposition,
 * and queues the signal again with its siginfo.  It is delivered at the faulting instruction when
 * the handler returns, and the process dies of it.  A program's own handler replaces ours; exec
 * removes it.
 */
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include "preload.h"

static uint64_t program_counter(const ucontext_t *context)
{
#if defined(__x86_64__)
	return (uint64_t)context->uc_mcontext.gregs[REG_RIP];
#elif defined(__aarch64__)
	return context->uc_mcontext.pc;
#else
#error "add the register that is the program counter of this CPU"
#endif
}

/* The stack of the interrupted code, without the frames of this handler. */
static size_t interrupted_stack(const ucontext_t *context, uint64_t *frames)
{
	enum {
		OURS = 8
	};
	void *raw[DF_SIGBUS_FRAMES + OURS];
	int n = settings()->backtrace(raw, DF_SIGBUS_FRAMES + OURS);
	uint64_t pc = program_counter(context);
	size_t kept = 0;
	int i;

	for (i = 0; i < n && (uint64_t)raw[i] != pc; i++)
		;
	frames[kept++] = pc;
	for (i++; i < n && kept < DF_SIGBUS_FRAMES; i++)
		frames[kept++] = (uint64_t)raw[i];
	return kept;
}

static void on_sigbus(int signal, siginfo_t *info, void *context)
{
	uint64_t frames[DF_SIGBUS_FRAMES];
	pid_t tid = (pid_t)syscall(SYS_gettid);
	struct sigaction act = { .sa_handler = SIG_DFL };
	int error = errno;
	size_t n = 0;

	/* not a signal of kill(2), and only in a process that has mapped a page cache */
	if (info->si_code > 0 && wire_mapped()) {
		if (settings()->backtrace)
			n = interrupted_stack(context, frames);
		wire_sigbus((uint64_t)info->si_addr, tid, info->si_code, frames, n);
	}
	sigaction(signal, &act, NULL);
	/* if this fails the access is repeated, and raises SIGBUS again unless the file has grown */
	syscall(SYS_rt_tgsigqueueinfo, syscall(SYS_getpid), tid, signal, info);
	errno = error;
}

void sigbus_install(void)
{
	struct sigaction old,
		act = { .sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_ONSTACK };

	sigfillset(&act.sa_mask); /* another handler might map, which takes the lock */
	if (!sigaction(SIGBUS, NULL, &old) && !(old.sa_flags & SA_SIGINFO) &&
	    old.sa_handler == SIG_DFL)
		sigaction(SIGBUS, &act, NULL);
}
