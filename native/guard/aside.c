/* SPDX-License-Identifier: Apache-2.0
 *
 * aside.c - moving a page that fails aside, having zeros in its place, and putting it back.
 * Must not know guards.
 *
 * Aside is a reserve of addresses as long as the mapping, so that pages that lie in a row stay in
 * a row there, and the kernel makes one mapping of them again on either side.  What stands in is a
 * page of /dev/zero, mapped private: anonymous memory that costs nothing until it is stored to,
 * and that /proc/self/maps tells from any other by its inode, and by its offset, which is
 * its address (mm/mremap.c, copy_vma(), as the template is never touched).  So a mapping that was
 * unmapped or replaced in the meantime is noticed.
 *
 * Both moves are one mremap(MREMAP_DONTUNMAP), Linux 5.13 for files: at no time is there a hole
 * at the page's address, into which another thread's mmap() could fall.  It is also how a template
 * is copied without a descriptor, which a program that closes all of them would take from us.
 *
 * A mapping that is registered with a userfaultfd without EVENT_REMAP loses its registration when
 * it moves (fs/userfaultfd.c, mremap_userfaultfd_prep()), and would be zeros where its host was to
 * be asked.  Such a page is not put back: a page without any file behind it, which fails for
 * ever, takes its place.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "abi/compat.h"
#include "internal.h"
#include "base/maps.h"

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

enum {
	AREAS = 64,
	PAGEMAP_BATCH = 64,
};

/* A mapping, as it was when its first page failed, and the reserve for its pages. */
struct area {
	uint64_t start, len, reserve;
	uint64_t device, inode;
	uint64_t base;			/* offset in the file of address 0, modulo 2^64 */
	bool registered;		/* with a userfaultfd */
};

static struct area areas[AREAS];	/* the newest last */
static int nareas;

static struct {
	int key;			/* pkeys(7), or -1 */
	uint64_t zeros[2][2];		/* [private][writable]: templates */
	uint64_t gone;			/* fails for ever */
	dev_t device;			/* of /dev/zero */
	uint64_t inode;
} ours = { .key = -1 };

/* ---------------------------------------------------------------- templates */

static void *map_template(int fd, int prot)
{
	void *at = mmap(NULL, PAGE, prot, MAP_PRIVATE, fd, 0);

	/* one huge page of zeros would count as stored to */
	if (at != MAP_FAILED)
		madvise(at, PAGE, MADV_NOHUGEPAGE);
	return at;
}

static int make_zeros(int fd, bool private, bool writable)
{
	int prot = PROT_READ | (writable ? PROT_WRITE : 0);
	void *at = map_template(fd, prot);
	int error = 0;

	if (at == MAP_FAILED)
		return -errno;
	if (private && pkey_mprotect(at, PAGE, prot, ours.key)) {
		error = -errno;
		munmap(at, PAGE);
		return error;
	}
	ours.zeros[private][writable] = (uint64_t)at;
	return 0;
}

static int make_gone(void)
{
	int fd = memfd_create("daxfault-gone", MFD_CLOEXEC);
	void *at;

	if (fd < 0)
		return -errno;
	at = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	close(fd);
	if (at == MAP_FAILED)
		return -errno;
	ours.gone = (uint64_t)at;
	return 0;
}

int stand_in_prepare(void)
{
	int fd, error = 0;
	struct stat st;

	if (ours.gone)
		return 0;
	fd = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (fstat(fd, &st))
		error = -errno;
	ours.device = st.st_dev;
	ours.inode = st.st_ino;
	if (ours.key < 0)
		ours.key = pkey_alloc(0, PKEY_DISABLE_ACCESS);
	for (int private = 0; private <= (ours.key >= 0); private++)
		for (int writable = 0; writable <= 1; writable++)
			if (!error && !ours.zeros[private][writable])
				error = make_zeros(fd, private, writable);
	close(fd);
	return error ? error : make_gone();
}

int stand_in_key(void)
{
	return ours.key;
}

