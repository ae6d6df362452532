/* SPDX-License-Identifier: Apache-2.0
 *
 * known.c - the host's end of the shared memory that known.h describes: which parts of it are in use.
 * Must not know what is in them.
 */
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "keep.h"
#include "known.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* a leaf, but for keep()'s */
static int memory = -1;
static size_t slots;		/* of the memory's size */
static size_t *unused, nunused; /* room for all slots */

/* -> a slot of zeros */
static bool take(size_t *slot)
{
	size_t *grown;

	if (memory < 0) {
		memory = memfd_create("daxfault-known", MFD_CLOEXEC);
		if (memory < 0)
			return false;
		keep(DF_KEEP_KNOWN, 0, memory);
	}
	if (nunused) {
		*slot = unused[--nunused];
		return true;
	}
	grown = realloc(unused, (slots + 1) * sizeof(*unused));
	if (!grown)
		return false;
	unused = grown;
	if (ftruncate(memory, (off_t)((slots + 1) * sizeof(struct known))))
		return false;
	*slot = slots++;
	return true;
}

struct known *known_new(uint64_t file, uint64_t index, uint64_t size)
{
	struct known *known;
	size_t slot;

	GUARD(&lock);
	if (!take(&slot))
		return NULL;
	known = mmap(NULL, sizeof(*known), PROT_READ | PROT_WRITE, MAP_SHARED, memory,
		     (off_t)(slot * sizeof(*known)));
	if (known == MAP_FAILED) {
		unused[nunused++] = slot;
		return NULL;
	}
	known->slot = slot;
	known->index = index;
	known->size = size;
	known->file = file;
	return known;
}

void known_free(struct known *known)
{
	size_t slot = known->slot;

	GUARD(&lock);
	known->file = 0;
	munmap(known, sizeof(*known));
	if (!fallocate(memory, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
		       (off_t)(slot * sizeof(*known)), sizeof(*known)))
		unused[nunused++] = slot;
}
