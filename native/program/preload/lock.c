/* SPDX-License-Identifier: Apache-2.0
 *
 * lock.c - mlock() and mlockall() of a program that has mapped page caches.
 *
 * An mremap() that makes a locked mapping longer waits for its new pages before it tells
 * the host of itself, and while it has not told, the kernel takes no page from the host
 * (mm/mremap.c, do_mremap(): mm_populate() comes before mremap_userfaultfd_complete()): both
 * would wait for ever.  MLOCK_ONFAULT locks the same pages and does not wait there; what
 * mlock() promises of pages that are there already is kept by asking for them.
 */
#include <errno.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "program/mapping.h"
#include "preload.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22	/* 5.14 */
#endif

static int lock_pages(const void *start, size_t len)
{
	uint64_t from = (uint64_t)(uintptr_t)start & ~IN_PAGE;
	uint64_t to = ((uint64_t)(uintptr_t)start + len + IN_PAGE) & ~IN_PAGE;
	int before = errno;

	if (syscall(SYS_mlock2, start, len, MLOCK_ONFAULT))
		return -1;
	if (to <= from || !syscall(SYS_madvise, from, to - from, MADV_POPULATE_READ) || errno == EINVAL) {
		errno = before;
		return 0;
	}
	/* as mm/mlock.c, __mlock_posix_error_return() */
	if (errno == EFAULT)
		errno = ENOMEM;
	else if (errno == ENOMEM)
		errno = EAGAIN;
	return -1;
}

EXPORT int mlock(const void *start, size_t len)
{
	return settings()->on && wire_mapped() ? lock_pages(start, len) : (int)syscall(SYS_mlock, start, len);
}

EXPORT int mlock2(const void *start, size_t len, unsigned int flags)
{
	return flags ? (int)syscall(SYS_mlock2, start, len, flags) : mlock(start, len);
}

EXPORT int mlockall(int flags)
{
	int before = errno;

	/* Also where nothing of ours is mapped yet: MCL_FUTURE is for what will be. */
	if (syscall(SYS_mlockall, flags))
		return -1;
	if (settings()->on && flags && !(flags & ~(MCL_CURRENT | MCL_FUTURE)))
		syscall(SYS_mlockall, flags | MCL_ONFAULT);
	errno = before;
	return 0;
}
