/* SPDX-License-Identifier: Apache-2.0
 *
 * mapfsx_map.c - making, changing and moving mappings, and what each page shows then.
 */
#include <fcntl.h>
#include <sys/mman.h>

#include "mapfsx.h"

static int nareas;

static void shows(char *at, unsigned n, struct page first)
{
	nareas++;
	for (unsigned i = 0; i < n; i++)
		for (unsigned s = 0; s < SLOTS; s++) {
			unsigned long p = (unsigned long)(at + i * PAGE_BYTES - SLOT(s)) / PAGE_BYTES;

			if (p < SLOT_PAGES)
				pages[s][p] = (struct page){
					first.object, first.index + (int)i,
					first.shared, first.readonly,
					nareas,
				};
		}
}

static struct page *page_at(char *at)
{
	for (unsigned s = 0; s < SLOTS; s++) {
		unsigned long p = (unsigned long)(at - SLOT(s)) / PAGE_BYTES;

		if (p < SLOT_PAGES)
			return &pages[s][p];
	}
	return NULL;
}

void map(void)
{
	static const int prots[] = { PROT_READ, PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE,
				     PROT_WRITE, PROT_NONE };
	static const int types[] = { MAP_SHARED, MAP_SHARED, MAP_PRIVATE, MAP_SHARED_VALIDATE };
	static const int extras[] = { MAP_FIXED,
				      MAP_FIXED,
				      MAP_FIXED_NOREPLACE,
				      MAP_FIXED | MAP_POPULATE,
				      MAP_FIXED | MAP_LOCKED,
				      MAP_FIXED | MAP_NORESERVE };
	unsigned f = pick(FDS), n = 1 + pick(6), slot = pick(SLOTS), page = pick(SLOT_PAGES - 6);
	int prot = prots[pick(5)], type = types[pick(4)], extra = extras[pick(6)];
	int first = (int)pick(SHOWN - 4);
	size_t len = n * PAGE_BYTES - (pick(4) ? 0 : pick(PAGE_BYTES));
	char *want = SLOT(slot) + page * PAGE_BYTES;
	char *got;

	if (type == MAP_PRIVATE) /* when it copies what nobody has stored to is anybody's choice */
		extra &= ~MAP_LOCKED;
	got = mmap(want, len, prot, type | extra, fds[f].fd, (off_t)first * PAGE_BYTES);
	LOG("fd %u prot %d flags %x pages %d+%u -> %p ", f, prot, type | extra, first, n, got);
	result("mmap", got == MAP_FAILED ? -1 : 0);
	if (got == MAP_FAILED)
		return;
	if (got != want) /* the kernel is older than MAP_FIXED_NOREPLACE */
		munmap(got, len);
	else
		shows(got, n,
		      (struct page){
			      .object = fds[f].object,
			      .index = first,
			      .shared = type != MAP_PRIVATE,
			      .readonly = (fcntl(fds[f].fd, F_GETFL) & O_ACCMODE) == O_RDONLY,
		      });
}

/* [at, at + n pages) may have become mappings of their own. */
static void part(char *at, unsigned n)
{
	int before = -1;

	for (unsigned i = 0; i < n; i++) {
		struct page *p = page_at(at + i * PAGE_BYTES);

		if (!p)
			break;
		if (p->area != before)
			nareas++;
		before = p->area;
		p->area = nareas;
	}
}

void remap(void)
{
	unsigned slot, page, n = 1 + pick(4), more = 1 + pick(6), way = pick(6);
	char *from = somewhere(&slot, &page), *to, *got;
	struct page first = pages[slot][page];
	int flags = MREMAP_MAYMOVE | MREMAP_FIXED;

	for (unsigned i = 1; i < n; i++)
		if (page + i >= SLOT_PAGES || pages[slot][page + i].area != first.area)
			n = i;
	if (page + more > SLOT_PAGES)
		more = SLOT_PAGES - page;
	to = SLOT(pick(SLOTS)) + pick(SLOT_PAGES - 6) * PAGE_BYTES;
	if (way < 2) { /* where it is */
		to = from;
		flags = 0;
	} else if (way == 4) { /* twice */
		if (first.readonly)
			return;
		n = 0;
	} else if (way == 5) {
		flags |= MREMAP_DONTUNMAP;
		more = n;
	}
	got = mremap(from, n * PAGE_BYTES, more * PAGE_BYTES, flags, to);
	LOG("way %u %p %u -> %u pages %p -> %p ", way, from, n, more, to, got);
	result("mremap", got == MAP_FAILED ? -1 : 0);
	if (got == MAP_FAILED)
		return;
	if (way != 5)
		shows(from, n, (struct page){ .object = -1 });
	else
		part(from, n);
	shows(got, more, first);
}

void change_map(void)
{
	static const int prots[] = { PROT_READ, PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE,
				     PROT_NONE };
	static const int syncs[] = { MS_SYNC, MS_ASYNC, MS_SYNC | MS_INVALIDATE };
	unsigned slot, page, n = 1 + pick(5);
	char *at = somewhere(&slot, &page);

	LOG("%p %u pages ", at, n);
	switch (pick(6)) {
	case 0:
		result("munmap", munmap(at, n * PAGE_BYTES));
		shows(at, n, (struct page){ .object = -1 });
		break;
	case 1:
	case 2:
		result("mprotect", mprotect(at, n * PAGE_BYTES, prots[pick(4)]));
		part(at, n);
		break;
	case 3:
		result("madvise", madvise(at, n * PAGE_BYTES, MADV_DONTNEED));
		break;
	default:
		result("msync", msync(at, n * PAGE_BYTES, syncs[pick(3)]));
	}
}
