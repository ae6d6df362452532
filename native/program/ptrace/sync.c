/* SPDX-License-Identifier: Apache-2.0
 *
 * sync.c - msync() of a tracee: waiting for the host to write back.
 *
 * The kernel's own msync() comes first.  Then a child of the tracer, the worker, sends the request
 * on a copy of the process's connection.  Its exit status is the errno; the wait loop reaps it like
 * a tracee.  Until then only the worker uses the connection: other threads that need it are queued
 * at their own system call.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tracer.h"

enum {
	WORKER_FAILED = 255, /* not an errno */
};

static void work(struct client *c, const struct call_decision *d)
{
	int r = client_msync(c, d->start, d->len);

	_exit(r >= 0 && r < WORKER_FAILED ? r : WORKER_FAILED);
}

/* -> errno; or 0 and sets p->worker. */
static int start_worker(struct thread *t, struct process *p)
{
	pid_t pid = fork();
	struct thread *worker;

	if (pid < 0)
		return errno;
	if (!pid)
		work(&p->client, &t->decision);
	worker = thread_add(pid);
	if (!worker)
		return ENOMEM;
	worker->state = THREAD_WORKER;
	worker->requester = t->tid;
	p->worker = pid;
	return 0;
}

enum next sync_begin(struct thread *t, struct process *p)
{
	const struct call_decision *d = &t->decision;
	long result;
	int error;

	if (cache_maps_any(t->tid, d->start, d->start + d->len) <= 0 || !inject_begin(t))
		return NEXT_RUN;
	result = (long)t->regs.rax;
	error = serve_begin(t);
	if (!error)
		error = start_worker(t, p);
	if (error) /* the stores are not in the file */
		return inject_end(t, result ? result : -EIO);
	if (!t->gone)
		t->state = THREAD_WAITS;
	return NEXT_WAIT;
}

enum next sync_end(struct thread *t, struct process *p, int status)
{
	int result = WIFEXITED(status) ? WEXITSTATUS(status) : WORKER_FAILED;
	long own = (long)t->regs.rax;

	p->worker = 0;
	if (result == WORKER_FAILED) {
		client_close(&p->client);
		result = EIO;
	}
	if (t->state != THREAD_WAITS)
		return NEXT_WAIT;
	t->state = THREAD_RUNS;
	return inject_end(t, own ? own : -result);
}
