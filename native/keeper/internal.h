/* SPDX-License-Identifier: Apache-2.0
 *
 * internal.h - the keeper's own parts: main.c calls cleanup.c and kept.c; kept.c calls confine.c and
 * write_back.c.
 */
#ifndef DAXFAULT_KEEPER_INTERNAL_H
#define DAXFAULT_KEEPER_INTERNAL_H

#include <stdint.h>

#include "keeper.h"

/* cleanup.c: what the host would have removed itself */
struct leftovers {
	const char *mount;	/* its path; NULL: none */
	int point;		/* the directory below it; -1: only the path is known */
	const char *connection; /* the number of its FUSE connection */
	char **paths;		/* files and empty directories */
	int npaths;
};
void cleanup(const struct leftovers *left);

/* kept.c: holds descriptors until the host ends.  Writes a byte to `died` when it died. */
void kept_run(int host, int died);

/* confine.c: from now on this process can do what kept.c and write_back.c do, and nothing else. */
void confine(void);

/* write_back.c: what programs had stored when the host died.  */
void write_back_know(int known); /* DF_KEEP_KNOWN */
/* Empty a page cache, but for what goes to its backing file. */
void write_back_take(uint64_t id, int cache, int source);
void write_back_run(void); /* ... now, which may take long */

#endif
