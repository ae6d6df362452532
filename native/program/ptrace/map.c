/* SPDX-License-Identifier: Apache-2.0
 *
 * map.c - mmap() of a tracee.
 *
 * Owns which of them are ours, and their place in the conversation with the host; mapping.h has
 * what is then done in the tracee's address space.  Whatever is refused is an error of
 * mmap(): the kernel's own mapping never takes the place of ours in silence.
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

struct tracee {
	struct caller caller;
	struct thread *t;
};

static long call_there(struct caller *c, long number, const uint64_t args[6])
{
	struct tracee *tracee = (struct tracee *)c;

	return inject(tracee->t, number, args);
}

/* Marked in the kernel's own record of it, which mremap(), fork() and partial unmapping
 * take along.  A private mapping of a file is in no core dump anyhow (core(5)), but for
 * pages that have been stored to, and there are none. */
static int mark_demoted(struct tracee *tracee, const struct placed *placed)
{
	long r = inject(tracee->t, SYS_madvise, (const uint64_t[6]){ placed->at, placed->len, MADV_DONTDUMP });

	return r < 0 ? (int)-r : 0;
}

/* The page cache to where it is to be, before the host knows. -> errno. */
static int bring(struct tracee *tracee, const struct map_request *q, int cache, bool private,
		 struct placed *placed)
{
	struct map_request there = *q;
	long theirs = inject_fd(tracee->t, cache);
	int error;

	if (theirs < 0)
		return (int)-theirs;
	there.fd = (int)theirs;
	error = place_map(placed, &there, (int)theirs, private, &tracee->caller);
	inject(tracee->t, SYS_close, (const uint64_t[6]){ (uint64_t)theirs });
	if (!error && private && request_is_shared(q)) {
		error = mark_demoted(tracee, placed);
		if (error)
			inject(tracee->t, SYS_munmap, (const uint64_t[6]){ placed->at, placed->len });
	}
	return error;
}

/* q->fd is our copy of the program's.  -> errno; *dead when it is for the connection. */
static int map_cache(struct thread *t, struct process *p, const struct map_request *q, struct placed *placed,
		     bool *dead)
{
	struct tracee tracee = { .caller.call = call_there, .t = t };
	bool private, demoted;
	int cache, error, r;

	r = client_map(&p->client, q->fd, (uint64_t)q->offset, q->len, q->prot, q->flags, &cache, &private);
	*dead = r < 0;
	if (r)
		return serve_errno(r);
	error = bring(&tracee, q, cache, private, placed);
	close(cache);
	r = client_mapped(&p->client, error || t->gone ? 0 : placed->at, error || t->gone ? 0 : placed->len);
	if (r < 0)
		client_close(&p->client);
	if (error)
		return error;
	if (r) {
		inject(t, SYS_munmap, (const uint64_t[6]){ placed->at, placed->len });
		return r > 0 ? r : ENODEV;
	}
	error = place_finish(placed, q, &tracee.caller);
	if (error || t->gone)
		return error;
	demoted = private && request_is_shared(q);
	tracer.served = p->mapped = true;
	p->demoted |= demoted;
	tracer.demoted |= demoted;
	return 0;
}

static int map_served(struct thread *t, struct process *p, const struct map_request *q, struct placed *placed)
{
	bool fresh = p->client.fd < 0, dead;
	int error = serve_begin(t);

	if (error)
		return error;
	error = map_cache(t, p, q, placed, &dead);
	if (dead)
		client_close(&p->client);
	if (!dead || fresh || t->gone)
		return error;
	error = serve_begin(t);
	if (error)
		return error;
	error = map_cache(t, p, q, placed, &dead);
	if (dead)
		client_close(&p->client);
	return error;
}

static void map(struct thread *t, struct process *p, struct map_request *q)
{
	struct placed placed;
	uint64_t args[6];
	long number;
	int error;

	if (!inject_skip(t))
		return;
	if (q->fd < 0)
		error = serve_errno(q->fd);
	else
		error = q->flags & MAP_SYNC ? EOPNOTSUPP : map_served(t, p, q, &placed);
	if (error || t->gone) {
		inject_end(t, -error);
		return;
	}
	number = place_populates(&placed, q, args);
	if (number < 0) {
		inject_end(t, (long)placed.at);
		return;
	}
	/* it waits for the host's pages: others are not to wait with it */
	t->regs.rax = placed.at;
	if (inject_start(t, number, args))
		t->state = THREAD_POPULATES;
}

void populated(struct thread *t)
{
	t->state = THREAD_RUNS;
	inject_end(t, (long)t->regs.rax);
}

/* As request_is_on(), of a tracee's descriptor.  Closing a copy of it would be a flush, which
 * any file system may take its time for; so it is looked at where it is. */
static bool is_on_mount(pid_t tid, int fd)
{
	struct statx st;
	char path[48];

	snprintf(path, sizeof(path), "/proc/%d/fd/%d", tid, fd);
	return !statx(AT_FDCWD, path, AT_STATX_DONT_SYNC, STATX_TYPE, &st) &&
	       makedev(st.stx_dev_major, st.stx_dev_minor) == tracer.device && S_ISREG(st.stx_mode);
}

void handle_mmap(struct thread *t)
{
	struct process *p = process_of(t);
	struct user_regs_struct r;
	struct map_request q;
	int fd;

	if (!p || ptrace(PTRACE_GETREGS, t->tid, 0, &r) || !is_on_mount(t->tid, (int)r.r8)) {
		resume(t, 0);
		return;
	}
	if (p->worker) {
		t->state = THREAD_QUEUED;
		return;
	}
	fd = take_fd(t, (int)r.r8);
	if (fd == -EBADF) {
		resume(t, 0);	/* closed meanwhile: the kernel says so */
		return;
	}
	q = (struct map_request){
		.addr = r.rdi, .len = r.rsi, .prot = (int)r.rdx, .flags = (int)r.r10, .fd = fd,
		.offset = (int64_t)r.r9,
	};
	if (fd >= 0 && request_is_refused(&q, fcntl(fd, F_GETFL)))
		resume(t, 0);
	else if (inject_begin(t))
		map(t, p, &q);
	if (fd >= 0)
		close(fd);
}
