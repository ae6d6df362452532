/* SPDX-License-Identifier: Apache-2.0
 *
 * aside.c - moves a failed page aside, maps a stand-in (zeros) in its place, and puts it back.
 * Must not know guards.
 *
 * Failed pages move to a reserve, an address range as long as their mapping.  Adjacent pages stay
 * adjacent there, so that the kernel merges them into one mapping on either side.  A stand-in is a
 * private page of /dev/zero: anonymous memory that costs nothing until a store.  In /proc/self/maps
 * its inode identifies it, and its offset, which is its address (mm/mremap.c, copy_vma(); the
 * template is never touched).  So a stand-in that was unmapped or replaced meanwhile is noticed.
 *
 * Both moves are one mremap(MREMAP_DONTUNMAP), Linux 5.13 for files, so that there is never a hole
 * at the page's address for another thread's mmap() to use.  It also copies a template without a
 * descriptor, which the program might close.
 *
 * A mapping that is registered with a userfaultfd without EVENT_REMAP loses its registration when
 * it moves (fs/userfaultfd.c, mremap_userfaultfd_prep()); back in place, its missing pages would
 * read as zeros.  Such a page is not put back: a page of an empty file, where every access fails,
 * replaces it.
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

/* A mapping as it was when its first page failed, and the reserve for its pages. */
struct area {
	uint64_t start, len, reserve;
	uint64_t device, inode;
	uint64_t base;	 /* offset in the file of address 0, modulo 2^64 */
	bool registered; /* with a userfaultfd */
};

static struct area areas[AREAS]; /* the newest last */
static int nareas;

static struct {
	int key;	      /* pkeys(7), or -1 */
	uint64_t zeros[2][2]; /* [private][writable]: templates */
	uint64_t gone;	      /* template of an empty file: every access fails */
	dev_t device;	      /* of /dev/zero */
	uint64_t inode;
} ours = { .key = -1 };

/* ---------------------------------------------------------------- templates */

static void *map_template(int fd, int prot)
{
	void *at = mmap(NULL, PAGE, prot, MAP_PRIVATE, fd, 0);

	/* was_stored() would take a huge zero page for stored to */
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
	for (int private = 0; private <= (ours.key >= 0); private ++)
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

/* Replace the page at `to` by a copy of a template, atomically. */
static int copy_template(uint64_t template, uint64_t to)
{
	void *at = mremap((void *)template, PAGE, PAGE,
			  MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, (void *)to);

	return at == MAP_FAILED ? -errno : 0;
}

static bool is_stand_in(const struct maps_area *area)
{
	return area->inode == ours.inode && area->device == ours.device && !area->shared &&
	       area->offset == area->start;
}

/* The mapping at `at`, or the first one after it.  If the kernel cannot say, pages cannot be put
 * back; zeros must not stay, so the process ends, as it would without a guard. */
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

/* -> the area that this page was moved aside from last */
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

/* The flags of the mapping that begins at `start`; 0 without CONFIG_PROC_PAGE_MONITOR. */
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
		mremap((void *)aside(area, page), PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
		       (void *)page);
		return error;
	}
	set_origin(of, area, page);
	return 0;
}

/* ---------------------------------------------------------------- putting back */

/* Was there a store to the stand-ins in [start, end)?  A store replaces the zero page by a page of
 * the process (Documentation/admin-guide/mm/pagemap.rst: 56, exclusively mapped, 62, swapped).
 * After a fork(), the first store to a page that parent and child share is missed. */
static bool was_stored(int pagemap, uint64_t start, uint64_t end)
{
	uint64_t entries[PAGEMAP_BATCH];

	while (start < end) {
		size_t n = (end - start) / PAGE < PAGEMAP_BATCH ? (end - start) / PAGE
								: PAGEMAP_BATCH;
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

/* Move [from, from + len) of the reserve back to `to`. */
static void put_back(uint64_t from, uint64_t to, uint64_t len, bool lost)
{
	int error = 0;

	if (lost)
		for (uint64_t at = to; at < to + len && !error; at += PAGE)
			error = copy_template(ours.gone, at);
	else if (mremap((void *)from, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)to) ==
		 MAP_FAILED)
		error = -errno;
	/* vm.max_map_count: an access must not read zeros; it raises SIGSEGV */
	if (error)
		mprotect((void *)to, len, PROT_NONE);
}

/* Put back the pages of one mapping of the reserve whose stand-ins are still in place. */
static void put_back_run(const struct area *area, const struct maps_area *run, int maps,
			 int pagemap, void (*stored)(uint64_t start, uint64_t end))
{
	uint64_t to = run->start - area->reserve + area->start, end = to + (run->end - run->start);
	bool moved = area->registered && !(flags_at(run->start) & MAPS_UFFD);
	struct maps_area there;

	for (uint64_t at = to; at < end && look(maps, at, &there) && there.start < end;
	     at = there.end) {
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
	/* newest first: if two areas have the same page, the newer one's stand-in is in place */
	while (nareas) {
		struct area *area = &areas[nareas - 1];
		uint64_t end = area->reserve + area->len, at = area->reserve;
		struct maps_area run;

		while (at < end && look(maps, at, &run) && run.start < end) {
			at = run.end;
			if (run.prot == PROT_NONE)
				continue; /* nothing was moved here */
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
