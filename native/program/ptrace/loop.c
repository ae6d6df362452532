/* SPDX-License-Identifier: Apache-2.0
 *
 * loop.c - the wait loop: identifies each stop of a tracee, and resumes it.
 *
 * Owns every wait except those during an injection, and every resume.  A signal is delivered
 * unchanged, with its siginfo.  A stopped process stays stopped (PTRACE_LISTEN), and the kernel
 * notifies its parent.
 */
#include <errno.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

#include "tracer.h"

/* If the thread is gone already, waitpid() reports its end. */
static void run(struct thread *t, int signal)
{
	ptrace(PTRACE_CONT, t->tid, 0, signal);
}

static void executed(struct thread *t)
{
	unsigned long former = 0;

	t->executed = false;
	ptrace(PTRACE_GETEVENTMSG, t->tid, 0, &former);
	process_executed(t, (pid_t)former);
	run(t, 0);
}

static void go_on(struct thread *t, enum next next)
{
	if (t->executed)
		executed(t);
	else if (next == NEXT_RUN)
		run(t, 0);
}

static void event_stop(struct thread *t, int signal)
{
	if (is_stop_signal(signal))
		ptrace(PTRACE_LISTEN, t->tid, 0, 0);
	else
		run(t, 0);
}

static void deliver(struct thread *t, int signal)
{
	if (signal == SIGBUS)
		report_sigbus(t);
	run(t, signal);
}

static void stopped(struct thread *t, int status)
{
	int event = status >> 16, signal = WSTOPSIG(status);

	if (event == PTRACE_EVENT_EXEC)
		executed(t);
	else if (t->state == THREAD_INJECTED)
		go_on(t, inject_step(t, status) == INJECT_DONE ? call_injected(t) : NEXT_WAIT);
	else if (event == PTRACE_EVENT_SECCOMP)
		go_on(t, call_stopped(t));
	else if (event == PTRACE_EVENT_STOP)
		event_stop(t, signal);
	else if (!event && signal == SYSCALL_STOP && t->state == THREAD_IN_CALL)
		go_on(t, call_returned(t));
	else if (event || signal == SYSCALL_STOP)
		run(t, 0);
	else
		deliver(t, signal);
}

static void first_stop(pid_t tid, int status)
{
	struct thread *t = thread_add(tid);

	if (!t) /* out of memory: it runs on as if it were not traced */
		ptrace(PTRACE_CONT, tid, 0, 0);
	else if (status >> 16 == PTRACE_EVENT_STOP && process_inherits(t))
		go_on(t, serve_adopt(t, is_stop_signal(WSTOPSIG(status))));
	else
		stopped(t, status);
}

static struct thread *first_queued(struct process *p)
{
	struct thread *t = p->threads;

	while (t && t->state != THREAD_QUEUED && t->state != THREAD_RETURNED)
		t = t->next;
	return t;
}

/* Wake them one after another: one may start a worker, and the rest wait again. */
static void wake_queued(struct process *p)
{
	struct thread *t;

	while (!p->worker && (t = first_queued(p)))
		go_on(t, t->state == THREAD_RETURNED ? call_returned(t) : call_stopped(t));
}

static void worker_ended(struct thread *worker, int status)
{
	struct thread *t = thread_find(worker->requester);
	struct process *p = t ? t->process : NULL;
	pid_t pid = worker->tid;

	thread_remove(worker);
	if (!p || p->worker != pid) /* the process has executed another program */
		return;
	go_on(t, sync_end(t, p, status));
	wake_queued(p);
}

static void ended(struct thread *t, int status)
{
	if (t->state == THREAD_WORKER)
		worker_ended(t, status);
	else
		thread_remove(t);
}

void wait_loop(void)
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
		if (t && WIFSTOPPED(status))
			stopped(t, status);
		else if (t)
			ended(t, status);
		else if (WIFSTOPPED(status))
			first_stop(tid, status);
	}
}