/* A copy of a template at `to`, in place of what is there, in one step. */
static int copy_template(uint64_t template, uint64_t to)
{
	void *at = mremap((void *)template, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP,
			  (void *)to);

	return at == MAP_FAILED ? -errno : 0;
}

static bool is_stand_in(const struct maps_area *area)
{
	return area->inode == ours.inode && area->device == ours.device && !area->shared &&
	       area->offset == area->start;
}

/* The mapping at `at`, or the first one after it.  Without an answer nothing can be put back, and zeros
 * must not stay: the process ends, as it would have without us. */
static bool look(int maps, uint64_t at, struct maps_area *out)
{
	int error = maps < 0 ? maps : maps_find(maps, at, out);

	if (error && error != -ENOENT)
		abort();
	return !error;
}

/* ---------------------------------------------------------------- moving aside */

static uint64_t aside(const struct area *area, uint64_t page)
{
	return area->reserve + (page - area->start);
}

static bool holds(const struct area *area, uint64_t page)
{
	return page - area->start < area->len;
}

static void set_origin(struct origin *of, const struct area *area, uint64_t page)
{
	*of = (struct origin){ area->device, area->inode, area->base + page };
}

/* -> the area whose page at this address was moved aside last */
static struct area *area_of(uint64_t page)
{
	for (int i = nareas - 1; i >= 0; i--)
		if (holds(&areas[i], page))
			return &areas[i];
	return NULL;
}

struct flags_at {
	uint64_t start;
	unsigned int flags;
};

static bool is_at(const struct maps_area *area, void *arg)
{
	struct flags_at *at = arg;

	if (area->start != at->start)
		return false;
	at->flags = area->flags;
	return true;
}

/* Of the mapping that begins there; none where the kernel does not say (CONFIG_PROC_PAGE_MONITOR). */
static unsigned int flags_at(uint64_t start)
{
	struct flags_at at = { .start = start };
	int smaps = maps_open_flags(MAPS_SELF);

	if (smaps >= 0) {
		maps_each(smaps, is_at, &at);
		close(smaps);
	}
	return at.flags;
}

/* -> NULL and *error */
static struct area *area_for(const struct maps_area *found, int *error)
{
	unsigned int flags;
	struct area *area;
	void *reserve;

