/* SPDX-License-Identifier: Apache-2.0
 *
 * cache_maps.c - finds the mappings of page caches: see cache_maps.h.
 *
 * A page cache is a memfd of the host, recognized by its name (native/cache/memfd.c).  A program
 * that gives its own memfd such a name harms only itself.
 */
#include "cache_maps.h"

#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define CACHE_NAME "/memfd:daxfault:"

struct range {
	uint64_t start, end;
	bool (*visit)(const struct maps_area *, void *);
	void *arg;
};

static bool visit_cache(const struct maps_area *area, void *arg)
{
	const struct range *r = arg;

	return area->start < r->end && r->start < area->end &&
	       !strncmp(area->name, CACHE_NAME, sizeof(CACHE_NAME) - 1) && r->visit(area, r->arg);
}

static int each(int maps, struct range *r)
{
	int result;

	if (maps < 0)
		return maps;
	result = maps_each(maps, visit_cache, r);
	syscall(SYS_close, maps);
	return result;
}

int cache_maps_each(int task, uint64_t start, uint64_t end,
		    bool (*visit)(const struct maps_area *, void *), void *arg)
{
	return each(maps_open(task), &(struct range){ start, end, visit, arg });
}

static bool any(const struct maps_area *area, void *unused)
{
	(void)area;
	(void)unused;
	return true;
}

int cache_maps_any(int task, uint64_t start, uint64_t end)
{
	return cache_maps_each(task, start, end, any, NULL);
}

static bool first(const struct maps_area *area, void *out)
{
	*(struct maps_area *)out = *area;
	return true;
}

int cache_maps_first(int task, uint64_t start, uint64_t end, struct maps_area *out)
{
	int result = cache_maps_each(task, start, end, first, out);

	/* the kernel walks all page tables for the flags: read them only if there is such a mapping */
	if (result == 1)
		each(maps_open_flags(task), &(struct range){ start, end, first, out });
	return result;
}

struct private
{
	unsigned int flags;
	uint64_t at;
};

static bool first_private(const struct maps_area *area, void *arg)
{
	struct private *p = arg;

	if (area->shared || (area->flags & p->flags) != p->flags)
		return false;
	if (area->start > p->at)
		p->at = area->start;
	return true;
}

int cache_maps_private(int task, uint64_t start, uint64_t end, unsigned int flags, uint64_t *at)
{
	struct private first = { flags, start };
	int maps = flags ? maps_open_flags(task) : maps_open(task);
	int result = each(maps, &(struct range){ start, end, first_private, &first });

	*at = first.at;
	return result;
}
