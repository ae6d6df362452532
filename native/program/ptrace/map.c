/* SPDX-License-Identifier: Apache-2.0
 *
 * map.c - mmap() of a tracee.
 *
 * Owns its conversation with the host; mapping.h has what is then done in the tracee's address
 * space.  Whatever is refused is an error of mmap(): the kernel's own mapping never takes the
 * place of ours in silence.
 */
#include <errno.h>
#include <sys/mman.h>
#include <sys/syscall.h>
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
static int mark_demoted(struct tracee *tracee, const struct mapping *made)
{
	long r = inject(tracee->t, SYS_madvise, (const uint64_t[6]){ made->at, made->len, MADV_DONTDUMP });

	return r < 0 ? (int)-r : 0;
}

/* The page cache to where it is to be, before the host knows. -> errno. */
static int bring(struct tracee *tracee, const struct map_request *q, int cache, bool private,
		 struct mapping *made)
{
	struct map_request there = *q;
	long theirs = inject_fd(tracee->t, cache);
	int error;

	if (theirs < 0)
		return (int)-theirs;
	there.fd = (int)theirs;
	error = mapping_make(made, &there, (int)theirs, private, &tracee->caller);
	inject(tracee->t, SYS_close, (const uint64_t[6]){ (uint64_t)theirs });
	if (!error && private && request_is_shared(q)) {
		error = mark_demoted(tracee, made);
		if (error)
			inject(tracee->t, SYS_munmap, (const uint64_t[6]){ made->at, made->len });
	}
	return error;
}

/* q->fd is our copy of the program's.  -> errno; *dead when it is for the connection. */
static int map_cache(struct thread *t, struct process *p, const struct map_request *q, struct mapping *made,
		     bool *dead)
{
	struct tracee tracee = { .caller.call = call_there, .t = t };
	bool private, demoted;
	int cache, error, r;

	r = client_map(&p->client, q->fd, (uint64_t)q->offset, q->len, q->prot, q->flags, &cache, &private);
	*dead = r < 0;
	if (r)
		return client_errno(r);
	error = bring(&tracee, q, cache, private, made);
	close(cache);
	r = client_mapped(&p->client, error || t->gone ? 0 : made->at, error || t->gone ? 0 : made->len);
	if (r < 0)
		client_close(&p->client);
	if (error)
		return error;
	if (r) {
		inject(t, SYS_munmap, (const uint64_t[6]){ made->at, made->len });
		return r > 0 ? r : ENODEV;
	}
	error = mapping_finish(made, q, &tracee.caller);
	if (error || t->gone)
		return error;
	demoted = private && request_is_shared(q);
	tracer.served = p->mapped = true;
	p->demoted |= demoted;
	tracer.demoted |= demoted;
	return 0;
}

static int map_served(struct thread *t, struct process *p, const struct map_request *q, struct mapping *made)
{
	bool fresh = p->client.fd < 0, dead;
	int error = serve_begin(t);

	if (error)
		return error;
	error = map_cache(t, p, q, made, &dead);
	if (dead)
		client_close(&p->client);
	if (!dead || fresh || t->gone)
		return error;
	error = serve_begin(t);
	if (error)
		return error;
	error = map_cache(t, p, q, made, &dead);
	if (dead)
		client_close(&p->client);
	return error;
}

enum next map_file(struct thread *t, struct process *p, const struct map_request *q)
{
	struct mapping made;
	uint64_t args[6];
	long number;
	int error;

	if (!inject_begin(t) || !inject_skip(t))
		return NEXT_WAIT;
	error = q->fd < 0 ? client_errno(q->fd) : map_served(t, p, q, &made);
	if (error || t->gone)
		return inject_end(t, -error);
	number = mapping_populates(&made, q, args);
	if (number < 0)
		return inject_end(t, (long)made.at);
	/* it waits for the host's pages: others are not to wait with it */
	t->regs.rax = made.at;
	if (inject_start(t, number, args))
		t->state = THREAD_INJECTED;
	return NEXT_WAIT;
}
