/* SPDX-License-Identifier: Apache-2.0
 *
 * map.c - mmap(), msync() and madvise() of files on the mount.
 *
 * Owns which calls are ours, and their place in the conversation with the host; mapping.h has
 * what is then done in the address space.
 *
 * What the kernel refuses whatever the file system is left to it, for the right errno; so
 * is what is not ours: other files, PROT_EXEC.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "program/cache_maps.h"
#include "program/mapping.h"
#include "preload.h"

static void *map_raw(void *addr, size_t len, int prot, int flags, int fd, off_t offset)
{
	return (void *)syscall(SYS_mmap, addr, len, prot, flags, fd, offset);
}

static int call(long number, uint64_t a, uint64_t b, uint64_t c)
{
	return syscall(number, a, b, c) < 0 ? errno : 0;
}

static long call_here(struct caller *c, long number, const uint64_t a[6])
{
	long r = syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);

	(void)c;
	return r == -1 ? -errno : r;
}

static struct caller here = { .call = call_here };

/* -> 0, or what mmap() fails with; *dead when it is for the connection. */
static int map_cache(struct client *client, const struct map_request *q, struct placed *p, bool *dead)
{
	bool private;
	int cache, error, r;

	r = client_map(client, q->fd, (uint64_t)q->offset, q->len, q->prot, q->flags, &cache, &private);
	*dead = r < 0;
	if (r)
		return wire_errno(r);
	error = place_map(p, q, cache, private, &here);
	syscall(SYS_close, cache);
	r = client_mapped(client, error ? 0 : p->at, error ? 0 : p->len);
	if (r < 0)
		client_close(client);
	if (error)
		return error;
	if (r) {
		syscall(SYS_munmap, p->at, p->len);
		return r > 0 ? r : ENODEV;
	}
	error = place_finish(p, q, &here);
	if (error)
		return error;
	if (wire_unfollowed())
		call(SYS_madvise, p->at, p->len, MADV_DONTFORK);
	demoted_set(p->at, p->at + p->len, private && request_is_shared(q));
	wire_set_mapped();
	return 0;
}

static void populate(const struct placed *p, const struct map_request *q)
{
	uint64_t args[6];
	long number = place_populates(p, q, args);

	if (number >= 0)
		call(number, args[0], args[1], args[2]);
}

static void *map(const struct map_request *q)
{
	int before = errno, error;
	struct conversation c;
	struct placed p;
	bool dead;

	if (q->flags & MAP_SYNC) {	/* as any file system without DAX (fs/ext4/file.c) */
		errno = EOPNOTSUPP;
		return MAP_FAILED;
	}
	error = wire_begin(&c);
	if (!error) {
		error = map_cache(c.client, q, &p, &dead);
		if (dead) {
			error = wire_again(&c);
			if (!error)
				error = map_cache(c.client, q, &p, &dead);
			if (dead)
				client_close(c.client);
		}
	}
	wire_end(&c);
	if (error) {
		errno = error;
		return MAP_FAILED;
	}
	populate(&p, q);
	errno = before;
	return (void *)p.at;
}

EXPORT void *mmap(void *addr, size_t len, int prot, int flags, int fd, off_t offset)
{
	struct map_request q = {
		.addr = (uint64_t)addr, .len = len, .prot = prot, .flags = flags, .fd = fd, .offset = offset,
	};
	int error = errno;

	if (flags & MAP_ANONYMOUS || prot & PROT_EXEC || !settings()->on || !request_is_on(fd, settings()->device) ||
	    request_is_refused(&q, (int)syscall(SYS_fcntl, fd, F_GETFL))) {
		errno = error;
		return map_raw(addr, len, prot, flags, fd, offset);
	}
	return map(&q);
}

EXPORT void *mmap64(void *addr, size_t len, int prot, int flags, int fd, off64_t offset)
{
	return mmap(addr, len, prot, flags, fd, offset);
}

static int sync_caches(uint64_t start, uint64_t len)
{
	struct conversation c;
	int r = -ENODEV;

	if (start >= USER_END)
		return 0;
	if (len > USER_END - start)
		len = USER_END - start;
	if (!wire_begin(&c)) {
		r = client_msync(c.client, start, len);
		if (r < 0 && !wire_again(&c))
			r = client_msync(c.client, start, len);
		if (r < 0)
			client_close(c.client);
	}
	wire_end(&c);
	if (r >= 0)
		return r;
	/* What was stored there is not safe.  But other files must not fail with our host. */
	return cache_maps_any(MAPS_SELF, start, start + len) ? EIO : 0;
}

EXPORT int msync(void *addr, size_t len, int flags)
{
	int before = errno;
	int error = call(SYS_msync, (uint64_t)addr, len, (uint64_t)flags);

	/* ENOMEM: there are holes in it, and the rest was synced all the same */
	if ((!error || error == ENOMEM) && flags & MS_SYNC && len && settings()->on && wire_mapped()) {
		int cache_error = sync_caches((uint64_t)addr, (len + IN_PAGE) & ~IN_PAGE);

		if (!error)
			error = cache_error;
	}
	errno = error ? error : before;
	return error ? -1 : 0;
}

/* It would take pages out of the page cache, and what was stored there with them, but nothing out of the
 * file.  The mount has no fallocate(): this is what madvise(2) has for such a file system. */
EXPORT int madvise(void *addr, size_t len, int advice)
{
	if (advice == MADV_REMOVE && settings()->on && wire_mapped() &&
	    cache_maps_any(MAPS_SELF, (uint64_t)addr, (uint64_t)addr + len)) {
		errno = EOPNOTSUPP;
		return -1;
	}
	return (int)syscall(SYS_madvise, addr, len, advice);
}
