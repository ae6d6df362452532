/* SPDX-License-Identifier: Apache-2.0
 *
 * loop.c - the wait loop: what each stop of a tracee is, and how it goes on.
 *
 * Owns every wait but those amid an injection, which hand over here what is not theirs.
 * A signal is delivered as it came, with its siginfo; a stopped process stays stopped
 * (PTRACE_LISTEN), and its parent is told of it by the kernel.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "tracer.h"

#define SYSCALL_STOP (SIGTRAP | 0x80)

/* When it is gone already, its end comes to waitpid(). */
void resume(struct thread *t, int signal)
{
	ptrace(PTRACE_CONT, t->tid, 0, signal);
}

void handle_end(struct thread *t)
{
	thread_remove(t);
}

void handle_syscall(struct thread *t)
{
	struct user_regs_struct r;

	if (ptrace(PTRACE_GETREGS, t->tid, 0, &r))
		return;
	switch (r.orig_rax) {
	case SYS_mmap:
		handle_mmap(t);
		break;
	case SYS_msync:
		handle_msync(t);
		break;
	case SYS_mlock:
	case SYS_mlockall:
		handle_mlock(t);
		break;
	case SYS_mprotect:
	case SYS_pkey_mprotect:
		handle_mprotect(t);
		break;
	default:	/* a filter of the program's own, which has no tracer to ask */
		resume(t, 0);
	}
}

static void handle_event_stop(struct thread *t, int signal)
{
	if (is_stop_signal(signal))
		ptrace(PTRACE_LISTEN, t->tid, 0, 0);
	else
		resume(t, 0);
}

static void handle_exec(struct thread *t)
{
	unsigned long former = 0;

	ptrace(PTRACE_GETEVENTMSG, t->tid, 0, &former);
	process_executed(t, (pid_t)former);
	resume(t, 0);
}

static void go_on_populating(struct thread *t, int status)
{
	if (inject_step(t, status) == INJECT_DONE)
		populated(t);
}

void handle_stop(struct thread *t, int status)
{
	int event = status >> 16, signal = WSTOPSIG(status);

	if (event == PTRACE_EVENT_EXEC)
		handle_exec(t);
	else if (t->state == THREAD_POPULATES)
		go_on_populating(t, status);
	else if (event == PTRACE_EVENT_SECCOMP)
		handle_syscall(t);
	else if (event == PTRACE_EVENT_STOP)
		handle_event_stop(t, signal);
	else if (!event && signal == SYSCALL_STOP && t->state == THREAD_IN_MSYNC)
		msync_returned(t);
	else if (event || signal == SYSCALL_STOP)
		resume(t, 0);
	else {
		if (signal == SIGBUS)
			tell_sigbus(t);
		resume(t, signal);
	}
}

static void first_stop(struct thread *t, int status)
{
	if (status >> 16 == PTRACE_EVENT_STOP && process_inherits(t))
		serve_adopt(t, is_stop_signal(WSTOPSIG(status)));
	else
		handle_stop(t, status);
}

void trace_loop(void)
{
	struct thread *t;
	pid_t tid;
	int status;

	for (;;) {
		tasks_bury();
		tid = waitpid(-1, &status, __WALL);
		if (tid < 0 && errno == EINTR)
			continue;
		if (tid < 0)
			return;
		t = thread_find(tid);
		if (!WIFSTOPPED(status)) {
			if (t && t->state == THREAD_WORKER)
				worker_ended(t, status);
			else if (t)
				handle_end(t);
		} else if (t) {
			handle_stop(t, status);
		} else {
			t = thread_add(tid);
			if (t)
				first_stop(t, status);
			else	/* out of memory: it goes on as if nobody traced it */
				ptrace(PTRACE_CONT, tid, 0, 0);
		}
	}
}
