/* SPDX-License-Identifier: Apache-2.0
 *
 * keeper.h - what a host says to its keeper, a process that outlives it.
 *
 * The kernel answers a program whose host has died with zeros: when the last reference
 * to a userfaultfd is closed, a thread that is blocked on it goes on, and a page that is missing is a
 * new one (userfaultfd_release(), fs/userfaultfd.c).  So somebody else holds them as well.
 * When the connection ends, the keeper truncates every page cache to nothing, so that any
 * touch is SIGBUS, and only then lets go.
 *
 * One packet (SOCK_SEQPACKET) is one struct keep; DF_KEEP_CACHE and DF_KEEP_UFFD carry a
 * descriptor.  There are no replies.
 */
#ifndef DAXFAULT_KEEPER_H
#define DAXFAULT_KEEPER_H

#include <stdint.h>

enum keep_kind {
	DF_KEEP_CACHE = 1,
	DF_KEEP_UFFD = 2,
	DF_KEEP_NOTHING = 3,		/* let go of `what`, by its id */
};

struct keep {
	uint32_t kind;			/* enum keep_kind */
	uint32_t what;			/* enum keep_kind, for DF_KEEP_NOTHING */
	uint64_t id;
};

#endif
