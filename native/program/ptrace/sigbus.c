/* SPDX-License-Identifier: Apache-2.0
 *
 * sigbus.c - reports to the host a SIGBUS that a tracee does not catch.
 *
 * Reports only if the process dies of a fault and has mapped page caches.
 */
#include <signal.h>
#include <sys/ptrace.h>
#include <unistd.h>

#include "tracer.h"

/* -> true: the SIGBUS that is about to be delivered kills the process.  An ignored one was sent by a
 * process: for a fault the kernel resets SIG_IGN first (kernel/signal.c, force_sig_info()). */
static bool dies_of_sigbus(pid_t tid)
{
	uint64_t bit = 1ull << (SIGBUS - 1);

	return !((status_field(tid, "SigCgt:", 16) | status_field(tid, "SigIgn:", 16)) & bit);
}

void report_sigbus(struct thread *t)
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
