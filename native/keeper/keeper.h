/* SPDX-License-Identifier: Apache-2.0
 *
 * keeper.h - what a host sends to its keeper, a process that outlives it.
 *
 * The kernel answers a program whose host has died with zeros: when the last reference to a
 * userfaultfd is closed, a thread that is blocked on it goes on, and a page that is missing is a new
 * one (userfaultfd_release(), fs/userfaultfd.c).  So a second process holds the page caches and the
 * userfaultfds.  When the host dies it truncates every page cache to nothing, so that any touch is
 * SIGBUS, and closes them only then.
 *
 * One packet (SOCK_SEQPACKET) is one struct keep.  There are no replies.  A keeper may be replaced at
 * any time: the host sends everything again to the new one.
 */
#ifndef DAXFAULT_KEEPER_H
#define DAXFAULT_KEEPER_H

#include <pthread.h>
#include <stdint.h>

enum keep_kind {
	/* These carry a descriptor. */
	DF_KEEP_CACHE = 1,		/* the page cache of file `id` */
	DF_KEEP_UFFD = 2,
	DF_KEEP_LIFE = 3,		/* shared memory: struct keep_life */
	DF_KEEP_SOCKET = 4,		/* a connection to a program, or what accepts them */
	/* These do not. */
	DF_KEEP_NOTHING = 16,		/* close the descriptor of kind `what` and this `id` */
	DF_KEEP_PING = 17,		/* no meaning: a keeper that does not receive it is stopped */
	DF_KEEP_END = 18,		/* the host ends in good order and removes its mount itself */
};

struct keep {
	uint32_t kind;			/* enum keep_kind */
	uint32_t what;			/* enum keep_kind, for DF_KEEP_NOTHING */
	uint64_t id;
};

/* The host's main thread holds `alive` as long as it lives.  The kernel releases it first of all that a
 * dying thread does (futex_exit_release(), kernel/fork.c), long before it closes descriptors: one that
 * hangs in close(2) must not keep the death of the host a secret. */
struct keep_life {
	pthread_mutex_t alive;		/* robust, shared between processes */
};

#endif
