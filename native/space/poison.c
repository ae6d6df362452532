/* SPDX-License-Identifier: Apache-2.0
 *
 * poison.c - which pages of which guests are poisoned: they follow their region
 * when it moves, is forked or goes, and are tried again when their file changes.
 * All of it under file->lock.  Must not poison, nor install.
 *
 * A poisoned page lies in a region of its file, so it needs no count of either, and
 * stands here once, however often its guest drops it and has it poisoned anew.
 */
#include <stdlib.h>

#include "engine/internal.h"

static size_t slot(const struct df_file *file, const struct df_guest *guest, uint64_t page)
{
	uint64_t hash = (page / PAGE + guest->id * 0x9e3779b97f4a7c15u) * 0x9e3779b97f4a7c15u;

	return (size_t)(hash >> 32) & (file->poison_slots - 1);
}

static struct df_poison **find(struct df_file *file, const struct df_guest *guest, uint64_t page)
{
	static struct df_poison *none;
	struct df_poison **p = &none;

	if (file->poison_slots)
		p = &file->poisons[slot(file, guest, page)];
	while (*p && ((*p)->guest != guest || (*p)->page != page))
		p = &(*p)->next;
	return p;
}

static bool grow(struct df_file *file)
{
	size_t old = file->poison_slots, slots = old ? old * 4 : 16;
	struct df_poison **from = file->poisons, *poison;

	file->poisons = calloc(slots, sizeof(struct df_poison *));
	if (!file->poisons) {
		file->poisons = from;
		return old;		/* longer chains, then */
	}
	file->poison_slots = slots;
	for (size_t i = 0; i < old; i++)
		while ((poison = from[i])) {
			struct df_poison **to = &file->poisons[slot(file, poison->guest, poison->page)];

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
	file->npoisons--;
}

/* Have the page read again by its guest's own reader, for whom no fork and no move
 * can come in between. */
static void try_again(struct df_file *file, struct df_poison *poison)
{
	struct df_fault fault = {
		.guest = poison->guest,
		.address = poison->page,
		.arrived = now_ns(),
		.mends = file,
	};
	struct df_fault *copy = fault_copy(&fault);

	poison->trying = copy;
	if (copy)
		guest_retry(poison->guest, copy);
}

void poison_add(struct df_region *region, uint64_t page)
{
	struct df_file *file = region->file;
	struct df_poison *poison = *find(file, region->guest, page);

	if (poison || (file->npoisons >= file->poison_slots && !grow(file)))
		return;
	poison = malloc(sizeof(*poison));
	if (!poison)
		return;
	*poison = (struct df_poison){
		.guest = region->guest,
		.page = page,
		.offset = region->offset + (page - region->start),
	};
	poison->next = file->poisons[slot(file, region->guest, page)];
	file->poisons[slot(file, region->guest, page)] = poison;
	file->npoisons++;
}

void poison_tried(struct df_file *file, const struct df_guest *guest, uint64_t page, bool healed)
{
	struct df_poison **p = find(file, guest, page);

	if (*p && healed)
		drop(file, p);
	else if (*p)
		(*p)->trying = false;
}

void poison_forget(struct df_file *file, const struct df_guest *guest, uint64_t start, uint64_t end)
{
	for (size_t i = 0; file->npoisons && i < file->poison_slots; i++)
		for (struct df_poison **p = &file->poisons[i]; *p;) {
			if ((*p)->guest == guest && (*p)->page >= start && (*p)->page < end)
				drop(file, p);
			else
				p = &(*p)->next;
		}
}

void poison_copy(const struct df_region *from, struct df_region *to)
{
	struct df_file *file = from->file;
	struct df_poison **found;
	size_t n = 0;

	/* Adding may move what is walked: first collect, then add. */
	found = file->npoisons ? calloc(file->npoisons, sizeof(*found)) : NULL;
	for (size_t i = 0; found && i < file->poison_slots; i++)
		for (struct df_poison *p = file->poisons[i]; p; p = p->next)
			if (p->guest == from->guest && p->page - from->start < from->len &&
			    p->offset - to->offset < to->len)
				found[n++] = p;
	for (size_t i = 0; i < n; i++) {
		uint64_t page = to->start + (found[i]->offset - to->offset);
		struct df_poison *poison;

		poison_add(to, page);
		poison = *find(file, to->guest, page);
		/* an attempt under way is for the old place */
		if (poison && !poison->trying)
			try_again(file, poison);
	}
	free(found);
}

/* The file changed: try those again that lie inside it. */
void poison_mend(struct df_file *file)
{
	for (size_t i = 0; file->npoisons && i < file->poison_slots; i++)
		for (struct df_poison *p = file->poisons[i]; p; p = p->next)
			if (p->offset < file_end(file)) {
				file->mended = true;
				if (!p->trying)
					try_again(file, p);
			}
}
