/* SPDX-License-Identifier: Apache-2.0
 *
 * wrappers.c - interposes the functions of libc that make the system calls of calls.h.
 *
 * Owns only their arguments, results and errno; the table decides about each call.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "program/cache_maps.h"
#include "program/calls.h"
#include "preload.h"

static int file_on_mount(struct call_view *v, int fd)
{
	(void)v;
	return request_is_on(fd, settings()->device) ? (int)syscall(SYS_fcntl, fd, F_GETFL) : -1;
}

static void drop(struct call_view *v, int fd)
{
	(void)v;
	syscall(SYS_fadvise64, fd, 0, 0, POSIX_FADV_DONTNEED);
}

static uint64_t first_demoted(struct call_view *v, uint64_t start, uint64_t end)
{
	(void)v;
	return demoted_first(start, end);
}

/* -> its result or -errno */
static long make(const struct call *c)
{
	long r = syscall(c->number, c->args[0], c->args[1], c->args[2], c->args[3], c->args[4],
			 c->args[5]);

	return r == -1 ? -errno : r;
}

static long make_decided(const struct call_decision *d)
{
	long r = make(&d->make), then;
	int error;

	switch (d->after) {
	case AFTER_FAIL:
		return r < 0 ? r : -d->error;
	case AFTER_CALL:
		then = r < 0 ? 0 : make(&d->then);
		return then < 0 ? -calls_error_after(d, (int)-then) : r;
	case AFTER_SYNC:
		error = r && r != -ENOMEM ? 0 : map_sync(d->start, d->len);
		return r ? r : -error;
	default:
		return r;
	}
}

static long decided(const struct call *c)
{
	struct call_view v = {
		.task = MAPS_SELF,
		.mapped = wire_mapped(),
		.demoted = demoted_any(),
		.file = file_on_mount,
		.drop = drop,
		.first_demoted = first_demoted,
	};
	struct call_decision d = calls_decide(c, &v);
	struct map_request q;

	switch (d.action) {
	case CALL_REFUSE:
		return -d.error;
	case CALL_MAP:
		q = calls_map_request(c);
		return map_file(&q);
	case CALL_MAKE:
		return make_decided(&d);
	default:
		return make(c);
	}
}

long wrap(long number, uint64_t a, uint64_t b, uint64_t d, uint64_t e, uint64_t f, uint64_t g)
{
	struct call c = { number, { a, b, d, e, f, g } };
	int before = errno;
	long r;

	begin();
	r = settings()->on ? decided(&c) : make(&c);
	errno = r < 0 ? (int)-r : before;
	return r < 0 ? -1 : r;
}

EXPORT void *mmap(void *addr, size_t len, int prot, int flags, int fd, off_t offset)
{
	return (void *)wrap(SYS_mmap, (uint64_t)addr, len, (uint64_t)prot, (uint64_t)flags,
			    (uint64_t)fd, (uint64_t)offset);
}

EXPORT void *mmap64(void *addr, size_t len, int prot, int flags, int fd, off64_t offset)
{
	return mmap(addr, len, prot, flags, fd, offset);
}

EXPORT int msync(void *addr, size_t len, int flags)
{
	return (int)wrap(SYS_msync, (uint64_t)addr, len, (uint64_t)flags, 0, 0, 0);
}

EXPORT void sync(void)
{
	wrap(SYS_sync, 0, 0, 0, 0, 0, 0);
}

EXPORT int syncfs(int fd)
{
	return (int)wrap(SYS_syncfs, (uint64_t)fd, 0, 0, 0, 0, 0);
}

EXPORT int sync_file_range(int fd, off64_t offset, off64_t len, unsigned int flags)
{
	return (int)wrap(SYS_sync_file_range, (uint64_t)fd, (uint64_t)offset, (uint64_t)len, flags,
			 0, 0);
}

EXPORT int madvise(void *addr, size_t len, int advice)
{
	return (int)wrap(SYS_madvise, (uint64_t)addr, len, (uint64_t)advice, 0, 0, 0);
}

EXPORT ssize_t process_madvise(int pidfd, const struct iovec *vector, size_t n, int advice,
			       unsigned int flags)
{
	return wrap(SYS_process_madvise, (uint64_t)pidfd, (uint64_t)vector, n, (uint64_t)advice,
		    flags, 0);
}

EXPORT int remap_file_pages(void *addr, size_t size, int prot, size_t page, int flags)
{
	return (int)wrap(SYS_remap_file_pages, (uint64_t)addr, size, (uint64_t)prot, page,
			 (uint64_t)flags, 0);
}

EXPORT int mprotect(void *addr, size_t len, int prot)
{
	return (int)wrap(SYS_mprotect, (uint64_t)addr, len, (uint64_t)prot, 0, 0, 0);
}

EXPORT int pkey_mprotect(void *addr, size_t len, int prot, int pkey)
{
	if (pkey == -1) /* as libc does; older kernels have only mprotect() */
		return mprotect(addr, len, prot);
	return (int)wrap(SYS_pkey_mprotect, (uint64_t)addr, len, (uint64_t)prot, (uint64_t)pkey, 0,
			 0);
}

EXPORT int mlock(const void *addr, size_t len)
{
	return (int)wrap(SYS_mlock, (uint64_t)addr, len, 0, 0, 0, 0);
}

EXPORT int mlock2(const void *addr, size_t len, unsigned int flags)
{
	return (int)wrap(flags ? SYS_mlock2 : SYS_mlock, (uint64_t)addr, len, flags, 0, 0, 0);
}

EXPORT int mlockall(int flags)
{
	return (int)wrap(SYS_mlockall, (uint64_t)flags, 0, 0, 0, 0, 0);
}

EXPORT ssize_t splice(int in, off64_t *from, int out, off64_t *to, size_t len, unsigned int flags)
{
	return wrap(SYS_splice, (uint64_t)in, (uint64_t)from, (uint64_t)out, (uint64_t)to, len,
		    flags);
}

EXPORT ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t len,
			       unsigned int flags)
{
	return wrap(SYS_copy_file_range, (uint64_t)in, (uint64_t)from, (uint64_t)out, (uint64_t)to,
		    len, flags);
}

EXPORT ssize_t sendfile(int out, int in, off_t *from, size_t len)
{
	return wrap(SYS_sendfile, (uint64_t)out, (uint64_t)in, (uint64_t)from, len, 0, 0);
}

EXPORT ssize_t sendfile64(int out, int in, off64_t *from, size_t len)
{
	return sendfile(out, in, from, len);
}

long wrap_remap(uint64_t from, uint64_t old_len, uint64_t new_len, int flags, uint64_t to)
{
	int before = errno;
	long r;

	begin();
	r = demoted_remap(from, old_len, new_len, flags, to);
	errno = r < 0 ? (int)-r : before;
	return r < 0 ? -1 : r;
}

EXPORT void *mremap(void *addr, size_t old_len, size_t new_len, int flags, ...)
{
	void *to = NULL;
	va_list args;

	if (flags & (MREMAP_FIXED | MREMAP_DONTUNMAP)) {
		va_start(args, flags);
		to = va_arg(args, void *);
		va_end(args);
	}
	return (void *)wrap_remap((uint64_t)addr, old_len, new_len, flags, (uint64_t)to);
}

/* fork() for signal handlers: runs no pthread_atfork() handlers. */
EXPORT pid_t _Fork(void)
{
	begin();
	return fork_without_handlers();
}
