/* SPDX-License-Identifier: Apache-2.0
 *
 * sync.c - what a tracee tells the host besides its mappings: msync(), and dying of SIGBUS.
 *
 * Owns who waits for a write-back.  The kernel's own msync() comes first.  Then a child of
 * ours asks the host, with a copy of the process's connection, and the wait loop sees its end
 * as it sees a tracee's; its exit status is the errno.  Until then nobody else speaks on that
 * connection: threads that want to are queued at their own system call.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tracer.h"

enum {
	WORKER_FAILED = 255,		/* no errno is that high */
};

void handle_msync(struct thread *t)
{
	struct process *p = tracer.served ? process_of(t) : NULL;

	if (!p || !p->mapped) {
		resume(t, 0);
		return;
	}
	if (p->worker) {
		t->state = THREAD_QUEUED;
		return;
	}
	t->state = THREAD_IN_MSYNC;
	ptrace(PTRACE_SYSCALL, t->tid, 0, 0);
}

static void work(struct client *c, uint64_t start, uint64_t len)
{
	int r = client_msync(c, start, len);

	_exit(r >= 0 && r < WORKER_FAILED ? r : WORKER_FAILED);
}

/* -> errno; or 0 and p->worker. */
static int start_worker(struct thread *t, struct process *p, uint64_t start, uint64_t len)
{
	pid_t pid = fork();
	struct thread *worker;

	if (pid < 0)
		return errno;
	if (!pid)
		work(&p->client, start, len);
	worker = thread_add(pid);
	if (!worker)
		return ENOMEM;
	worker->state = THREAD_WORKER;
	worker->requester = t->tid;
	p->worker = pid;
	return 0;
}

static int sync_caches(struct thread *t, struct process *p, uint64_t start, uint64_t len)
{
	int error = serve_begin(t);

	if (!error)
		error = start_worker(t, p, start, len);
	return error ? EIO : 0;	/* what was stored there is not safe */
}

/* At its exit: the registers are the program's, but for the result. */
void msync_returned(struct thread *t)
{
	struct process *p = process_of(t);
	uint64_t start, len;
	long result;
	int error;

	if (p && p->worker) {	/* another thread's: both were in the kernel */
		t->state = THREAD_RETURNED;
		return;
	}
	t->state = THREAD_RUNS;
	if (!p || !inject_begin(t)) {
		resume(t, 0);
		return;
	}
	result = (long)t->regs.rax;
	start = t->regs.rdi;
	len = (t->regs.rsi + IN_PAGE) & ~IN_PAGE;
	/* ENOMEM: there are holes in it, and the rest was synced all the same */
	if ((result && result != -ENOMEM) || !len || cache_maps_any(t->tid, start, start + len) <= 0) {
		inject_end(t, result);
		return;
	}
	error = sync_caches(t, p, start, len);
	if (error)
		inject_end(t, result ? result : -error);
	else if (!t->gone)
		t->state = THREAD_WAITS;
}

static struct thread *first_queued(struct process *p)
{
	struct thread *t = p->threads;

	while (t && t->state != THREAD_QUEUED && t->state != THREAD_RETURNED)
		t = t->next;
	return t;
}

/* Each in its turn; one may be the next to keep the others waiting. */
static void wake_queued(struct process *p)
{
	struct thread *t;

	while (!p->worker && (t = first_queued(p))) {
		if (t->state == THREAD_RETURNED) {
			msync_returned(t);
			continue;
		}
		t->state = THREAD_RUNS;
		handle_syscall(t);
	}
}

void worker_ended(struct thread *worker, int status)
{
	struct thread *t = thread_find(worker->requester);
	struct process *p = t ? t->process : NULL;
	int result = WIFEXITED(status) ? WEXITSTATUS(status) : WORKER_FAILED;
	pid_t pid = worker->tid;

	thread_remove(worker);
	if (!p || p->worker != pid)	/* it is another program now */
		return;
	p->worker = 0;
	if (result == WORKER_FAILED)
		client_close(&p->client);
	if (t->state == THREAD_WAITS) {
		long own = (long)t->regs.rax;

		t->state = THREAD_RUNS;
		if (result)
			result = result == WORKER_FAILED ? EIO : result;
		inject_end(t, own ? own : -result);
	}
	wake_queued(p);
}

/* Whether the process dies of a SIGBUS that is about to be delivered.  One that is ignored
 * is raised by somebody else: the kernel's own resets it (kernel/signal.c, force_sig_info()). */
static bool dies_of_sigbus(pid_t tid)
{
	uint64_t bit = 1ull << (SIGBUS - 1);

	return !((status_field(tid, "SigCgt:", 16) | status_field(tid, "SigIgn:", 16)) & bit);
}

void tell_sigbus(struct thread *t)
{
	struct process *p = tracer.served ? process_of(t) : NULL;
	struct client own = { .fd = -1 }, *c;
	siginfo_t info;
	int device = -1;

	if (!p || !p->mapped || ptrace(PTRACE_GETSIGINFO, t->tid, 0, &info) || info.si_code <= 0 ||
	    !dies_of_sigbus(t->tid))
		return;
	c = p->client.fd >= 0 && !p->worker ? &p->client : &own;
	if (c == &own && client_attach(c, tracer.socket, p->tgid, &device))
		return;
	if (device >= 0)
		close(device);
	if (client_sigbus(c, (uint64_t)info.si_addr, t->tid, info.si_code, NULL, 0) < 0)
		client_close(c);
	client_close(&own);
}
