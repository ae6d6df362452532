/* SPDX-License-Identifier: Apache-2.0
 *
 * uffd.c - userfaultfd(2): opening, the API handshake, and one function per
 * ioctl.  Must not know files, guests or faults.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "uffd.h"

#define PAGE ((uint64_t)DF_PAGE_SIZE)

int df_uffd_open(int user_mode_only)
{
	int flags = O_CLOEXEC | O_NONBLOCK | (user_mode_only ? UFFD_USER_MODE_ONLY : 0);
	int fd = -1;

	/* /dev/userfaultfd (6.1) grants kernel-mode faults by file permission; the system call
	 * requires CAP_SYS_PTRACE or vm.unprivileged_userfaultfd. */
	if (!user_mode_only) {
		int dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);

		if (dev >= 0) {
			fd = ioctl(dev, USERFAULTFD_IOC_NEW, flags);
			close(dev);
		}
	}
	if (fd < 0)
		fd = (int)syscall(SYS_userfaultfd, flags);
	return fd < 0 ? -errno : fd;
}

int df_uffd_api(int uffd, uint64_t features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };

	return ioctl(uffd, UFFDIO_API, &api) ? -errno : 0;
}

int64_t df_uffd_probe(int user_mode_only)
{
	struct uffdio_api api = { .api = UFFD_API };
	int fd = df_uffd_open(user_mode_only);
	int error;

	if (fd < 0)
		return fd;
	/* features = 0 requests none; the kernel returns all that it has */
	error = ioctl(fd, UFFDIO_API, &api) ? -errno : 0;
	close(fd);
	return error ? error : (int64_t)api.features;
}

_Static_assert(DF_UFFD_MISSING == UFFDIO_REGISTER_MODE_MISSING &&
		       DF_UFFD_WP == UFFDIO_REGISTER_MODE_WP &&
		       DF_UFFD_MINOR == UFFDIO_REGISTER_MODE_MINOR &&
		       DF_UFFD_PAGEFAULT == UFFD_EVENT_PAGEFAULT &&
		       DF_UFFD_FORK == UFFD_EVENT_FORK && DF_UFFD_REMAP == UFFD_EVENT_REMAP &&
		       DF_UFFD_REMOVE == UFFD_EVENT_REMOVE && DF_UFFD_UNMAP == UFFD_EVENT_UNMAP,
	       "uffd.h follows linux/userfaultfd.h");

int uffd_register(int uffd, uint64_t start, uint64_t len, int modes, uint64_t *ioctls)
{
	struct uffdio_register arg = { .range = { start, len }, .mode = (uint64_t)modes };
	int error = ioctl(uffd, UFFDIO_REGISTER, &arg) ? -errno : 0;

	*ioctls = error ? 0 : arg.ioctls;
	return error;
}

int uffd_unregister(int uffd, uint64_t start, uint64_t len)
{
	struct uffdio_range arg = { start, len };

	return ioctl(uffd, UFFDIO_UNREGISTER, &arg) ? -errno : 0;
}

int uffd_copy(int uffd, uint64_t start, const void *from, uint64_t len, bool protect, uint64_t *done)
{
	struct uffdio_copy arg = {
		.dst = start,
		.src = (uintptr_t)from,
		.len = len,
		.mode = protect ? UFFDIO_COPY_MODE_WP : 0,
	};
	int error = ioctl(uffd, UFFDIO_COPY, &arg) ? -errno : 0;

	*done = arg.copy > 0 ? (uint64_t)arg.copy : 0;
	return error;
}

int uffd_zeropage(int uffd, uint64_t start, uint64_t len, uint64_t *done)
{
	struct uffdio_zeropage arg = { .range = { start, len } };
	int error = ioctl(uffd, UFFDIO_ZEROPAGE, &arg) ? -errno : 0;

	*done = arg.zeropage > 0 ? (uint64_t)arg.zeropage : 0;
	return error;
}

int uffd_continue(int uffd, uint64_t start, uint64_t len, bool protect, uint64_t *done)
{
	struct uffdio_continue arg = {
		.range = { start, len },
		.mode = protect ? UFFDIO_CONTINUE_MODE_WP : 0,
	};
	int error = ioctl(uffd, UFFDIO_CONTINUE, &arg) ? -errno : 0;

	*done = arg.mapped > 0 ? (uint64_t)arg.mapped : 0;
	return error;
}

int uffd_protect(int uffd, uint64_t start, uint64_t len, bool protect)
{
	struct uffdio_writeprotect arg = {
		.range = { start, len },
		.mode = protect ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};

	return ioctl(uffd, UFFDIO_WRITEPROTECT, &arg) ? -errno : 0;
}

