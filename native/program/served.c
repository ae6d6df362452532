/* SPDX-License-Identifier: Apache-2.0
 *
 * served.c - connects a program to the host: see served.h.
 */
#include "served.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "abi/compat.h"

static long call1(struct caller *there, long number, uint64_t a)
{
	return there->call(there, number, (const uint64_t[6]){ a });
}

/* Move a descriptor of ours to the program.  -> its number there, or -errno; closes ours. */
static long lend(struct caller *there, int fd)
{
	long theirs = fd;

	if (there->lend) {
		theirs = there->lend(there, fd);
		syscall(SYS_close, fd);
	}
	return theirs;
}

/* The reverse. */
static int take(struct caller *there, long theirs)
{
	int fd = (int)theirs;

	if (there->take && theirs >= 0) {
		fd = there->take(there, (int)theirs);
		call1(there, SYS_close, (uint64_t)theirs);
	}
	return fd;
}

/* Make a userfaultfd of the program's address space; the host does UFFDIO_API.  `device` is
 * /dev/userfaultfd, or -1: use the system call.  -> our descriptor, or -errno. */
static int make_userfaultfd(struct caller *there, int device)
{
	const uint64_t flags = O_CLOEXEC | O_NONBLOCK;
	long theirs, fd;

	if (device < 0)
		return take(there, call1(there, SYS_userfaultfd, flags));
	theirs = lend(there, device);
	if (theirs < 0)
		return (int)theirs;
	fd = there->call(there, SYS_ioctl,
			 (const uint64_t[6]){ (uint64_t)theirs, USERFAULTFD_IOC_NEW, flags });
	call1(there, SYS_close, (uint64_t)theirs);
	return take(there, fd);
}

int served_begin(struct client *c, const char *socket, pid_t pid, struct caller *there,
		 uint32_t *flags)
{
	int device, uffd, r = client_attach(c, socket, pid, &device);

	if (r)
		return client_errno(r);
	uffd = make_userfaultfd(there, device);
	if (uffd < 0) {
		client_close(c);
		return uffd == -EPERM ? EPERM : client_errno(uffd);
	}
	r = client_serve(c, uffd, flags);
	syscall(SYS_close, uffd);
	if (r)
		client_close(c);
	return r ? client_errno(r) : 0;
}

static int unmap(struct caller *there, const struct mapping *m, int error)
{
	there->call(there, SYS_munmap, (const uint64_t[6]){ m->at, m->len });
	return error;
}

/* Map the page cache, before client_mapped().  -> errno */
static int map_cache(struct mapping *m, const struct map_request *q, int cache, bool private,
		     bool demoted, struct caller *there)
{
	long theirs = lend(there, cache), r = 0;
	int error;

	if (theirs < 0)
		return (int)-theirs;
	error = mapping_make(m, q, (int)theirs, private, there);
	call1(there, SYS_close, (uint64_t)theirs);
	/* of a private file mapping, only dirty pages are in a core dump (core(5)); this has none */
	if (!error && demoted)
		r = there->call(there, SYS_madvise,
				(const uint64_t[6]){ m->at, m->len, MADV_DONTDUMP });
	return r < 0 ? unmap(there, m, (int)-r) : error;
}

int served_map(struct client *c, const struct map_request *q, struct caller *there,
	       struct mapping *m, bool *demoted, bool *dead)
{
	bool private;
	int cache, error, r;

	r = client_map(c, q->fd, (uint64_t)q->offset, q->len, q->prot, q->flags, &cache, &private);
	*dead = r < 0;
	if (r < 0)
		client_close(c);
	if (r)
		return client_errno(r);
	*demoted = private && request_is_shared(q);
	error = map_cache(m, q, cache, private, *demoted, there);
	r = client_mapped(c, error ? 0 : m->at, error ? 0 : m->len);
	if (r < 0)
		client_close(c);
	if (error)
		return error;
	if (r)
		return unmap(there, m, r > 0 ? r : ENODEV);
	return mapping_finish(m, q, there);
}
