/* SPDX-License-Identifier: Apache-2.0
 *
 * served.h - how a program comes to be served: its userfaultfd, and its mappings of page caches.
 *
 * Owns the order of what is said to the host (client.h) and what is done in the program's address
 * space (mapping.h).  Must not know whether that is our own or a tracee's.  May be called from a
 * signal handler and after fork().
 */
#ifndef DAXFAULT_PROGRAM_SERVED_H
#define DAXFAULT_PROGRAM_SERVED_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "client.h"
#include "mapping.h"

/* Connect to the host, attach process `pid` and hand over a userfaultfd that it makes.
 * -> 0, or what its mmap() fails with; then c is not connected. */
int served_begin(struct client *c, const char *socket, pid_t pid, struct caller *there, uint32_t *flags);

/* Map the page cache of q->fd, which is a descriptor of ours.  *demoted: MAP_PRIVATE in place of
 * MAP_SHARED, and marked MADV_DONTDUMP, which mremap(), fork() and partial unmapping keep.
 * -> 0, or what mmap() fails with; *dead when that is the connection, which is closed. */
int served_map(struct client *c, const struct map_request *q, struct caller *there, struct mapping *m,
	       bool *demoted, bool *dead);

#endif
