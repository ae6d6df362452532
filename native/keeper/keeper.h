/* SPDX-License-Identifier: Apache-2.0
 *
 * keeper.h - the protocol from a host to its keeper, a process that outlives it.
 *
 * When the last reference to a userfaultfd is closed, the kernel unblocks the threads that wait on
 * it and gives them zeroed pages (userfaultfd_release(), fs/userfaultfd.c).  The keeper therefore
 * holds the page caches and the userfaultfds too.  When the host dies, it truncates every page
 * cache to 0, so that every access raises SIGBUS, and only then closes them.  Then it writes what
 * programs had stored to the backing files.
 *
 * One packet (SOCK_SEQPACKET) is one struct keep.  There are no replies.  A keeper may be replaced
 * at any time: the host sends everything again to the new one.
 */
#ifndef DAXFAULT_KEEPER_H
#define DAXFAULT_KEEPER_H

#include <pthread.h>
#include <stdint.h>

enum keep_kind {
	/* These carry a descriptor. */
	DF_KEEP_CACHE = 1, /* the page cache of file `id` */
	DF_KEEP_UFFD = 2,
	DF_KEEP_LIFE = 3,   /* shared memory: struct keep_life */
	DF_KEEP_SOCKET = 4, /* a connection to a program, or the socket that accepts them */
	DF_KEEP_SOURCE = 5, /* the backing file of `id`, open for writing */
	DF_KEEP_KNOWN = 6,  /* shared memory: an array of struct known (known.h) */
	/* These do not. */
	DF_KEEP_NOTHING = 16, /* close the descriptor of kind `what` and this `id` */
	DF_KEEP_PING = 17,    /* no meaning: a keeper that does not receive it is stopped */
	DF_KEEP_END = 18,     /* the host ends in good order and removes its mount itself */
};

struct keep {
	uint32_t kind; /* enum keep_kind */
	uint32_t what; /* enum keep_kind, for DF_KEEP_NOTHING */
	uint64_t id;
};

/* The host's main thread holds `alive` for life.  When a thread dies, the kernel releases it
 * (futex_exit_release(), kernel/fork.c) before it closes descriptors, so that a hung close(2)
 * does not hide the death of the host. */
struct keep_life {
	pthread_mutex_t alive; /* robust, shared between processes */
};

#endif