	for (int i = nareas - 1; i >= 0; i--) {
		area = &areas[i];
		if (area->inode == found->inode && area->device == found->device &&
		    area->base == found->offset - found->start && area->start <= found->start &&
		    found->end <= area->start + area->len)
			return area;
	}
	*error = -ENOSPC;
	if (nareas == AREAS)
		return NULL;
	flags = flags_at(found->start);
	*error = -EOPNOTSUPP;
	if (flags & MAPS_HUGETLB)
		return NULL;
	reserve = mmap(NULL, found->end - found->start, PROT_NONE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	*error = -errno;
	if (reserve == MAP_FAILED)
		return NULL;
	area = &areas[nareas++];
	*area = (struct area){
		.start = found->start,
		.len = found->end - found->start,
		.reserve = (uint64_t)reserve,
		.device = found->device,
		.inode = found->inode,
		.base = found->offset - found->start,
		.registered = flags & MAPS_UFFD,
	};
	return area;
}

/* The mapping at this address was replaced by another one since its page was moved aside. */
static void forget_aside(const struct area *except, uint64_t page)
{
	for (int i = 0; i < nareas; i++)
		if (&areas[i] != except && holds(&areas[i], page))
			mmap((void *)aside(&areas[i], page), PAGE, PROT_NONE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
}

int stand_in(uint64_t page, bool private, struct origin *of)
{
	int maps = maps_open(MAPS_SELF), error;
	struct maps_area found;
	struct area *area;
	uint64_t template;

	if (maps < 0)
		return maps;
	error = maps_find(maps, page, &found);
	close(maps);
	if (error)
		return error;
	if (found.start > page)
		return -ENOENT;
	if (is_stand_in(&found)) {
		area = area_of(page);
		if (!area)
			return -ENOENT;
		set_origin(of, area, page);
		return 0;
	}
	area = area_for(&found, &error);
	if (!area)
		return error;
	forget_aside(area, page);
	if (mremap((void *)page, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP,
		   (void *)aside(area, page)) == MAP_FAILED)
		return -errno;
	template = ours.zeros[private && ours.key >= 0][!!(found.prot & PROT_WRITE)];
	error = copy_template(template, page);
	if (error) {
		mremap((void *)aside(area, page), PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)page);
		return error;
	}
	set_origin(of, area, page);
	return 0;
}

/* ---------------------------------------------------------------- putting back */

/* Has anything been stored in [start, end), which stands in?  A store has made a page of its own
 * of the page of zeros (Documentation/admin-guide/mm/pagemap.rst: 56, exclusively mapped, 62,
 * swapped).  After a fork() the first store to a page that the child has too goes unseen. */
static bool was_stored(int pagemap, uint64_t start, uint64_t end)
{
	uint64_t entries[PAGEMAP_BATCH];

	while (start < end) {
		size_t n = (end - start) / PAGE < PAGEMAP_BATCH ? (end - start) / PAGE : PAGEMAP_BATCH;
		ssize_t got = pread(pagemap, entries, n * 8, (off_t)(start / PAGE * 8));

		if (got <= 0)
			return false;
		n = (size_t)got / 8;
		for (size_t i = 0; i < n; i++)
			if (entries[i] & (1ULL << 56 | 1ULL << 62))
				return true;
		start += n * PAGE;
	}
	return false;
}

/* [from, from + len) of the reserve to where it came from. */
static void put_back(uint64_t from, uint64_t to, uint64_t len, bool lost)
{
	int error = 0;

	if (lost)
		for (uint64_t at = to; at < to + len && !error; at += PAGE)
			error = copy_template(ours.gone, at);
	else if (mremap((void *)from, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)to) == MAP_FAILED)
		error = -errno;
	/* vm.max_map_count: what is touched there now must not be zeros.  SIGSEGV, then. */
	if (error)
		mprotect((void *)to, len, PROT_NONE);
}

/* What of the reserve, in one mapping of it, still has its place. */
static void put_back_run(const struct area *area, const struct maps_area *run, int maps, int pagemap,
			 void (*stored)(uint64_t start, uint64_t end))
{
	uint64_t to = run->start - area->reserve + area->start, end = to + (run->end - run->start);
	bool moved = area->registered && !(flags_at(run->start) & MAPS_UFFD);
	struct maps_area there;

	for (uint64_t at = to; at < end && look(maps, at, &there) && there.start < end; at = there.end) {
		uint64_t from = there.start > to ? there.start : to;
		uint64_t until = there.end < end ? there.end : end;

		if (!is_stand_in(&there))
			continue;
		if (was_stored(pagemap, from, until))
			stored(from, until);
		put_back(run->start + (from - to), from, until - from, moved);
	}
}

void stand_down(void (*stored)(uint64_t start, uint64_t end))
{
	int maps, pagemap;

	if (!nareas)
		return;
	maps = maps_open(MAPS_SELF);
	pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	/* the newest first: where two areas know a page, its is the one that is there */
	while (nareas) {
		struct area *area = &areas[nareas - 1];
		uint64_t end = area->reserve + area->len, at = area->reserve;
		struct maps_area run;

		while (at < end && look(maps, at, &run) && run.start < end) {
			at = run.end;
			if (run.prot == PROT_NONE)
				continue;	/* nothing was moved here */
			if (run.start < area->reserve)
				run.start = area->reserve;
			if (run.end > end)
				run.end = end;
			put_back_run(area, &run, maps, pagemap, stored);
		}
		munmap((void *)area->reserve, area->len);
		nareas--;
	}
	close(maps);
	if (pagemap >= 0)
		close(pagemap);
}
