/* SPDX-License-Identifier: Apache-2.0
 *
 * takeover.c - who answers faults once the host is gone.
 *
 * Owns the guest's copy of the userfaultfd from the moment the connection is
 * lost, and answers every fault with poison: SIGBUS in user mode, a fixup or a
 * panic in guest kernel mode, EFAULT in system calls.  Never with a page: what
 * would be on it, nobody knows.
 *
 * Nothing is poisoned ahead of its fault.  One UFFDIO_WAKE over the window makes
 * every blocked thread fault again, also those whose fault the host had read
 * already, and from then on each fault passes here.  So ranges that are later
 * emptied (MADV_DONTNEED clears poison), moved or mapped anew fail as well, and
 * pages that the host had installed stay readable.
 *
 * The other events must be read too: the thread that causes one sleeps in the
 * kernel until somebody does.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "compat.h"
#include "standin.h"

enum {
	UFFDS_MAX = 64,			/* the guest's own and forked children's */
	DEFERRED_MAX = 256,
	BATCH = 16,			/* messages a read */
	RETRY_MS = 1,
};

struct deferred {
	int uffd;
	pid_t tid;
	uint64_t page;
};

static struct pollfd uffds[UFFDS_MAX];
static nfds_t nuffds;
static struct deferred deferred[DEFERRED_MAX];
static unsigned int ndeferred;

static void wake(int uffd, uint64_t start, uint64_t len)
{
	struct uffdio_range range = { .start = start, .len = len };

	ioctl(uffd, UFFDIO_WAKE, &range);
}

/* Before 6.6 there is no poison.  The next best is to take the page's access
 * away: SIGSEGV, and EFAULT in system calls, which nobody can mistake for the
 * file's bytes.  A child's memory is out of reach, so the child ends. */
static void deny(int uffd, uint64_t page, pid_t tid)
{
	if (uffd != window_uffd)
		syscall(SYS_tkill, tid, SIGKILL);
	else
		mprotect((void *)(uintptr_t)page, DF_PAGE_SIZE, PROT_NONE);
	wake(uffd, page, DF_PAGE_SIZE);
}

/* False when it must be tried again after the other events have been read. */
static bool answer(int uffd, uint64_t page, pid_t tid)
{
	struct uffdio_poison poison = { .range = { .start = page, .len = DF_PAGE_SIZE } };

	if (!window_has_poison()) {
		deny(uffd, page, tid);
		return true;
	}
	if (ioctl(uffd, UFFDIO_POISON, &poison) == 0)
		return true;
	if (errno == EEXIST) {
		/* A write-protect marker left where a page was counts as present
		 * (mm/userfaultfd.c, mfill_atomic_pte_poison() wants pte_none). */
		struct uffdio_writeprotect open = {
			.range = { .start = page, .len = DF_PAGE_SIZE },
			.mode = UFFDIO_WRITEPROTECT_MODE_DONTWAKE,
		};

		ioctl(uffd, UFFDIO_WRITEPROTECT, &open);
		if (ioctl(uffd, UFFDIO_POISON, &poison) == 0)
			return true;
	}
	/* EAGAIN: an unread event is about to change the mappings. */
	if (errno == EAGAIN)
		return false;
	/* EEXIST: somebody was faster.  ENOENT: no longer mapped.  EFAULT: past
	 * the end of the page cache, a SIGBUS of its own (mm/userfaultfd.c,
	 * mfill_file_over_size()).  ESRCH: the child is gone. */
	wake(uffd, page, DF_PAGE_SIZE);
	return true;
}

static void adopt(int uffd)
{
	/* One too many stays open, unread: its child blocks, killably, where
	 * closing the descriptor would feed it zeros. */
	if (nuffds < UFFDS_MAX)
		uffds[nuffds++] = (struct pollfd){ .fd = uffd, .events = POLLIN };
}

/* A fault that cannot be answered yet is not woken either.  It would be raised
 * again at once, and read() returns faults before events (userfaultfd_ctx_read()),
 * so the event that stands in the way might never be reached. */
static void fault(int uffd, const struct uffd_msg *msg)
{
	uint64_t page = msg->arg.pagefault.address & ~(uint64_t)(DF_PAGE_SIZE - 1);
	pid_t tid = (pid_t)msg->arg.pagefault.feat.ptid;

	if (answer(uffd, page, tid))
		return;
	if (ndeferred < DEFERRED_MAX)
		deferred[ndeferred++] = (struct deferred){ uffd, tid, page };
	else
		wake(uffd, page, DF_PAGE_SIZE);
}

/* One batch, so that a busy guest does not keep its children waiting.  For
 * remap, remove and unmap, to have been read is all they need. */
static void read_events(int uffd)
{
	struct uffd_msg msgs[BATCH];
	ssize_t n = read(uffd, msgs, sizeof(msgs));
	ssize_t i;

	for (i = 0; i < n / (ssize_t)sizeof(msgs[0]); i++) {
		if (msgs[i].event == UFFD_EVENT_PAGEFAULT)
			fault(uffd, &msgs[i]);
		else if (msgs[i].event == UFFD_EVENT_FORK)
			adopt((int)msgs[i].arg.fork.ufd);
	}
}

static void retry_deferred(void)
{
	unsigned int kept = 0;
	unsigned int i;

	for (i = 0; i < ndeferred; i++) {
		if (!answer(deferred[i].uffd, deferred[i].page, deferred[i].tid))
			deferred[kept++] = deferred[i];
	}
	ndeferred = kept;
}

void takeover(void)
{
	nfds_t i;

	adopt(window_uffd);
	wake(window_uffd, window_base, window_len);
	for (;;) {
		poll(uffds, nuffds, ndeferred ? RETRY_MS : -1);
		for (i = 0; i < nuffds; i++)
			read_events(uffds[i].fd);
		retry_deferred();
	}
}
