/* SPDX-License-Identifier: Apache-2.0
 *
 * window.c - the host memory under a memslot: maps it, and changes a part past EOF so that KVM
 * reports an access to it.
 *
 * Owns no state.  Each change is one system call on the range, so that no vCPU sees a hole; KVM
 * follows by its MMU notifier.
 */
#include <errno.h>
#include <sys/mman.h>

#include "base/cleanup.h"
#include "base/uffd.h"
#include "internal.h"

static int mapped(void *at, uint64_t len, uint64_t *hva)
{
	if (at == MAP_FAILED)
		return kvm_refused("mmap");
	madvise(at, len, MADV_NOHUGEPAGE); /* EINVAL: this kernel has no huge pages */
	madvise(at, len, MADV_DONTFORK);
	*hva = (uintptr_t)at;
	return 0;
}

static int protection(int writable)
{
	return PROT_READ | (writable ? PROT_WRITE : 0);
}

/* NORESERVE is for hugetlbfs: mmap() succeeds, and the fault reports a missing page. */
#define OF_FILE (MAP_SHARED | MAP_NORESERVE)

int df_window_file(int fd, uint64_t offset, uint64_t len, int writable, uint64_t *hva)
{
	return mapped(mmap(NULL, len, protection(writable), OF_FILE, fd, (off_t)offset), len, hva);
}

int df_window_anonymous(uint64_t len, uint64_t *hva)
{
	return mapped(mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
		      len, hva);
}

int df_window_unmap(uint64_t hva, uint64_t len)
{
	return munmap((void *)hva, len) ? kvm_refused("munmap") : 0;
}

/* Not munmap(): the memslot still covers the range, so that a later mapping of this process there,
 * such as its heap, would be accessible to the guest. */
int df_window_vacate(uint64_t hva, uint64_t len)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
	uint64_t at;

	return mapped(mmap((void *)hva, len, PROT_NONE, flags, -1, 0), len, &at);
}

int df_window_again(int fd, uint64_t offset, uint64_t hva, uint64_t len, int writable)
{
	int flags = OF_FILE | MAP_FIXED;
	uint64_t at;

	return mapped(mmap((void *)hva, len, protection(writable), flags, fd, (off_t)offset), len,
		      &at);
}

int df_window_forbid(uint64_t hva, uint64_t len)
{
	return mprotect((void *)hva, len, PROT_NONE) ? kvm_refused("mprotect") : 0;
}

/* A mapping of a file cannot be poisoned.  So anonymous memory is poisoned elsewhere and moved over
 * it.  The poison markers stay when the userfaultfd is closed. */
int df_window_poison(uint64_t hva, uint64_t len)
{
	uint64_t aside = 0;
	int uffd CLEANUP_CLOSE = df_uffd_open(true);
	int error = df_window_anonymous(len, &aside);

	if (error)
		return error;
	error = uffd < 0 ? uffd : uffd_poison_fresh(uffd, aside, len);
	if (error) {
		errno = -error;
		error = kvm_refused("UFFDIO_POISON");
	} else if (mremap((void *)aside, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)hva) ==
		   MAP_FAILED) {
		error = kvm_refused("mremap");
	}
	if (error)
		munmap((void *)aside, len);
	return error;
}
