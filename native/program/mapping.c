/* SPDX-License-Identifier: Apache-2.0
 *
 * mapping.c - maps a page cache in place of its file: see mapping.h.
 */
#include "mapping.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

enum {
	PROT_ALL = PROT_READ | PROT_WRITE | PROT_EXEC,
	/* The flags that MAP_SHARED_VALIDATE accepts on every file system (include/linux/mman.h,
	 * LEGACY_MAP_MASK).  The top six bits: MAP_UNINITIALIZED, and the sizes of huge pages. */
	LEGACY_FLAGS = MAP_SHARED | MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS | MAP_DENYWRITE |
		MAP_EXECUTABLE | MAP_GROWSDOWN | MAP_LOCKED | MAP_NORESERVE | MAP_POPULATE |
		MAP_NONBLOCK | MAP_STACK | MAP_HUGETLB | MAP_32BIT | (int)0xfc000000,
	ELSEWHERE_TRIES = 3,
};

bool request_is_shared(const struct map_request *q)
{
	int type = q->flags & MAP_TYPE;

	return type == MAP_SHARED || type == MAP_SHARED_VALIDATE;
}

/* mm/mmap.c, do_mmap() */
bool request_is_refused(const struct map_request *q, int access)
{
	int type = q->flags & MAP_TYPE;

	if (access < 0 || access & O_PATH)
		return true;
	access &= O_ACCMODE;
	if (access != O_RDONLY && access != O_RDWR)
		return true;
	if (request_is_shared(q) && q->prot & PROT_WRITE && access != O_RDWR)
		return true;
	if (type == MAP_SHARED_VALIDATE && q->flags & ~LEGACY_FLAGS)
		return true;
	if (q->len > INT64_MAX || q->offset > INT64_MAX - (int64_t)q->len)
		return true;
	return (!request_is_shared(q) && type != MAP_PRIVATE) || q->flags & MAP_HUGETLB ||
	       !q->len || q->offset & (int64_t)IN_PAGE || q->offset < 0 ||
	       (q->flags & MAP_FIXED && q->addr & IN_PAGE);
}

bool request_is_on(int fd, dev_t device)
{
	struct statx st;
	struct stat old;

	if (fd < 0)
		return false;
	/* DONT_SYNC: device and type never change, so no request to the file system is needed */
	if (!syscall(SYS_statx, fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE, &st))
		return makedev(st.stx_dev_major, st.stx_dev_minor) == device && S_ISREG(st.stx_mode);
	/* some sandboxes do not allow statx() */
	return !syscall(SYS_fstat, fd, &old) && old.st_dev == device && S_ISREG(old.st_mode);
}

static long call6(struct caller *c, long number, uint64_t a, uint64_t b, uint64_t d, uint64_t e,
		  uint64_t f, uint64_t g)
{
	return c->call(c, number, (const uint64_t[6]){ a, b, d, e, f, g });
}

/* -> the errno. */
static int call3(struct caller *c, long number, uint64_t a, uint64_t b, uint64_t d)
{
	long r = call6(c, number, a, b, d, 0, 0, 0);

	return r < 0 ? (int)-r : 0;
}

static bool failed(long at)
{
	return at < 0 && at >= -4095; /* include/linux/err.h, MAX_ERRNO */
}

static bool overlap(uint64_t a, uint64_t b, uint64_t len)
{
	return a < b + len && b < a + len;
}

/* Map outside [target, target + len).  The gap that the kernel chooses may overlap either end of
 * it. */
static long map_elsewhere(uint64_t target, uint64_t len, int flags, int cache, int64_t offset,
			  struct caller *c)
{
	long at[ELSEWHERE_TRIES];
	int n, i;

	for (n = 0; n < ELSEWHERE_TRIES; n++) {
		at[n] = call6(c, SYS_mmap, 0, len, PROT_NONE, (uint64_t)flags, (uint64_t)cache,
			      (uint64_t)offset);
		if (failed(at[n]) || !overlap((uint64_t)at[n], target, len))
			break;
	}
	for (i = 0; i < n; i++)
		call3(c, SYS_munmap, (uint64_t)at[i], len, 0);
	return n < ELSEWHERE_TRIES ? at[n] : -ENOMEM;
}

int mapping_make(struct mapping *m, const struct map_request *q, int cache, bool private,
		 struct caller *c)
{
	bool replace = (q->flags & (MAP_FIXED | MAP_FIXED_NOREPLACE)) == MAP_FIXED;
	int flags = q->flags & ~(MAP_POPULATE | MAP_LOCKED);
	long at;

	if (private && request_is_shared(q))
		flags = (flags & ~MAP_TYPE) | MAP_PRIVATE;
	m->len = (q->len + IN_PAGE) & ~IN_PAGE;
	m->target = q->addr;
	if (replace)
		at = map_elsewhere(m->target, m->len, flags & ~MAP_FIXED, cache, q->offset, c);
	else
		at = call6(c, SYS_mmap, q->addr, q->len, PROT_NONE, (uint64_t)flags,
			   (uint64_t)cache, (uint64_t)q->offset);
	if (failed(at))
		return (int)-at;
	m->at = (uint64_t)at;
	if (!replace)
		m->target = m->at;
	return 0;
}

static int open_up(struct mapping *m, const struct map_request *q, struct caller *c)
{
	int error = 0;
	long at;

	if (q->prot & PROT_ALL)
		error = call3(c, SYS_mprotect, m->at, m->len, (uint64_t)(q->prot & PROT_ALL));
	if (!error && q->flags & MAP_LOCKED) {
		/* checks only the limits: mmap() does not report pages that cannot be read */
		error = call3(c, SYS_mlock2, m->at, m->len, MLOCK_ONFAULT);
		if (error == ENOMEM)
			error = EAGAIN;
	}
	if (error || m->at == m->target)
		return error;
	at = call6(c, SYS_mremap, m->at, m->len, m->len, MREMAP_MAYMOVE | MREMAP_FIXED, m->target, 0);
	if (failed(at)) /* EINVAL: beyond the end of the address space, which is ENOMEM of mmap() */
		return at == -EINVAL ? ENOMEM : (int)-at;
	m->at = m->target;
	return 0;
}

int mapping_finish(struct mapping *m, const struct map_request *q, struct caller *c)
{
	int error = open_up(m, q, c);

	if (error)
		call3(c, SYS_munmap, m->at, m->len, 0);
	return error;
}

long mapping_populates(const struct mapping *m, const struct map_request *q, uint64_t args[6])
{
	bool copies = !request_is_shared(q) && q->prot & PROT_WRITE;

	memset(args, 0, 6 * sizeof(*args));
	args[0] = m->at;
	args[1] = m->len;
	/* Not mlock(), which would clear MLOCK_ONFAULT: see decide_mlock(). */
	if (!(q->flags & MAP_LOCKED) && (q->flags & (MAP_POPULATE | MAP_NONBLOCK)) != MAP_POPULATE)
		return -1;
	if (!(q->prot & PROT_ALL))
		return -1;
	args[2] = copies ? MADV_POPULATE_WRITE : MADV_POPULATE_READ;
	return SYS_madvise;
}
