/* SPDX-License-Identifier: Apache-2.0
 *
 * preload_map.c - mmap() and msync() of files on the mount.
 *
 * Owns how a page cache gets to where the program wants its file.  Nobody may touch a page
 * of it before the host has registered the mapping: the page would be made of zeros, for
 * everybody who has the file mapped.  So it is mapped PROT_NONE at first, which also keeps
 * MAP_POPULATE, MAP_LOCKED and mlockall(MCL_FUTURE) from it (the former two are done later;
 * with the latter, pages are locked as they come, and not read ahead); and what is to replace other
 * mappings (MAP_FIXED), which other threads may be reading, is made elsewhere and then
 * moved over them in one step, or, if that fails, not at all.
 *
 * What the kernel refuses whatever the file system is left to it, for the right errno; so
 * is what is not ours: other files, PROT_EXEC.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "cache_maps.h"
#include "preload.h"

#define PAGE_MASK ((uint64_t)DF_PAGE_SIZE - 1)
#define USER_END (UINT64_C(1) << 47)	/* unless a program asks for more by a hint */

enum {
	PROT_ALL = PROT_READ | PROT_WRITE | PROT_EXEC,
	/* What MAP_SHARED_VALIDATE knows with every file system (include/linux/mman.h, LEGACY_MAP_MASK).
	 * 0x4000000: MAP_UNINITIALIZED; the sizes of huge pages are in the topmost bits. */
	LEGACY_FLAGS = MAP_SHARED | MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS | MAP_DENYWRITE | MAP_EXECUTABLE |
		       MAP_GROWSDOWN | MAP_LOCKED | MAP_NORESERVE | MAP_POPULATE | MAP_NONBLOCK | MAP_STACK |
		       MAP_HUGETLB | MAP_32BIT | 0x4000000,
	ELSEWHERE_TRIES = 3,
};

struct request {
	void *addr;
	size_t len;
	int prot, flags, fd;
	off_t offset;
};

static void *map_raw(void *addr, size_t len, int prot, int flags, int fd, off_t offset)
{
	return (void *)syscall(SYS_mmap, addr, len, prot, flags, fd, offset);
}

static int call(long number, uint64_t a, uint64_t b, uint64_t c)
{
	return syscall(number, a, b, c) < 0 ? errno : 0;
}

static bool is_shared(const struct request *q)
{
	int type = q->flags & MAP_TYPE;

	return type == MAP_SHARED || type == MAP_SHARED_VALIDATE;
}

/* mm/mmap.c, do_mmap(): each of these fails, for a file of any kind. */
static bool refused_by_kernel(const struct request *q)
{
	int type = q->flags & MAP_TYPE;
	int access = (int)syscall(SYS_fcntl, q->fd, F_GETFL);

	if (access < 0 || access & O_PATH)
		return true;
	access &= O_ACCMODE;
	if (access != O_RDONLY && access != O_RDWR)
		return true;
	if (is_shared(q) && q->prot & PROT_WRITE && access != O_RDWR)
		return true;
	if (type == MAP_SHARED_VALIDATE && q->flags & ~LEGACY_FLAGS)
		return true;
	if (q->len > INT64_MAX || q->offset > INT64_MAX - (off_t)q->len)
		return true;
	return (!is_shared(q) && type != MAP_PRIVATE) || q->flags & MAP_HUGETLB || !q->len ||
	       q->offset & (off_t)PAGE_MASK || q->offset < 0 ||
	       (q->flags & MAP_FIXED && (uint64_t)q->addr & PAGE_MASK);
}

static bool is_on_mount(int fd)
{
	struct statx st;
	struct stat old;

	if (fd < 0)
		return false;
	/* DONT_SYNC: neither changes, and its file system need not be asked */
	if (!syscall(SYS_statx, fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE, &st))
		return makedev(st.stx_dev_major, st.stx_dev_minor) == settings()->device && S_ISREG(st.stx_mode);
	/* some sandboxes have never heard of it */
	return !syscall(SYS_fstat, fd, &old) && old.st_dev == settings()->device && S_ISREG(old.st_mode);
}

struct placed {
	uint64_t at, len;		/* what is mapped now */
	uint64_t target;		/* where it is to be; other than `at`: it is moved there */
};

static bool overlap(uint64_t a, uint64_t b, uint64_t len)
{
	return a < b + len && b < a + len;
}

/* Where nothing of [target, target + len) is.  The kernel may choose a gap at either end of it. */
static void *map_elsewhere(uint64_t target, uint64_t len, int flags, int cache, off_t offset)
{
	void *at[ELSEWHERE_TRIES];
	int n, i, error;

	for (n = 0; n < ELSEWHERE_TRIES; n++) {
		at[n] = map_raw(NULL, len, PROT_NONE, flags, cache, offset);
		if (at[n] == MAP_FAILED || !overlap((uint64_t)at[n], target, len))
			break;
	}
	error = n < ELSEWHERE_TRIES ? errno : ENOMEM;
	for (i = 0; i < n; i++)
		syscall(SYS_munmap, at[i], len);
	errno = error;
	return n < ELSEWHERE_TRIES ? at[n] : MAP_FAILED;
}

