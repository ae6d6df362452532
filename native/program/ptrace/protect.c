/* SPDX-License-Identifier: Apache-2.0
 *
 * protect.c - mprotect(PROT_WRITE), mlock() and mlockall() of a tracee.
 *
 * A program maps a file that it opened read-only MAP_SHARED; the page cache is mapped
 * MAP_PRIVATE in its place (abi.h, struct df_mmap).  The kernel would let mprotect() make
 * that writable, and every store would be lost.  Owns finding those mappings by their mark
 * (trace_map.c), and the EACCES that it is instead.
 */
#include <errno.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>

#include "program/cache_maps.h"
#include "tracer.h"

/* Where the first marked private mapping of a page cache in [start, end) begins, or `end`.
 * The kernel walks every page table of the process for its marks: only when there is need to. */
static uint64_t first_denied(pid_t tid, uint64_t start, uint64_t end)
{
	uint64_t first, marked;
	int r;

	if (!cache_maps_private(tid, start, end, 0, &first))
		return end;
	r = cache_maps_private(tid, start, end, MAPS_DONTDUMP, &marked);
	if (r < 0)	/* unknown: rather an error than stores that are lost */
		return first;
	return r ? marked : end;
}

void handle_mprotect(struct thread *t)
{
	struct process *p = tracer.demoted ? process_of(t) : NULL;
	struct user_regs_struct shorter;
	uint64_t start, end, denied;
	long result;

	if (!p || !p->demoted || !inject_begin(t)) {
		resume(t, 0);
		return;
	}
	start = t->regs.rdi;
	end = (start + t->regs.rsi + IN_PAGE) & ~IN_PAGE;
	denied = end > start && !(start & IN_PAGE) ? first_denied(t->tid, start, end) : end;
	if (denied == start && end > start) {
		if (inject_skip(t))
			inject_end(t, -EACCES);
		return;
	}
	/* the kernel goes from mapping to mapping, and leaves changed what it has changed */
	shorter = t->regs;
	if (denied != end)
		shorter.rsi = denied - start;
	if (!ptrace(PTRACE_SETREGS, t->tid, 0, &shorter) && inject_finish_call(t, &result))
		inject_end(t, denied != end && !result ? -EACCES : result);
}

/* Locked on fault: see preload_lock.c for why.  What is not there yet is not brought, for which
 * this process would have to wait. */
void handle_mlock(struct thread *t)
{
	struct user_regs_struct onfault;
	long result;

	if (!inject_begin(t)) {
		resume(t, 0);
		return;
	}
	onfault = t->regs;
	if (onfault.orig_rax == SYS_mlock) {
		onfault.orig_rax = SYS_mlock2;
		onfault.rdx = MLOCK_ONFAULT;
	} else if (onfault.rdi & (MCL_CURRENT | MCL_FUTURE)) {
		onfault.rdi |= MCL_ONFAULT;
	}
	if (!ptrace(PTRACE_SETREGS, t->tid, 0, &onfault) && inject_finish_call(t, &result))
		inject_end(t, result);
}
