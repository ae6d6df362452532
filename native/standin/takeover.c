/* SPDX-License-Identifier: Apache-2.0
 *
 * takeover.c - answers faults after the host is gone.
 *
 * Owns the guest's copy of the userfaultfd after the connection is lost.  Answers every missing
 * page with poison: SIGBUS in user mode, a fixup or a panic in guest kernel mode, EFAULT in system
 * calls. Must not install pages: their contents are unknown.
 *
 * Pages are poisoned only when they fault.  One UFFDIO_WAKE over the window makes every blocked
 * thread fault again, also if the host has already read its fault; from then on all faults come
 * here.  So ranges that are later emptied (MADV_DONTNEED clears poison), moved or mapped again fail
 * too, and installed pages stay.
 *
 * The other events must be read too: a thread that causes one sleeps in the kernel until it is
 * read.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/uffd.h"
#include "standin.h"

enum {
	UFFDS_MAX = 64, /* the guest's own and forked children's */
	DEFERRED_MAX = 256,
	BATCH = 16, /* messages per read */
	RETRY_MS = 1,
};

struct fault_to_answer {
	int uffd;
	pid_t tid;
	uint64_t page;
	bool protected; /* a store to a present page */
};

static struct pollfd uffds[UFFDS_MAX];
static nfds_t nuffds;
static struct fault_to_answer deferred[DEFERRED_MAX];
static unsigned int ndeferred;

/* Before 6.6 there is no poison.  Instead the page becomes PROT_NONE: SIGSEGV, and EFAULT in system
 * calls.  This process cannot change a child's memory, so it kills the child. */
static void deny(int uffd, uint64_t page, pid_t tid)
{
	if (uffd != window_uffd)
		syscall(SYS_tkill, tid, SIGKILL);
	else
		mprotect((void *)(uintptr_t)page, DF_PAGE_SIZE, PROT_NONE);
	uffd_wake(uffd, page, DF_PAGE_SIZE);
}

/* MADV_DONTNEED of a write-protected page leaves a marker in the page table, which UFFDIO_POISON
 * does not overwrite (6.18, mm/userfaultfd.c, mfill_atomic_pte_poison()).  So EEXIST means
 * "present" only after the marker was removed. */
static int poison(int uffd, uint64_t page)
{
	uint64_t done;
	int error = uffd_poison(uffd, page, DF_PAGE_SIZE, &done);

	if (error != -EEXIST)
		return error;
	error = uffd_unmark(uffd, page, DF_PAGE_SIZE);
	if (error) /* EAGAIN, or not registered for write protection */
		return error == -EAGAIN ? error : -EEXIST;
	return uffd_poison(uffd, page, DF_PAGE_SIZE, &done);
}

/* An installed page keeps its bytes and accepts stores, like the page cache of a failed disk.
 * It cannot be poisoned because it is present, and a wake-up without an answer would make it
 * fault in a loop. */
static int resolve(const struct fault_to_answer *f)
{
	if (f->protected)
		return uffd_protect(f->uffd, f->page, DF_PAGE_SIZE, false);
	return poison(f->uffd, f->page);
}

/* -> false: try again after the other events have been read. */
static bool answer(const struct fault_to_answer *f)
{
	int error;

	if (!f->protected && !window_has_poison()) {
		deny(f->uffd, f->page, f->tid);
		return true;
	}
	error = resolve(f);
	if (!error)
		return true;
	/* EAGAIN: an unread event is about to change the mappings. */
	if (error == -EAGAIN)
		return false;
	/* EEXIST: another thread was faster.  ENOENT: no longer mapped.  EFAULT: past the end of
	 * the page cache, where the kernel raises SIGBUS (mm/userfaultfd.c,
	 * mfill_file_over_size()). ESRCH: the child is gone. */
	uffd_wake(f->uffd, f->page, DF_PAGE_SIZE);
	return true;
}

static void add_uffd(int uffd)
{
	/* Beyond the limit it stays open but unread: its child blocks, and can be killed.  If the
	 * descriptor were closed, the child would read zeros. */
	if (nuffds < UFFDS_MAX)
		uffds[nuffds++] = (struct pollfd){ .fd = uffd, .events = POLLIN };
}

/* A fault that cannot be answered yet is not woken.  It would be raised again at once, and read()
 * returns faults before events (userfaultfd_ctx_read()), so that the event might never be read. */
static void fault(int uffd, const struct uffd_msg *msg)
{
	struct fault_to_answer f = {
		.uffd = uffd,
		.tid = (pid_t)msg->arg.pagefault.feat.ptid,
		.page = msg->arg.pagefault.address & ~(uint64_t)(DF_PAGE_SIZE - 1),
		.protected = msg->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP,
	};

	if (answer(&f))
		return;
	if (ndeferred < DEFERRED_MAX)
		deferred[ndeferred++] = f;
	else
		uffd_wake(f.uffd, f.page, DF_PAGE_SIZE);
}

/* Reads one batch, so that a busy guest does not keep its children waiting.  Remap, remove and
 * unmap need only to be read. */
static void read_events(int uffd)
{
	struct uffd_msg msgs[BATCH];
	int n = uffd_read(uffd, msgs, BATCH);
	int i;

	for (i = 0; i < n; i++) {
		if (msgs[i].event == UFFD_EVENT_PAGEFAULT)
			fault(uffd, &msgs[i]);
		else if (msgs[i].event == UFFD_EVENT_FORK)
			add_uffd((int)msgs[i].arg.fork.ufd);
	}
}

static void retry_deferred(void)
{
	unsigned int kept = 0;
	unsigned int i;

	for (i = 0; i < ndeferred; i++) {
		if (!answer(&deferred[i]))
			deferred[kept++] = deferred[i];
	}
	ndeferred = kept;
}

void takeover(void)
{
	nfds_t i;

	add_uffd(window_uffd);
	uffd_wake(window_uffd, window_base, window_len);
	for (;;) {
		poll(uffds, nuffds, ndeferred ? RETRY_MS : -1);
		for (i = 0; i < nuffds; i++)
			read_events(uffds[i].fd);
		retry_deferred();
	}
}
