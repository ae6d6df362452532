/* SPDX-License-Identifier: Apache-2.0
 *
 * serve.c - the tracer's connection to the host on behalf of a process.
 *
 * Owns struct tracee, by which served.h acts in a tracee's address space, and the mappings that a
 * forked child inherits.  The connection is made at the first mmap() of a file on the mount, and
 * lasts until the process ends or executes another program.
 */
#include <errno.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "tracer.h"

static long inject_close(struct thread *t, long fd)
{
	return inject(t, SYS_close, (const uint64_t[6]){ (uint64_t)fd });
}

static long call_there(struct caller *c, long number, const uint64_t args[6])
{
	return inject(((struct tracee *)c)->t, number, args);
}

static long lend(struct caller *c, int fd)
{
	return inject_fd(((struct tracee *)c)->t, fd);
}

static int take(struct caller *c, int fd)
{
	return take_fd(((struct tracee *)c)->t, fd);
}

struct tracee tracee(struct thread *t)
{
	return (struct tracee){ .caller = { .call = call_there, .lend = lend, .take = take }, .t = t };
}

int serve_begin(struct thread *t)
{
	struct process *p = process_of(t);
	struct tracee there = tracee(t);
	uint32_t flags;
	int error;

	if (!p)
		return ESRCH;
	if (p->client.fd >= 0)
		return 0;
	error = served_begin(&p->client, tracer.socket, p->tgid, &there.caller, &flags);
	if (!error)
		tracer.unfollowed |= !(flags & DF_SERVE_CHILDREN);
	return error;
}

struct withdrawal {
	struct thread *t;
	long empty; /* its descriptor of an empty file */
};

/* Replaces the mapping by an empty file: missing pages would read as zeros. */
static bool withdraw_one(const struct maps_area *m, void *arg)
{
	struct withdrawal *w = arg;
	long r;

	r = inject(w->t, SYS_mmap,
		   (const uint64_t[6]){ m->start, m->end - m->start, PROT_READ | PROT_WRITE,
					MAP_SHARED | MAP_FIXED, (uint64_t)w->empty, 0 });
	return r < 0;
}

static void withdraw(struct thread *t)
{
	struct withdrawal w = { .t = t };
	int empty = memfd_create("daxfault-withdrawn", MFD_CLOEXEC);

	w.empty = empty < 0 ? empty : inject_fd(t, empty);
	if (empty >= 0)
		close(empty);
	/* it must not run with these mappings */
	if (cache_maps_each(t->tid, 0, USER_END, withdraw_one, &w) && !t->gone)
		kill(t->tid, SIGKILL);
	if (w.empty >= 0)
		inject_close(t, w.empty);
}

/* The process is stopped meanwhile and cannot see the raised limit. */
static void lift_limit(pid_t pid, struct rlimit *old)
{
	struct rlimit more;

	if (prlimit(pid, RLIMIT_NOFILE, NULL, old))
		return;
	more = *old;
	more.rlim_cur = more.rlim_max;
	prlimit(pid, RLIMIT_NOFILE, &more, NULL);
}

enum next serve_adopt(struct thread *t, bool stopped)
{
	struct process *p = process_of(t);
	struct rlimit limit = { 0 };
	int r;

	if (!inject_begin(t))
		return NEXT_WAIT;
	t->group_stopped = stopped;
	lift_limit(t->tid, &limit);
	r = serve_begin(t);
	if (!r)
		r = client_mapped(&p->client, 0, USER_END);
	if (r && !t->gone) {
		client_close(&p->client);
		withdraw(t);
	}
	if (limit.rlim_max)
		prlimit(t->tid, RLIMIT_NOFILE, &limit, NULL);
	return inject_end(t, (long)t->regs.rax);
}
