/* SPDX-License-Identifier: Apache-2.0
 *
 * storm.h - what the parts of storm know of each other.
 *
 * Files 0 and 1 are stored to by all and truncated through the mount; FILE_BEHIND is only read
 * through it, and changed behind it; FILE_WILD is stored to and truncated behind, which a
 * host cannot make one.
 */
#ifndef DAXFAULT_STORM_H
#define DAXFAULT_STORM_H

#include "stress.h"

#define LENGTH ((size_t)PAGES * PAGE_BYTES)

enum {
	PROCESSES = GUESTS,
	CHANGER = WRITERS - 1,
	NO_FILE = FILES,
	WINDOWS = 2, /* a file is mapped twice: shared, and private */
};

struct counts {
	_Atomic uint64_t syncs, preads, pwrites, privates, kills, cuts, behind;
};

extern struct shared *shared;
extern struct counts *counts;
extern int fds[FILES], backing[FILES]; /* on the mount, and behind it */
extern int flawed;		       /* this file may have SIGBUS at any time */

/* storm.c */
void violation(unsigned file, unsigned page, const char *what, uint64_t value);
void check(long r, const char *what, unsigned file); /* -1 is a violation, of errno */

/* storm_program.c */
void read_page(int fd, unsigned file, unsigned page);
void write_page(int fd, unsigned file, unsigned page);
int start(unsigned number); /* -> the process */

#endif
