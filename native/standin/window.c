/* SPDX-License-Identifier: Apache-2.0
 *
 * window.c - the DAX window: reserved address space and its userfaultfd.
 *
 * Owns the reservation and the mappings in it.  The guest sends the userfaultfd to the host and
 * keeps a copy for life: when the last reference is closed, the kernel resolves every fault with a
 * zeroed page (userfaultfd_release() in fs/userfaultfd.c).
 *
 * A vCPU must see every change of the window as atomic: an address is either reserved (PROT_NONE)
 * or registered.  An access to a mapping that is not registered would read zeros and put them into
 * the file's page cache.
 */
#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/uffd.h"
#include "standin.h"

uint64_t window_base;
uint64_t window_len;
int window_uffd = -1;

static uint64_t features; /* requested and granted */
static bool has_poison;

/* A new userfaultfd with `wanted` features, or a negative errno.  Async-signal-safe:
 * a forked child calls it.  Not UFFD_USER_MODE_ONLY: the system calls of the guest must
 * fault too. */
static int new_uffd(uint64_t wanted)
{
	int fd = df_uffd_open(false);
	int error = fd < 0 ? fd : df_uffd_api(fd, wanted);

	if (fd >= 0 && error)
		close(fd);
	return error ? error : fd;
}

static int reserve(uint64_t len)
{
	uint64_t end, raw_end, raw;
	void *p;

	p = mmap(NULL, len + DF_RANGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
		 -1, 0);
	if (p == MAP_FAILED)
		return -errno;

	raw = (uint64_t)(uintptr_t)p;
	raw_end = raw + len + DF_RANGE_SIZE;
	window_base = (raw + DF_RANGE_SIZE - 1) & ~(uint64_t)(DF_RANGE_SIZE - 1);
	window_len = len;
	end = window_base + len;
	if (window_base > raw)
		munmap(p, window_base - raw);
	if (raw_end > end)
		munmap((void *)(uintptr_t)end, raw_end - end);
	return 0;
}

int window_open(uint64_t len)
{
	int64_t offered = df_uffd_probe(false);

	features = UFFD_FEATURE_THREAD_ID | UFFD_FEATURE_EXACT_ADDRESS |
		   UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_EVENT_FORK |
		   UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP;
	if (offered < 0)
		return (int)offered;
	/* Write protection until the first store shows the host which pages are dirty; before
	 * 6.4 it must assume all of them. */
	if (offered & UFFD_FEATURE_WP_UNPOPULATED)
		features |= UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
			    UFFD_FEATURE_WP_UNPOPULATED;

	window_uffd = new_uffd(features);
	if (window_uffd == -EPERM) {
		/* EVENT_FORK requires CAP_SYS_PTRACE. */
		features &= ~(uint64_t)UFFD_FEATURE_EVENT_FORK;
		window_uffd = new_uffd(features);
	}
	if (window_uffd < 0)
		return window_uffd;
	has_poison = offered & UFFD_FEATURE_POISON;
	return reserve(len);
}

bool window_sees_fork(void)
{
	return features & UFFD_FEATURE_EVENT_FORK;
}

bool window_has_poison(void)
{
	return has_poison;
}

static void *at(uint64_t offset)
{
	return (void *)(uintptr_t)(window_base + offset);
}

/* Maps PROT_NONE, registers, and then sets the protection: an earlier access gets SIGSEGV, as
 * from the reservation, and never an unregistered page.  Does not take ownership of fd. */
int window_map(uint64_t moffset, uint64_t len, int fd, uint64_t foffset, bool writable)
{
	int modes = DF_UFFD_MISSING | DF_UFFD_MINOR;
	int flags = MAP_FIXED | MAP_NORESERVE | (writable ? MAP_SHARED : MAP_PRIVATE);
	int prot = PROT_READ | (writable ? PROT_WRITE : 0);
	uint64_t ioctls;
	int error;

	if (writable && features & UFFD_FEATURE_WP_HUGETLBFS_SHMEM)
		modes |= DF_UFFD_WP;
	if (mmap(at(moffset), len, PROT_NONE, flags, fd, (off_t)foffset) == MAP_FAILED)
		return -errno;
	error = uffd_register(window_uffd, window_base + moffset, len, modes, &ioctls);
	if (!error && mprotect(at(moffset), len, prot) < 0)
		error = -errno;
	if (error)
		window_unmap(moffset, len);
	return error;
}

/* Replaces the mapping by the reservation atomically.  UFFDIO_UNREGISTER first would save the
 * wait for the host to read EVENT_UNMAP, but would leave the range mapped and unregistered for a
 * moment. */
int window_unmap(uint64_t moffset, uint64_t len)
{
	void *p = mmap(at(moffset), len, PROT_NONE,
		       MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? -errno : 0;
}

/* Moves part of the window within it.  Reserves the hole again, unless another mapping of this
 * process has taken it, which must stay. */
int window_remap(uint64_t offset, uint64_t len, uint64_t new_offset)
{
	if (mremap(at(offset), len, len, MREMAP_MAYMOVE | MREMAP_FIXED, at(new_offset)) == MAP_FAILED)
		return -errno;
	if (mmap(at(offset), len, PROT_NONE,
		 MAP_FIXED_NOREPLACE | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
		 0) == MAP_FAILED)
		return -errno;
	return 0;
}

/* Whether the page is registered with another userfaultfd; the kernel then refuses a second one
 * (EBUSY).  Only the host holds a forked child's userfaultfd.  When the host dies, the kernel
 * unregisters the child's memory before a fault can return zeros, so that a byte read before a
 * `true` is valid.  Async-signal-safe. */
bool window_registered(uint64_t address)
{
	uint64_t page = address & ~(uint64_t)(DF_PAGE_SIZE - 1), ioctls;
	int fd = new_uffd(UFFD_FEATURE_MISSING_SHMEM);
	bool busy;

	if (fd < 0)
		return false;
	busy = uffd_register(fd, page, DF_PAGE_SIZE, DF_UFFD_MISSING, &ioctls) == -EBUSY;
	close(fd);
	return busy;
}
