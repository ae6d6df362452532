/* SPDX-License-Identifier: Apache-2.0
 *
 * poison.c - the table of poisoned pages: they follow their region when it moves, is forked or is
 * removed, and are read again when their file changes.  All of it under file->lock.  Must not
 * install.
 *
 * A poisoned page is inside a region of its file, so it needs no reference to either.  It is listed
 * once, even if its guest drops it and it is poisoned again.
 */
#include <errno.h>
#include <stdlib.h>

#include "space.h"

static size_t slot(const struct df_file *file, const struct df_space *space, uint64_t page)
{
	uint64_t hash = (page / PAGE + space->id * 0x9e3779b97f4a7c15u) * 0x9e3779b97f4a7c15u;

	return (size_t)(hash >> 32) & (file->mappings->poison_slots - 1);
}

static struct df_poison **find(struct df_file *file, const struct df_space *space, uint64_t page)
{
	static struct df_poison *none;
	struct df_poison **p = &none;

	if (file->mappings->poison_slots)
		p = &file->mappings->poisons[slot(file, space, page)];
	while (*p && ((*p)->space != space || (*p)->page != page))
		p = &(*p)->next;
	return p;
}

static bool grow(struct df_file *file)
{
	size_t old = file->mappings->poison_slots, slots = old ? old * 4 : 16;
	struct df_poison **from = file->mappings->poisons, *poison;

	file->mappings->poisons = calloc(slots, sizeof(struct df_poison *));
	if (!file->mappings->poisons) {
		file->mappings->poisons = from;
		return old; /* keep the table, with longer chains */
	}
	file->mappings->poison_slots = slots;
	for (size_t i = 0; i < old; i++)
		while ((poison = from[i])) {
			struct df_poison **to =
				&file->mappings->poisons[slot(file, poison->space, poison->page)];

			from[i] = poison->next;
			poison->next = *to;
			*to = poison;
		}
	free(from);
	return true;
}

static void drop(struct df_file *file, struct df_poison **p)
{
	struct df_poison *poison = *p;

	*p = poison->next;
	free(poison);
	file->mappings->npoisons--;
}

static void list_retry(struct df_poison *poison, struct df_poison **retry)
{
	poison->trying = true;
	poison->next_retry = *retry;
	*retry = poison;
}

void poison_add(struct df_region *region, uint64_t page)
{
	struct df_file *file = region->file;
	struct df_poison *poison = *find(file, region->space, page);

	if (poison || (file->mappings->npoisons >= file->mappings->poison_slots && !grow(file)))
		return;
	poison = malloc(sizeof(*poison));
	if (!poison)
		return;
	*poison = (struct df_poison){
		.space = region->space,
		.file = file,
		.page = page,
		.offset = region->offset + (page - region->start),
	};
	poison->next = file->mappings->poisons[slot(file, region->space, page)];
	file->mappings->poisons[slot(file, region->space, page)] = poison;
	file->mappings->npoisons++;
}

void poison_tried(struct df_file *file, const struct df_space *space, uint64_t page, bool healed)
{
	struct df_poison **p = find(file, space, page);

	if (*p && healed)
		drop(file, p);
	else if (*p)
		(*p)->trying = false;
}

void poison_forget(struct df_file *file, const struct df_space *space, uint64_t start, uint64_t end)
{
	for (size_t i = 0; file->mappings->npoisons && i < file->mappings->poison_slots; i++)
		for (struct df_poison **p = &file->mappings->poisons[i]; *p;) {
			if ((*p)->space == space && (*p)->page >= start && (*p)->page < end)
				drop(file, p);
			else
				p = &(*p)->next;
		}
}

void poison_copy(const struct df_region *from, struct df_region *to, struct df_poison **retry)
{
	struct df_file *file = from->file;
	struct df_poison **found;
	size_t n = 0;

	/* Adding may rehash the table: first collect, then add. */
	found = file->mappings->npoisons ? calloc(file->mappings->npoisons, sizeof(*found)) : NULL;
	for (size_t i = 0; found && i < file->mappings->poison_slots; i++)
		for (struct df_poison *p = file->mappings->poisons[i]; p; p = p->next)
			if (p->space == from->space && p->page - from->start < from->len &&
			    p->offset - to->offset < to->len)
				found[n++] = p;
	for (size_t i = 0; i < n; i++) {
		uint64_t page = to->start + (found[i]->offset - to->offset);
		struct df_poison *poison;

		poison_add(to, page);
		poison = *find(file, to->space, page);
		/* a pending attempt is for the old address */
		if (poison && !poison->trying)
			list_retry(poison, retry);
	}
	free(found);
}

bool poison_retry(struct df_file *file, struct df_poison **retry)
{
	struct file_mappings *mappings = file->mappings;
	bool any = false;

	for (size_t i = 0; mappings->npoisons && i < mappings->poison_slots; i++)
		for (struct df_poison *p = mappings->poisons[i]; p; p = p->next)
			if (p->offset < file_end(file)) {
				any = true;
				if (!p->trying)
					list_retry(p, retry);
			}
	return any;
}

enum poison_result poison_page(struct df_space *space, struct df_file *file, uint64_t address)
{
	uint64_t page = PAGE_DOWN(address), done;
	struct df_region *region = file ? file->mappings->first : NULL;
	int error;

	while (region && (region->space != space || page - region->start >= region->len))
		region = region->next;
	/* The address may now map something else, which is not poisoned. */
	if (file && !region) {
		uffd_wake(space->uffd, page, PAGE);
		return POISON_WOKEN;
	}
	error = uffd_poison(space->uffd, page, PAGE, &done);
	/* A filled page may be installed here, because the fault of another thread has read it
	 * again; removing its write protection would hide later stores.  A page that is not
	 * filled is mapped nowhere, so EEXIST means a marker or poison. */
	if (error == -EEXIST && space->tracks &&
	    !(region && pages_filled(file, region->offset + (page - region->start))) &&
	    !uffd_unmark(space->uffd, page, PAGE))
		error = uffd_poison(space->uffd, page, PAGE, &done);
	switch (error) {
	case 0:
		if (region)
			poison_add(region, page);
		return POISON_DONE;
	case -ESRCH:
		return POISON_GONE;
	case -EINVAL:
		return POISON_UNKNOWN;
	default:
		/* EEXIST: present or poisoned already.  EAGAIN, ENOENT: the address
		 * space is changing.  The access is repeated, and decided again. */
		uffd_wake(space->uffd, page, PAGE);
		return POISON_WOKEN;
	}
}
