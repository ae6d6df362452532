/* SPDX-License-Identifier: Apache-2.0
 *
 * stop.c - carries out the decision of calls.h about a tracee's system call, from entry to result.
 *
 * A call that is made in place of the program's uses its registers until it returns.  The tracer
 * sees that exit, and restores the program's registers, before any signal is delivered.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "tracer.h"

struct view {
	struct call_view base;
	struct thread *t;
	int fd; /* our copy of the program's descriptor, or -errno */
};

/* As request_is_on(), for a tracee's descriptor.  Closing a copy of it would be a flush, which
 * may take long on any file system; so read it in place. */
static bool is_on_mount(pid_t tid, int fd)
{
	struct statx st;
	char path[48];

	snprintf(path, sizeof(path), "/proc/%d/fd/%d", tid, fd);
	return !statx(AT_FDCWD, path, AT_STATX_DONT_SYNC, STATX_TYPE, &st) &&
	       makedev(st.stx_dev_major, st.stx_dev_minor) == tracer.device && S_ISREG(st.stx_mode);
}

static int file_on_mount(struct call_view *base, int fd)
{
	struct view *v = (struct view *)base;

	if (!is_on_mount(v->t->tid, fd))
		return -1;
	v->fd = take_fd(v->t, fd);
	if (v->fd == -EBADF) /* closed meanwhile: let the kernel answer */
		return -1;
	/* no copy: the host must refuse it; the kernel must not map it */
	return v->fd < 0 ? O_RDWR : fcntl(v->fd, F_GETFL);
}

static void drop(struct call_view *base, int fd)
{
	const struct view *v = (const struct view *)base;

	(void)fd; /* ours is of the same file */
	if (v->fd >= 0)
		posix_fadvise(v->fd, 0, 0, POSIX_FADV_DONTNEED);
}

/* Demoted mappings are marked: map.c. */
static uint64_t first_demoted(struct call_view *v, uint64_t start, uint64_t end)
{
	uint64_t first, marked;
	int r;

	if (!cache_maps_private(v->task, start, end, 0, &first))
		return end;
	r = cache_maps_private(v->task, start, end, MAPS_DONTDUMP, &marked);
	if (r < 0) /* unknown: an error is better than lost stores */
		return first;
	return r ? marked : end;
}

static struct call call_of(const struct user_regs_struct *r)
{
	return (struct call){ (long)r->orig_rax, { r->rdi, r->rsi, r->rdx, r->r10, r->r8, r->r9 } };
}

static void set_call(struct user_regs_struct *r, const struct call *c)
{
	r->orig_rax = (unsigned long long)c->number;
	r->rdi = c->args[0];
	r->rsi = c->args[1];
	r->rdx = c->args[2];
	r->r10 = c->args[3];
	r->r8 = c->args[4];
	r->r9 = c->args[5];
}

static enum next refuse(struct thread *t, int error)
{
	struct user_regs_struct none = t->regs;

	none.orig_rax = (unsigned long long)-1;
	none.rax = (unsigned long long)-error;
	return ptrace(PTRACE_SETREGS, t->tid, 0, &none) ? NEXT_WAIT : NEXT_RUN;
}

static enum next make(struct thread *t)
{
	struct user_regs_struct r = t->regs;

	set_call(&r, &t->decision.make);
	if (!ptrace(PTRACE_SETREGS, t->tid, 0, &r)) {
		t->state = THREAD_IN_CALL;
		ptrace(PTRACE_SYSCALL, t->tid, 0, 0);
	}
	return NEXT_WAIT;
}

static enum next map(struct thread *t, struct process *p, const struct call *c, int fd)
{
	struct map_request q = calls_map_request(c);

	q.fd = fd;
	return map_file(t, p, &q);
}

static bool asks_the_host(const struct call_decision *d)
{
	return d->action == CALL_MAP || (d->action == CALL_MAKE && d->after == AFTER_SYNC);
}

static enum next carry_out(struct thread *t, struct process *p, const struct call *c, int fd)
{
	if (p->worker && asks_the_host(&t->decision)) {
		t->state = THREAD_QUEUED;
		return NEXT_WAIT;
	}
	switch (t->decision.action) {
	case CALL_REFUSE:
		return refuse(t, t->decision.error);
	case CALL_MAP:
		return map(t, p, c, fd);
	case CALL_MAKE:
		return make(t);
	default:
		return NEXT_RUN;
	}
}

enum next call_stopped(struct thread *t)
{
	struct process *p = process_of(t);
	struct view v = {
		.base = {
			.task = t->tid, .file = file_on_mount, .drop = drop,
			.first_demoted = first_demoted,
		},
		.t = t,
		.fd = -EBADF,
	};
	struct call c;
	enum next next;

	t->state = THREAD_RUNS;
	if (!p || ptrace(PTRACE_GETREGS, t->tid, 0, &t->regs))
		return NEXT_RUN;
	c = call_of(&t->regs);
	v.base.mapped = p->mapped;
	v.base.demoted = p->demoted;
	t->decision = calls_decide(&c, &v.base);
	next = carry_out(t, p, &c, v.fd);
	if (v.fd >= 0)
		close(v.fd);
	return next;
}

/* Restore the program's registers, with a result. -> false when the thread is gone */
static bool give_back(struct thread *t, long result)
{
	struct call own = call_of(&t->regs);
	struct user_regs_struct now;

	if (ptrace(PTRACE_GETREGS, t->tid, 0, &now))
		return false;
	set_call(&now, &own);
	now.rax = (unsigned long long)result;
	return !ptrace(PTRACE_SETREGS, t->tid, 0, &now);
}

enum next call_returned(struct thread *t)
{
	struct process *p = process_of(t);
	const struct call_decision *d = &t->decision;
	struct user_regs_struct now;
	long result;

	t->state = THREAD_RUNS;
	if (!p || ptrace(PTRACE_GETREGS, t->tid, 0, &now))
		return NEXT_RUN;
	result = (long)now.rax;
	if (d->after == AFTER_SYNC && (!result || result == -ENOMEM)) {
		if (!p->worker)
			return sync_begin(t, p);
		t->state = THREAD_RETURNED; /* another thread has the worker: both were in the kernel */
		return NEXT_WAIT;
	}
	if (!give_back(t, d->after == AFTER_FAIL && !result ? -d->error : result))
		return NEXT_WAIT;
	if (d->after != AFTER_CALL || result || !inject_begin(t))
		return NEXT_RUN;
	/* it may wait for the host's pages: do not make other tracees wait too */
	if (inject_start(t, d->then.number, d->then.args))
		t->state = THREAD_INJECTED;
	return NEXT_WAIT;
}

enum next call_injected(struct thread *t)
{
	struct user_regs_struct now;

	t->state = THREAD_RUNS;
	if (t->decision.after == AFTER_CALL && !ptrace(PTRACE_GETREGS, t->tid, 0, &now) &&
	    (long)now.rax < 0)
		t->regs.rax = (unsigned long long)-calls_error_after(&t->decision, (int)-now.rax);
	return inject_end(t, (long)t->regs.rax);
}
