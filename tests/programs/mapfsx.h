/* SPDX-License-Identifier: Apache-2.0
 *
 * mapfsx.h - what the parts of mapfsx.c share: the random numbers, the log, and what is known of
 * the files and mappings that the operations made.
 */
#ifndef DAXFAULT_TWIN_H
#define DAXFAULT_TWIN_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#include "stress.h"

enum {
	NAMES = 3,
	FDS = 4,
	OBJECTS = 4096, /* files that a sequence makes, at most */
	SLOTS = 3,
	SLOT_PAGES = 24,
	SHOWN = 8,		      /* pages of a file that are mapped */
	MOST = 6 * PAGE_BYTES + 1000, /* of a file's bytes */
};

#define SLOT(s) ((char *)0x100000000000 + (uint64_t)(s) * 0x40000000)

/* What an address shows: bounds stores, and nothing else depends on it. */
struct page {
	int object; /* -1: nothing */
	int index;  /* in the file */
	bool shared;
	bool readonly; /* the descriptor that it was mapped with */
	int area;      /* those of one value are one mapping for the kernel */
};

struct descriptor {
	int fd, object;
};

extern struct page pages[SLOTS][SLOT_PAGES];
extern int names[NAMES]; /* object, or -1 */
extern struct descriptor fds[FDS];
extern off_t sizes[OBJECTS]; /* of each object */
extern int nobjects;
extern FILE *out;
extern uint64_t seed;

#define LOG(...) fprintf(out, __VA_ARGS__)

static inline unsigned pick(unsigned n)
{
	return next_random(&seed) % n;
}

uint64_t hash(const void *bytes, size_t n);
void result(const char *what, long r);

/* mapfsx_access.c; access_setup() is false when the process cannot be made ready */
bool access_setup(void);
char *somewhere(unsigned *slot, unsigned *page); /* an address that shows a file, mostly */
void load_or_store(void);
void look_at_all(void);
void fork_and_access(void);

/* mapfsx_files.c */
const char *name_of(int i);
void open_again(unsigned i);
void file_call(void);
void name_call(void);
void look_at_file(unsigned i);

/* mapfsx_map.c */
void map(void);
void remap(void);
void change_map(void);

#endif
