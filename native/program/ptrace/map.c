/* SPDX-License-Identifier: Apache-2.0
 *
 * map.c - mmap() of a tracee.
 *
 * Owns the second try with a new connection; served.h does the rest.  If the host refuses, mmap()
 * fails: it never falls back to the kernel's own mapping.
 */
#include <errno.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "tracer.h"

/* q->fd is our copy of the program's descriptor.  -> errno; *dead: the connection failed. */
static int map_cache(struct thread *t, struct process *p, const struct map_request *q,
		     struct mapping *m, bool *dead)
{
	struct tracee there = tracee(t);
	bool demoted;
	int error = served_map(&p->client, q, &there.caller, m, &demoted, dead);

	if (error || t->gone)
		return error;
	tracer.served = p->mapped = true;
	p->demoted |= demoted;
	tracer.demoted |= demoted;
	return 0;
}

static int map_served(struct thread *t, struct process *p, const struct map_request *q,
		      struct mapping *m)
{
	bool fresh = p->client.fd < 0, dead;
	int error = serve_begin(t);

	if (error)
		return error;
	error = map_cache(t, p, q, m, &dead);
	if (!dead || fresh || t->gone)
		return error;
	error = serve_begin(t);
	return error ? error : map_cache(t, p, q, m, &dead);
}

enum next map_file(struct thread *t, struct process *p, const struct map_request *q)
{
	struct mapping m;
	uint64_t args[6];
	long number;
	int error;

	if (!inject_begin(t) || !inject_skip(t))
		return NEXT_WAIT;
	error = q->fd < 0 ? client_errno(q->fd) : map_served(t, p, q, &m);
	if (error || t->gone)
		return inject_end(t, -error);
	number = mapping_populates(&m, q, args);
	if (number < 0)
		return inject_end(t, (long)m.at);
	/* it waits for the host's pages: do not make other tracees wait too */
	t->regs.rax = m.at;
	if (inject_start(t, number, args))
		t->state = THREAD_INJECTED;
	return NEXT_WAIT;
}