static int place(struct placed *p, const struct request *q, int cache, bool private)
{
	bool replace = (q->flags & (MAP_FIXED | MAP_FIXED_NOREPLACE)) == MAP_FIXED;
	int flags = q->flags & ~(MAP_POPULATE | MAP_LOCKED);
	void *at;

	if (private && is_shared(q))
		flags = (flags & ~MAP_TYPE) | MAP_PRIVATE;
	p->len = (q->len + PAGE_MASK) & ~PAGE_MASK;
	p->target = (uint64_t)q->addr;
	if (replace)
		at = map_elsewhere(p->target, p->len, flags & ~MAP_FIXED, cache, q->offset);
	else
		at = map_raw(q->addr, q->len, PROT_NONE, flags, cache, q->offset);
	if (at == MAP_FAILED)
		return errno;
	p->at = (uint64_t)at;
	if (!replace)
		p->target = p->at;
	return 0;
}

/* It is registered: open it to the program, where the program wants it. */
static int finish(struct placed *p, const struct request *q)
{
	int error = 0;
	long at;

	if (q->prot & PROT_ALL)
		error = call(SYS_mprotect, p->at, p->len, (uint64_t)(q->prot & PROT_ALL));
	if (!error && q->flags & MAP_LOCKED) {
		/* the limits only: whether it can be read is nothing that mmap() reports */
		error = call(SYS_mlock2, p->at, p->len, MLOCK_ONFAULT);
		if (error == ENOMEM)
			error = EAGAIN;
	}
	if (error || p->at == p->target)
		return error;
	at = syscall(SYS_mremap, p->at, p->len, p->len, MREMAP_MAYMOVE | MREMAP_FIXED, p->target);
	if (at == -1)	/* EINVAL: beyond the end of the address space, as mmap() has it ENOMEM */
		return errno == EINVAL ? ENOMEM : errno;
	p->at = p->target;
	return 0;
}

/* -> 0, or what mmap() fails with; *dead when it is for the connection. */
static int map_cache(struct client *client, const struct request *q, struct placed *p, bool *dead)
{
	bool private;
	int cache, error, r;

	r = client_map(client, q->fd, (uint64_t)q->offset, q->len, q->prot, q->flags, &cache, &private);
	*dead = r < 0;
	if (r)
		return wire_errno(r);
	error = place(p, q, cache, private);
	syscall(SYS_close, cache);
	r = client_mapped(client, error ? 0 : p->at, error ? 0 : p->len);
	if (r < 0)
		client_close(client);
	if (error)
		return error;
	if (r > 0)
		error = r;
	else if (r < 0)
		error = ENODEV;
	else
		error = finish(p, q);
	if (error) {
		syscall(SYS_munmap, p->at, p->len);
		return error;
	}
	if (wire_unfollowed())
		call(SYS_madvise, p->at, p->len, MADV_DONTFORK);
	demoted_set(p->at, p->at + p->len, private && is_shared(q));
	wire_set_mapped();
	return 0;
}

/* What mmap() does at last, and does not report. */
static void populate(const struct placed *p, const struct request *q)
{
	bool copies = !is_shared(q) && q->prot & PROT_WRITE;

	if (q->flags & MAP_LOCKED)
		call(SYS_mlock, p->at, p->len, 0);
	else if ((q->flags & (MAP_POPULATE | MAP_NONBLOCK)) == MAP_POPULATE && q->prot & PROT_ALL)
		call(SYS_madvise, p->at, p->len, copies ? MADV_POPULATE_WRITE : MADV_POPULATE_READ);
}

static void *map(const struct request *q)
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
	struct request q = {
		.addr = addr, .len = len, .prot = prot, .flags = flags, .fd = fd, .offset = offset,
	};
	int error = errno;

	if (flags & MAP_ANONYMOUS || prot & PROT_EXEC || !settings()->on || !is_on_mount(fd) ||
	    refused_by_kernel(&q)) {
		errno = error;
		return map_raw(addr, len, prot, flags, fd, offset);
	}
	return map(&q);
}

EXPORT void *mmap64(void *addr, size_t len, int prot, int flags, int fd, off64_t offset)
{
	return mmap(addr, len, prot, flags, fd, offset);
}

static bool any(const struct cache_mapping *m, void *unused)
{
	(void)m;
	(void)unused;
	return true;
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
	return maps_each_cache(start, start + len, any, NULL) ? EIO : 0;
}

EXPORT int msync(void *addr, size_t len, int flags)
{
	int before = errno;
	int error = call(SYS_msync, (uint64_t)addr, len, (uint64_t)flags);

	/* ENOMEM: there are holes in it, and the rest was synced all the same */
	if ((!error || error == ENOMEM) && flags & MS_SYNC && len && settings()->on && wire_mapped()) {
		int cache_error = sync_caches((uint64_t)addr, (len + PAGE_MASK) & ~PAGE_MASK);

		if (!error)
			error = cache_error;
	}
	errno = error ? error : before;
	return error ? -1 : 0;
}
