/* SPDX-License-Identifier: Apache-2.0
 *
 * stress.h - what the stress's host and its guests share: the model of every page.
 *
 * A page has one writer.  It carries its file, its number and a version, twice: in
 * its first word, and in its middle one.  A reader may see:
 *
 *   a version from `limit` (older ones were cut off by a truncation that is over)
 *     to `issued` (later ones nobody has stored yet)
 *   at least the version of `floor`, when no truncation came since it was stored
 *   zero, or SIGBUS, only when a truncation did, or is under way
 *
 * `cut` is odd while a truncation that reaches the page is under way.
 */
#ifndef DAXFAULT_STRESS_H
#define DAXFAULT_STRESS_H

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
	FILES = 4,
	PAGES = 35,
	GUESTS = 3,
	THREADS = 2,			/* of a guest; each has windows of its own */
	WRITERS = GUESTS * THREADS + 1, /* and the host */
	PAGE_BYTES = 4096,
	MIDDLE = 2048,
	SIZE = PAGES * PAGE_BYTES - 1000, /* the tail of the last page stays zero */
	FILE_SHARED = 0,		  /* 0, 1: stored to by all */
	FILE_BEHIND = 2,		  /* read-only for guests, changed behind the host */
	FILE_WILD = 3,			  /* punched, anything goes but a hang or a foreign page */
	FD_SHARED = 10,			  /* descriptors a guest is born with */
	FD_SOCKET = 11,
	FD_CACHE = 12, /* ... and the following, one a file */
};

struct page_model {
	_Atomic uint32_t cut;
	_Atomic uint32_t limit;
	_Atomic uint32_t issued;
	_Atomic uint64_t floor; /* cut << 32 | version */
};

struct shared {
	struct page_model pages[FILES][PAGES];
	uint64_t seed;
	_Atomic uint32_t stop;
	_Atomic uint32_t violations;
	_Atomic uint32_t orphans; /* forked children that outlive their parent */
	_Atomic uint64_t progress[WRITERS];
	_Atomic uint64_t reads, stores, buses, forks, moves, unmaps, drops, punches;
	_Atomic uint64_t told, ready, errors; /* as the guests' kernels have heard */
	_Atomic uint64_t let_go, kept;	      /* of programs: files, descriptors */
};

/* guest -> host: serve these addresses; the answer is one int, an errno, with the doorbell
 * when it was the hello */
struct request {
	uint64_t start;
	uint32_t file;
	int32_t uffd; /* >= 0: this is the hello */
	int32_t area;
	uint32_t pad;
	uint64_t features;
};

static inline uint64_t page_value(unsigned file, unsigned page, uint32_t version)
{
	return (uint64_t)(file + 1) << 56 | (uint64_t)(page + 1) << 40 | version;
}

static inline unsigned page_writer(unsigned page)
{
	return page % WRITERS;
}

struct page_look {
	uint32_t cut;
	uint64_t floor;
};

static inline struct page_look page_look(struct page_model *m)
{
	struct page_look look = { atomic_load(&m->cut), 0 };

	look.floor = atomic_load(&m->floor);
	return look;
}

/* No truncation was under way, nor came since the look. */
static inline bool page_quiet(struct page_model *m, struct page_look look)
{
	return !(look.cut & 1) && atomic_load(&m->cut) == look.cut;
}

/* -> what is wrong with a word that was read after `look`, or NULL */
static inline const char *page_check(struct shared *s, unsigned file, unsigned page,
				     struct page_look look, uint64_t value)
{
	struct page_model *m = &s->pages[file][page];
	uint32_t version = (uint32_t)value, limit = atomic_load(&m->limit);
	bool quiet = page_quiet(m, look);
	bool promised = quiet && look.floor >> 32 == look.cut;

	if (!value)
		return promised && file != FILE_WILD ? "zero" : NULL;
	if (value != page_value(file, page, version))
		return "foreign";
	if (version > atomic_load(&m->issued))
		return "from the future";
	if (file == FILE_WILD || !quiet)
		return NULL;
	if (version < limit)
		return "from before a truncation";
	return promised && version < (uint32_t)look.floor ? "stale" : NULL;
}

/* The store of `version` that began at `look` is done. */
static inline void page_stored(struct page_model *m, struct page_look look, uint32_t version)
{
	if (page_quiet(m, look))
		atomic_store(&m->floor, (uint64_t)look.cut << 32 | version);
}

/* The pages from `first` on are about to be cut off, or have been. */
static inline void pages_cut(struct shared *s, unsigned file, unsigned first, bool begin)
{
	for (unsigned p = first; p < PAGES; p++) {
		struct page_model *m = &s->pages[file][p];

		atomic_fetch_add(&m->cut, 1); /* before the limit: readers go by it */
		if (begin && p > first)	      /* of the first only a part goes */
			atomic_store(&m->limit, atomic_load(&m->issued));
	}
}

static inline uint32_t next_random(uint64_t *state)
{
	*state = *state * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)(*state >> 33);
}

/* One access by `writer`, to a page of its choice; or only a read. */
typedef void stress_access(void *windows, unsigned writer, uint64_t *seed);

/* Fork a child that does accesses in its parent's stead, and maybe a grandchild that outlives it. */
static inline void fork_once(struct shared *s, void *windows, unsigned writer, uint64_t *seed,
			     stress_access *any, stress_access *read)
{
	bool orphan = next_random(seed) % 4 == 0;
	int pid;

	atomic_fetch_add(&s->forks, 1);
	atomic_fetch_add(&s->orphans, 1);
	pid = fork();
	if (pid < 0) {
		perror("fork");
		exit(3);
	}
	if (!pid) {
		for (int i = 0; i < 20; i++)
			any(windows, writer, seed);
		if (orphan && fork() == 0)
			for (int i = 0; i < 50; i++)
				read(windows, writer, seed);
		else if (orphan)
			_exit(0);
		atomic_fetch_sub(&s->orphans, 1);
		_exit(0);
	}
	while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
		;
}

#endif