int uffd_poison(int uffd, uint64_t start, uint64_t len, uint64_t *done)
{
	struct uffdio_poison arg = { .range = { start, len } };
	int error = ioctl(uffd, UFFDIO_POISON, &arg) ? -errno : 0;

	*done = arg.updated > 0 ? (uint64_t)arg.updated : 0;
	return error;
}

int uffd_poison_fresh(int uffd, uint64_t start, uint64_t len)
{
	uint64_t ignored, done;
	int error = df_uffd_api(uffd, 0);

	if (!error)
		error = uffd_register(uffd, start, len, DF_UFFD_MISSING, &ignored);
	while (!error && len) {
		error = uffd_poison(uffd, start, len, &done);
		if (error == -EAGAIN)
			error = 0;
		start += done;
		len -= done;
	}
	return error;
}

/* Zapping a write-protected page of a file leaves a marker in its place (mm/memory.c,
 * zap_install_uffd_wp_if_needed()).  UFFDIO_CONTINUE replaces the marker, UFFDIO_POISON does not
 * (mm/userfaultfd.c, mfill_atomic_pte_poison() requires pte_none).  A wake-up in answer to that
 * EEXIST would make the fault loop. */
int uffd_unmark(int uffd, uint64_t start, uint64_t len)
{
	struct uffdio_writeprotect arg = {
		.range = { start, len },
		.mode = UFFDIO_WRITEPROTECT_MODE_DONTWAKE,
	};

	return ioctl(uffd, UFFDIO_WRITEPROTECT, &arg) ? -errno : 0;
}

int uffd_poison_absent(int uffd, uint64_t start, uint64_t len)
{
	uint64_t end = start + len;
	int tries = 0;

	uffd_unmark(uffd, start, len); /* EINVAL: nothing tracked there */
	while (start < end) {
		uint64_t done = 0;
		int error = uffd_poison(uffd, start, end - start, &done);

		start += done;
		if (!error)
			break;
		if (error == -EEXIST) {
			start += PAGE; /* present, or poisoned already */
		} else if (error != -EAGAIN) {
			return error;
		} else if (!done && ++tries > 1000) {
			return error; /* its address space never settles */
		}
	}
	return 0;
}

int uffd_wake(int uffd, uint64_t start, uint64_t len)
{
	struct uffdio_range arg = { start, len };

	return ioctl(uffd, UFFDIO_WAKE, &arg) ? -errno : 0;
}

int uffd_alive(int uffd)
{
	/* UFFDIO_CONTINUE checks mm_users before it looks for the mapping (fs/userfaultfd.c,
	 * userfaultfd_continue).  Nothing is mapped at the top user page: ENOENT if the guest is
	 * alive, ESRCH if it is dead. */
	uint64_t done;

	return uffd_continue(uffd, 0x7fffffffe000, PAGE, false, &done) != -ESRCH;
}

bool uffd_changing(int uffd)
{
	uint64_t done;

	/* The kernel checks for EAGAIN first.  A munmap() causes it from before it releases its
	 * range until its event has been read. */
	return uffd_continue(uffd, 0x7fffffffe000, PAGE, false, &done) == -EAGAIN;
}

int uffd_read(int uffd, struct uffd_msg *msgs, size_t most)
{
	ssize_t n = read(uffd, msgs, most * sizeof(*msgs));

	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	return (int)((size_t)n / sizeof(*msgs));
}

int uffd_events(int uffd, struct df_uffd_event *out, int most)
{
	struct uffd_msg msgs[16];
	int n = uffd_read(uffd, msgs, most < 16 ? (size_t)most : 16);

	for (int i = 0; i < n; i++) {
		const struct uffd_msg *m = &msgs[i];

		out[i] = (struct df_uffd_event){ .kind = m->event, .fd = -1 };
		switch (m->event) {
		case UFFD_EVENT_PAGEFAULT:
			out[i].tid = (int32_t)m->arg.pagefault.feat.ptid;
			out[i].flags = (uint32_t)m->arg.pagefault.flags;
			out[i].address = m->arg.pagefault.address;
			break;
		case UFFD_EVENT_FORK:
			out[i].fd = (int32_t)m->arg.fork.ufd;
			break;
		case UFFD_EVENT_REMAP:
			out[i].address = m->arg.remap.from;
			out[i].to = m->arg.remap.to;
			out[i].len = m->arg.remap.len;
			break;
		default:
			out[i].address = m->arg.remove.start;
			out[i].len = m->arg.remove.end - m->arg.remove.start;
		}
	}
	return n;
}
